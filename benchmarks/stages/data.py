"""From JPEG files to a normalised batch on the device, with augmentation, in one process."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.measure import Work
from benchmarks.reference import data as plain
from benchmarks.reference.detector import pad_batch
from benchmarks.settings import Settings
from benchmarks.stages import Stage
from benchmarks.workloads import byte_images, write_coco
from datasets import build_dataset
from datasets.loaders import make_loader
from util.nested_tensor import ByteBatch, collate_fn

BATCH = 2  # images, main.py's default
GREY_LEVEL = 1 / 255 / min(plain.STD)  # one, in a normalised picture


def _root(settings: Settings) -> Path:
    pictures, (height, width) = settings.pick(48, 4), settings.image_size(480, 640)
    return write_coco(settings.folder / f"coco{pictures}_{height}x{width}", pictures, height, width)


def _flags(settings: Settings, masks: bool) -> Namespace:
    args = settings.flags("--coco_path", str(_root(settings)))
    args.masks = masks
    return args


def _same_draws() -> None:
    random.seed(0)
    torch.manual_seed(0)


def _loading(settings: Settings, side: str, masks: bool) -> Work:
    """Each side's own road from files to the device."""
    args = _flags(settings, masks)
    if side == "ours":
        dataset = build_dataset("train", args, normalize_images=False)
        loader = make_loader(dataset, _batches(dataset))
        return _epochs(loader, lambda samples: samples.to(settings.device).tensors)
    loader = _in_turn(plain.CocoTraining(args), plain.collate)
    return _epochs(loader, lambda samples: samples[0].to(settings.device))


def _dataset(settings: Settings, side: str, masks: bool) -> Work:
    """The published calls, from a user's own script: items, and the collate function."""
    args = _flags(settings, masks)
    if side == "ours":
        return _epochs(_in_turn(build_dataset("train", args), collate_fn), lambda samples: samples.tensors)
    return _epochs(_in_turn(plain.CocoTraining(args), plain.collate), lambda samples: samples[0])


def _in_turn(dataset: Any, collate: Callable[..., Any]) -> DataLoader:
    own = torch.Generator()  # otherwise the loader draws a number, and the pictures are others
    return DataLoader(dataset, batch_sampler=_batches(dataset), collate_fn=collate, generator=own)


def _batches(dataset: Any) -> list[list[int]]:
    return [list(range(start, start + BATCH)) for start in range(0, len(dataset), BATCH)]


def _epochs(loader: DataLoader, pixels_of: Callable[[Any], torch.Tensor]) -> Work:
    """All batches, (pixels, targets) each: kept the first time, for comparing, then dropped one by one."""
    kept = False

    def batches() -> Iterator[Any]:
        for samples, targets in loader:
            yield pixels_of(samples), targets

    def run(_: None) -> list[Any]:
        nonlocal kept
        if not kept:
            kept = True
            return list(batches())
        for _batch in batches():
            pass
        return []

    return Work(run, _same_draws, items=len(loader) * BATCH)


def _transfer(settings: Settings, side: str) -> Work:
    """Decoded and resized pictures until they are a normalised batch on the device."""
    images = byte_images(settings.pick(8, 2), *settings.image_size(800, 1066))
    device = settings.device

    def ours() -> Any:
        return ByteBatch(images).to(device).tensors

    def reference() -> Any:
        floats = [plain.F.normalize(image.float() / 255, plain.MEAN, plain.STD) for image in images]
        return pad_batch(floats)[0].to(device)

    return Work(ours if side == "ours" else reference, items=len(images))


def _pixels_apart(ours: list[Any], reference: list[Any]) -> float:
    """The largest difference of a pixel; infinite where targets differ in more than rounding."""
    largest = 0.0
    for (pixels, targets), (others, wanted) in zip(ours, reference, strict=True):
        for target, other in zip(targets, wanted, strict=True):
            if not all(_alike(target[name], value) for name, value in other.items()):
                return float("inf")
        largest = max(largest, float((pixels - others).abs().max()))
    return largest


def _alike(value: torch.Tensor, other: torch.Tensor) -> bool:
    return value.shape == other.shape and torch.allclose(value.float(), other.float(), rtol=1e-4, atol=1e-5)


def _stage(name: str, title: str, target: float, build: Any, masks: bool, threads: int | None) -> Stage:
    return Stage(
        name,
        title,
        lambda settings, side: build(settings, side, masks),
        target=target,
        threads=threads,
        difference=_pixels_apart,
        # Twice resized, twice rounded: each time by a grey level at most.
        tolerance=2.5 * GREY_LEVEL,
    )


STAGES = [
    _stage("loading", "own loading", 5, _loading, False, None),
    _stage("loading-masks", "own loading, masks", 5, _loading, True, None),
    _stage("dataset", "build_dataset and collate_fn", 2, _dataset, False, 1),
    _stage("dataset-masks", "build_dataset and collate_fn, masks", 2, _dataset, True, 1),
    Stage(
        "transfer",
        "transfer and normalisation, 8 x 800x1066",
        _transfer,
        on_device=True,
        difference=lambda a, b: float((a - b).abs().max()),
        tolerance=1e-5,
    ),
]
