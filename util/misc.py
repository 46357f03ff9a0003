"""The published import path of helpers that now have homes of their own; nothing in the project uses it.

A name replaced here is replaced for those who read it here; for the project itself, replace it in its home.
"""

import torch.distributed as dist
from torch.nn.functional import interpolate

from util.distributed import (
    all_gather,
    get_rank,
    get_world_size,
    init_distributed_mode,
    is_dist_avail_and_initialized,
    is_main_process,
    reduce_dict,
    save_on_master,
    setup_for_distributed,
)
from util.machine import get_sha
from util.meters import MetricLogger, SmoothedValue
from util.metrics import accuracy
from util.nested_tensor import (
    NestedTensor,
    _max_by_axis,
    _onnx_nested_tensor_from_tensor_list,
    collate_fn,
    nested_tensor_from_tensor_list,
)

__all__ = [
    "MetricLogger",
    "NestedTensor",
    "SmoothedValue",
    "_max_by_axis",
    "_onnx_nested_tensor_from_tensor_list",
    "accuracy",
    "all_gather",
    "collate_fn",
    "dist",
    "get_rank",
    "get_sha",
    "get_world_size",
    "init_distributed_mode",
    "interpolate",
    "is_dist_avail_and_initialized",
    "is_main_process",
    "nested_tensor_from_tensor_list",
    "reduce_dict",
    "save_on_master",
    "setup_for_distributed",
]
