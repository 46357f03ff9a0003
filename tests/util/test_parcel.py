"""Batches from data workers in one piece of shared memory: equal to those that no worker made."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.helpers import ROOT
from util.nested_tensor import ByteBatch, collate_bytes
from util.parcel import Parcel, handed_over

SIZES = [(5, 7), (8, 3), (1, 1), (6, 6)]


class Items(Dataset):
    """Decoded (interleaved) and plain pictures, targets of many types, one without objects."""

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        height, width = SIZES[index]
        draw = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8).permute(2, 0, 1)
        target = {
            "boxes": torch.rand(index, 4, generator=draw),
            "labels": torch.arange(index),
            "masks": torch.rand(index, height, width, generator=draw) > 0.5,
            "area": torch.rand(2 * index, generator=draw)[::2],
            "scalar": torch.tensor(index / 3, dtype=torch.float64),
            "name": f"picture {index}",
            "nested": [(index, torch.tensor([index]))],
        }
        return (image.contiguous() if index == 3 else image), target


class _Named(NamedTuple):
    number: int
    tensor: torch.Tensor


class Large(Dataset):
    """Pictures of 3 MB."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return torch.zeros(3, 1000, 1000, dtype=torch.uint8), {}


@pytest.mark.parametrize("multiple", [1, 16])
def test_workers_give_the_same_batches(multiple: int) -> None:
    collate = partial(handed_over, partial(collate_bytes, multiple=multiple))
    alone, workers = (list(DataLoader(Items(), 2, collate_fn=collate, num_workers=count)) for count in (0, 2))
    assert len(alone) == len(workers) == 2
    for (one, targets), (other, others) in zip(alone, workers, strict=True):
        assert isinstance(other, ByteBatch) and one.size == other.size
        for image, arrived in zip(one.images, other.images, strict=True):
            assert torch.equal(image, arrived) and image.is_contiguous() == arrived.is_contiguous()
        for target, arrived in zip(targets, others, strict=True):
            assert target.keys() == arrived.keys()
            for name, value in target.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, arrived[name]) and value.dtype == arrived[name].dtype, name
                    arrived[name].zero_()  # it may be written to, and lies apart from the others
            assert arrived["name"] == target["name"]
            assert arrived["nested"][0][0] == target["nested"][0][0]
            assert torch.equal(arrived["nested"][0][1], target["nested"][0][1])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux, to mount")
def test_too_little_shared_memory_is_told_and_not_waited_for() -> None:
    script = (
        "from tests.util.test_parcel import Large\n"
        "from util.errors import exit_status\n"
        "from datasets.loaders import make_loader\n"
        "loader = make_loader(Large(), [[0, 1], [2, 3], [4, 5], [6, 7]], num_workers=1)\n"
        "raise SystemExit(exit_status(lambda: print(len(list(loader)))))\n"
    )
    for size, status in (("64m", 0), ("1m", 2)):
        mounted = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" -c "$1"'
        words = ["unshare", "-m", "sh", "-c", mounted, sys.executable, script]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=ROOT)
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        assert done.returncode == status, done.stderr
    assert (
        done.stderr.startswith("error: no room for a batch of 5.7 MiB") and "--num_workers 0" in done.stderr
    )


def test_a_parcel_is_one_piece() -> None:
    make, (function, structure, memory) = Parcel(torch.stack, [torch.ones(2), torch.zeros(2)]).__reduce__()
    assert memory.is_shared() and memory.dtype == torch.uint8
    assert "tensor" not in str(structure)
    assert torch.equal(make(function, structure, memory), torch.tensor([[1.0, 1], [0, 0]]))
    make, given = Parcel(list, [_Named(3, torch.ones(2))]).__reduce__()
    (named,) = make(*given)
    assert type(named) is _Named and named.number == 3 and torch.equal(named.tensor, torch.ones(2))
    make, given = Parcel(list, ()).__reduce__()
    assert make(*given) == []
