"""Training on several processes: gradients averaged by DistributedDataParallel, statistics shared."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.distributed import get_world_size


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Let gradients be averaged over all processes; `device` is where this one's model is."""
    # Batches are channels_last, weights are not: gradients of 1x1 convolutions have other strides for the
    # same order of numbers. They are copied into the buckets; the warning would tell a user to do something.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch is renaming broadcast_buffers
        return DistributedDataParallel(
            model,
            device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
            broadcast_buffers=False,  # frozen norms never change, others are shared after each epoch
            gradient_as_bucket_view=True,
        )


def settle_buckets(trained: DistributedDataParallel, device: torch.device) -> None:
    """Let DistributedDataParallel group gradients for good, by a backward pass whose result is dropped.

    After its first backward pass it groups them anew, in the order in which they came. From three processes
    on the grouping moves the last bits of their sums, so a resumed run would take its first step with other
    gradients than the run that was left alone. Nothing random is drawn, no weight or statistic changes.
    """
    was_training = trained.training
    trained.eval()
    with torch.compiler.set_stance("force_eager"):  # a graph for this alone would be a waste
        outputs = trained(torch.zeros(1, 3, 64, 64, device=device))
    groups = [outputs, *outputs.get("group_outputs", [])]
    layers = [layer for group in groups for layer in (group, *group.get("aux_outputs", []))]
    values = [value for layer in layers for value in layer.values() if isinstance(value, torch.Tensor)]
    torch.stack([value.float().sum() for value in values if value.requires_grad]).sum().backward()
    trained.zero_grad()
    trained.train(was_training)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the main process's buffers (statistics of trained norms)."""
    if get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
