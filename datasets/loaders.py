"""Data loaders of batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from util.collector import leave_parents_objects
from util.errors import UserError
from util.interruption import leave_to_parent
from util.nested_tensor import ByteBatch, collate_bytes


def make_loader(
    dataset: Dataset,
    batch_sampler: Iterable[list[int]],
    num_workers: int = 0,
    *,
    multiple: int = 1,
    pinned: bool = False,
    seed: int = 0,
) -> DataLoader:
    """A loader of (ByteBatch, targets): once an epoch is set, the same batches for any number of workers.

    Args:
        dataset: of uint8 images, or of normalised ones, which give NestedTensors.
        batch_sampler: the indices of each batch.
        num_workers: processes; 0: this one loads.
        multiple: see collate_bytes.
        pinned: put what goes to the device into page-locked memory.
        seed: of the workers.
    """
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=partial(_collate, multiple=multiple),
        pin_memory=pinned,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        # One of its own keeps the seeds of the workers apart from the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def _collate(items: Sequence[tuple[Any, dict[str, Any]]], multiple: int) -> tuple:
    """`collate_bytes`. A data worker puts the images where other processes read them.

    torch would do so as well, but in a thread whose errors reach nobody: the loader would wait for ever.
    """
    samples, *targets = collate_bytes(items, multiple)
    if isinstance(samples, ByteBatch) and get_worker_info() is not None:
        try:
            samples.tensors.share_memory_()
        except RuntimeError as error:
            size = f"{samples.tensors.nbytes / 2**20:.1f} MiB"
            raise UserError(
                f"no room for a batch of {size} in the memory that processes share (/dev/shm): "
                "pass --num_workers 0, or give the container more (docker run --shm-size=1g)"
            ) from error
    return samples, *targets


def _start_worker(_: int) -> None:
    leave_to_parent()
    leave_parents_objects()
