"""Batches of images of different sizes: padded to a common canvas, with a mask of the padding.

Shapes: B images, C channels, H W of the canvas (the largest height and the largest width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ROWS_IN_CACHE = 64  # of a picture: about 0.7 MB of floats


class NestedTensor:
    """A batch and the mask of its padding.

    Attributes:
        tensors: [B, C, H, W], zero where padded.
        mask: bool [B, H, W], True where padded; None where nobody needs it.
        padded: False only if it is known, without looking at the device, that the mask holds no True.
            Attention then needs no mask at all.
    """

    def __init__(self, tensors: Tensor, mask: Optional[Tensor], padded: bool = True):  # noqa: UP045 (script)
        self.tensors = tensors
        self.mask = mask
        self.padded = padded

    @torch.jit.unused
    def to(self, device: Any, non_blocking: bool = False) -> NestedTensor:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking), mask, self.padded)

    def decompose(self):
        """The pair (tensors, mask)."""
        return self.tensors, self.mask

    @torch.jit.unused
    def pin_memory(self) -> NestedTensor:
        """The same batch in page-locked memory (the data loader calls this under `pin_memory`)."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return NestedTensor(self.tensors.pin_memory(), mask, self.padded)

    def __repr__(self):
        return str(self.tensors)


def nested_tensor_from_tensor_list(tensor_list: list[Tensor]) -> NestedTensor:
    """Images [C, h, w] of one dtype and device, or one tensor [B, C, H, W], as a padded batch.

    Raises:
        ValueError: the images are not all [C, h, w] with one C.
    """
    if any(image.ndim != 3 or image.shape[0] != tensor_list[0].shape[0] for image in tensor_list):
        shapes = [tuple(image.shape) for image in tensor_list]
        raise ValueError(f"images must all be [C, h, w] with one number of channels, not {shapes}")
    if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return _traceable_batch(list(tensor_list))
    first = tensor_list[0]
    height, width = _canvas([image.shape[-2:] for image in tensor_list])
    tensors = first.new_zeros((len(tensor_list), first.shape[0], height, width))
    mask = torch.ones((len(tensor_list), height, width), dtype=torch.bool, device=first.device)
    padded = False
    for i, image in enumerate(tensor_list):
        h, w = image.shape[-2:]
        tensors[i, :, :h, :w].copy_(image)
        mask[i, :h, :w] = False
        padded = padded or (h, w) != (height, width)
    return NestedTensor(tensors, mask, padded)


def _canvas(sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def _traceable_batch(images: list[Tensor]) -> NestedTensor:
    """The same by padding alone: tracing cannot record a copy into a slice of changing size."""
    height = torch.stack([torch.as_tensor(image.shape[1]) for image in images]).max()
    width = torch.stack([torch.as_tensor(image.shape[2]) for image in images]).max()
    tensors, masks = [], []
    for image in images:
        below, right = height - image.shape[1], width - image.shape[2]
        around = (0, right, 0, below)
        tensors.append(torch.nn.functional.pad(image, around))  # type: ignore[arg-type]
        inside = torch.zeros_like(image[0], dtype=torch.int)
        masks.append(torch.nn.functional.pad(inside, around, value=1).to(torch.bool))  # type: ignore[arg-type]
    return NestedTensor(torch.stack(tensors), torch.stack(masks))


def collate_fn(batch: Sequence[tuple[Tensor, dict]]) -> tuple:
    """Items (image, target) -> (NestedTensor, tuple of targets), as the published loader gives them."""
    images, *rest = zip(*batch, strict=True)
    return nested_tensor_from_tensor_list(list(images)), *rest


class ByteBatch:
    """Images as uint8 on their way to the device: a quarter of the bytes of a normalised batch.

    `to(device)` moves them and normalises there; what comes out equals the published road (normalise,
    then pad with zeros) but for rounding.

    Attributes:
        tensors: uint8 [B, 3, H, W].
        sizes: (h, w) of each image within the canvas.
    """

    def __init__(self, tensors: Tensor, sizes: list[tuple[int, int]]):
        self.tensors = tensors
        self.sizes = sizes

    @classmethod
    def from_images(cls, images: Sequence[Tensor], multiple: int = 1) -> ByteBatch:
        """Images uint8 [3, h, w] -> a padded batch, its height and width rounded up to a multiple."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (-(-side // multiple) * multiple for side in _canvas(sizes))
        # Decoders give interleaved pixels: a canvas of the same layout is filled row by row.
        tensors = torch.empty(
            (len(images), images[0].shape[0], height, width),
            dtype=torch.uint8,
            memory_format=torch.channels_last,
        )
        for canvas, image, (h, w) in zip(tensors, images, sizes, strict=True):
            canvas[:, :h, :w] = image
        _zero_padding(tensors, sizes)
        return cls(tensors, sizes)

    def pin_memory(self) -> ByteBatch:
        """The same batch in page-locked memory."""
        return ByteBatch(self.tensors.pin_memory(), self.sizes)

    def to(self, device: Any, non_blocking: bool = False) -> NestedTensor:
        """Move, normalise with ImageNet's mean and deviation, and pad with zeros -> NestedTensor."""
        raw = self.tensors.to(device, non_blocking=non_blocking)
        batch, _, height, width = raw.shape
        padded = any(size != (height, width) for size in self.sizes)
        mask = torch.zeros((batch, height, width), dtype=torch.bool, device=raw.device)
        if padded:
            for i, (h, w) in enumerate(self.sizes):
                mask[i, h:] = True
                mask[i, :, w:] = True
        return NestedTensor(_normalised(raw, self.sizes), mask, padded)


def _zero_padding(tensors: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    for canvas, (h, w) in zip(tensors, sizes, strict=True):
        canvas[:, h:] = 0
        canvas[:, :h, w:] = 0


def _normalised(raw: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Pixels uint8 [B, 3, H, W] in channels_last -> float32, normalised, zero outside the sizes.

    Rows of interleaved pixels are taken as vectors of 3 W numbers, with factors for each: broadcasting over
    the channels themselves would run in loops of three. On a CPU a few rows go through all operations while
    they are in its cache.
    """
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    batch, channels, height, width = raw.shape
    scale = (1 / (255 * std)).repeat(width).to(raw.device, non_blocking=True)  # [3 W]
    shift = (mean / std).repeat(width).to(raw.device, non_blocking=True)
    pixels = torch.empty(raw.shape, device=raw.device, memory_format=torch.channels_last)
    rows = pixels.permute(0, 2, 3, 1).view(batch, height, width * channels)
    raw_rows = raw.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    if raw.device.type != "cpu":
        rows.copy_(raw_rows).mul_(scale).sub_(shift)
    else:
        for image, raw_image, (h, w) in zip(rows, raw_rows, sizes, strict=True):
            w *= channels
            pieces = image[:h, :w].split(_ROWS_IN_CACHE), raw_image[:h, :w].split(_ROWS_IN_CACHE)
            for piece, raw_piece in zip(*pieces, strict=True):
                piece.copy_(raw_piece).mul_(scale[:w]).sub_(shift[:w])
    _zero_padding(pixels, sizes)
    return pixels


def collate_bytes(batch: Sequence[tuple[Tensor, dict]], multiple: int = 1) -> tuple:
    """Items (uint8 image, target) -> (ByteBatch, tuple of targets): the project's own, faster road.

    Args:
        batch: as a data loader gives it.
        multiple: round the canvas up to a multiple of so many pixels; the mask knows the padding.
    """
    images, *rest = zip(*batch, strict=True)
    return ByteBatch.from_images(list(images), multiple), *rest
