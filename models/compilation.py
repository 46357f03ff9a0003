"""`--compile`: the backbone and the transformer through torch.compile, few graphs for all sizes of images.

Both are compiled for sizes that vary, so that one graph serves every batch; only what changes the graph
itself makes another: training or evaluation. Three things would make more of them, and are
avoided. Sizes that happen to be equal are not taken to be always equal. Training batches are rounded up to a
multiple of CANVAS_MULTIPLE pixels, so that no size is a special case for its divisibility. And the graphs of
training are made at its start, from one size that is always the same, so that a resumed run computes with the
kernels of the run that it continues.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from util.amp import Precision
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.random_state import random_state_kept

from .query_groups import QueryGroups

CANVAS_MULTIPLE = 32  # pixels: the stride of the last map
WARM_UP_SIZE = 6 * CANVAS_MULTIPLE, 10 * CANVAS_MULTIPLE  # height, width
GRAPHS = 32  # of one function, at most; torch's own limit is 8, after which it silently goes on uncompiled


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Let backbone and transformer be compiled when they are first called.

    Changes the model in place; names in the state_dict stay, and copies of the model are not compiled.

    Raises:
        UserError: this machine cannot compile.
    """
    import torch._dynamo as dynamo
    import torch.fx.experimental._config as shapes

    shapes.use_duck_shape = False  # type: ignore[attr-defined]
    limit = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(dynamo.config, limit, GRAPHS)
    _try_out(device)
    detector: Any = getattr(model, "detr", model)
    for part in (detector.backbone[0].body, detector.transformer):
        # Batches are channels_last; without the option, graphs of gradients hold for one size of images.
        part.compile(dynamic=True, options={"force_layout_optimization": True})
    dynamo.utils.counters["stats"].clear()


def _try_out(device: torch.device) -> None:
    """Compile something small: compilers and headers are missing in more ways than one can ask for."""
    try:
        torch.compile(lambda x: (x * 2 + 1).relu())(torch.ones(16, device=device))
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if "ompiler" in line or "riton" in line]
        reason = (telling or lines or [type(error).__name__])[0]
        raise UserError(
            f"--compile: torch cannot compile on this machine ({reason}): install a C++ compiler (on Debian "
            "and Ubuntu apt install g++), for a GPU triton too, or leave --compile out"
        ) from error


def graphs_compiled() -> int:
    """How many graphs have been compiled since `compile_model`."""
    import torch._dynamo as dynamo

    return dynamo.utils.counters["stats"]["unique_graphs"]


def warm_up(
    model: nn.Module, batch_size: int, precision: Precision, groups: QueryGroups | None = None
) -> None:
    """Compile what training needs, perhaps with further groups of queries.

    Weights, statistics and random numbers stay.
    """
    height, width = WARM_UP_SIZE
    detector: Any = getattr(model, "detr", model)
    model.train()
    before = [buffer.clone() for buffer in model.buffers()]
    with random_state_kept():
        images = torch.zeros(batch_size, 3, height, width, device=precision.device)
        images = images.contiguous(memory_format=torch.channels_last)
        mask = torch.zeros(batch_size, height, width, dtype=torch.bool, device=precision.device)
        with precision.autocast():
            options = {} if groups is None else {"other_queries": groups.queries.detach()}
            outputs = detector(NestedTensor(images, mask), **options)
        loss = outputs["pred_logits"].sum() + outputs["pred_boxes"].sum()
        if loss.requires_grad:
            loss.backward()
    model.zero_grad()
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
