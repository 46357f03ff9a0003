"""Batches of images of different sizes: padded to a common canvas, with a mask of the padding.

Shapes: B images, C channels, H W of the canvas (the largest height and the largest width).
"""

from __future__ import annotations

import copy
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
        described: the mask that `padded` speaks of, and how often it had been edited. See `may_be_padded`.
    """

    def __init__(self, tensors: Tensor, mask: Optional[Tensor], padded: bool = True):  # noqa: UP045 (script)
        self.tensors = tensors
        self.mask = mask
        self.padded = padded
        if not torch.jit.is_scripting():
            self.described = mask, _edits(mask)

    @torch.jit.unused
    def to(self, device: Any, non_blocking: bool = False) -> NestedTensor:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking), mask, may_be_padded(self))

    def decompose(self):
        """The pair (tensors, mask)."""
        return self.tensors, self.mask

    @torch.jit.unused
    def pin_memory(self) -> NestedTensor:
        """The same batch in page-locked memory (the data loader calls this under `pin_memory`)."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return NestedTensor(self.tensors.pin_memory(), mask, may_be_padded(self))

    def __repr__(self):
        return str(self.tensors)


def may_be_padded(batch: Any) -> bool:
    """Whether a batch's mask may hold a True: `padded`, unless the mask is another than that speaks of.

    A class of a user's own says nothing of it, and then it may.
    """
    if getattr(batch, "padded", True):
        return True
    mask, edits = batch.described
    return batch.mask is not mask or _edits(mask) != edits


def _edits(mask: Tensor | None) -> int:
    """How often a mask was written to; torch does not count under inference_mode."""
    return 0 if mask is None or mask.is_inference() else mask._version


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
    return _padded_batch(tensor_list)


def _padded_batch(images: Sequence[Tensor], multiple: int = 1) -> NestedTensor:
    """Images on their canvas, whose sides are rounded up to a multiple of so many pixels."""
    first = images[0]
    height, width = _canvas([image.shape[-2:] for image in images], multiple)
    tensors = first.new_zeros((len(images), first.shape[0], height, width))
    mask = torch.ones((len(images), height, width), dtype=torch.bool, device=first.device)
    padded = False
    for i, image in enumerate(images):
        h, w = image.shape[-2:]
        tensors[i, :, :h, :w].copy_(image)
        mask[i, :h, :w] = False
        padded = padded or (h, w) != (height, width)
    return NestedTensor(tensors, mask, padded)


def _canvas(sizes: Sequence[Sequence[int]], multiple: int = 1) -> tuple[int, int]:
    """(height, width) that hold all sizes, rounded up to a multiple of so many pixels."""
    height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*sizes, strict=True))
    return height, width


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

    `to(device)` moves them and normalises there; what comes out equals the published way (normalise, then pad
    with zeros) but for rounding.

    Args:
        images: uint8 [3, h, w] each.
        multiple: round the canvas up to a multiple of so many pixels.

    Attributes:
        tensors: the canvas, uint8 [B, 3, H, W], channels_last, zero where padded.
        sizes: (h, w) of each image within the canvas.
    """

    def __init__(self, images: Sequence[Tensor], multiple: int = 1):
        self.sizes = [(image.shape[1], image.shape[2]) for image in images]
        shape = len(images), 3, *_canvas(self.sizes, multiple)
        self.tensors = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        for canvas, image, (h, w) in zip(self.tensors, images, self.sizes, strict=True):
            canvas[:, :h, :w] = image
        _zero_padding(self.tensors, self.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the canvas."""
        return self.tensors.shape[2], self.tensors.shape[3]

    @property
    def images(self) -> list[Tensor]:
        """The images, views of the canvas."""
        return [canvas[:, :h, :w] for canvas, (h, w) in zip(self.tensors, self.sizes, strict=True)]

    def pin_memory(self) -> ByteBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        pinned = copy.copy(self)
        pinned.tensors = self.tensors.pin_memory()
        return pinned

    def to(self, device: Any, non_blocking: bool = False) -> NestedTensor:
        """Move, normalise with ImageNet's mean and deviation, and pad with zeros -> NestedTensor."""
        device = torch.device(device)
        raw = self.tensors.to(device, non_blocking=non_blocking)
        mask = torch.zeros((len(raw), *self.size), dtype=torch.bool, device=device)
        padded = any(size != self.size for size in self.sizes)
        if padded:
            for i, (h, w) in enumerate(self.sizes):
                mask[i, h:] = True
                mask[i, :, w:] = True
        pixels = torch.empty_like(raw, dtype=torch.float32)  # channels_last, too
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        factors = (values.repeat(self.size[1]) for values in (1 / (255 * std), -mean / std))  # [3 W] each
        scale, shift = (factor.to(device, non_blocking=non_blocking) for factor in factors)
        _normalise(_interleaved(raw), _interleaved(pixels), scale, shift)
        _zero_padding(pixels, self.sizes)
        return NestedTensor(pixels, mask, padded)


def _zero_padding(tensors: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    for canvas, (h, w) in zip(tensors, sizes, strict=True):
        canvas[:, h:] = 0
        canvas[:, :h, w:] = 0


def _interleaved(tensors: Tensor) -> Tensor:
    """[..., 3, H, W] in channels_last -> a view [..., H, W, 3] without gaps."""
    return tensors.movedim(-3, -1)


def _normalise(raw: Tensor, pixels: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Fill the upper left of pixels [..., H, W, 3] with scale * raw + shift, raw uint8 [..., h, w, 3].

    Rows of interleaved pixels are taken as vectors of 3 w numbers, with a scale and a shift [3 W] for each:
    broadcasting over the channels themselves would run in loops of three. On a CPU some rows go through both
    operations while they are in its cache.
    """
    raw_rows = raw.flatten(-2)  # [..., h, 3 w]
    height, length = raw_rows.shape[-2:]
    rows = pixels.flatten(-2)[..., :height, :length]
    scale, shift = scale[:length], shift[:length]
    step = _ROWS_IN_CACHE if raw.device.type == "cpu" else height
    for piece, raw_piece in zip(rows.split(step, -2), raw_rows.split(step, -2), strict=True):
        piece.copy_(raw_piece)
        torch.addcmul(shift, piece, scale, out=piece)


def collate_bytes(batch: Sequence[tuple[Tensor, dict]], multiple: int = 1) -> tuple:
    """Items (uint8 image, target) -> (ByteBatch, tuple of targets): the project's own, faster road.

    Images of floats, which a user's own transforms have normalised, go the published road to a NestedTensor.

    Args:
        batch: as a data loader gives it.
        multiple: round the canvas up to a multiple of so many pixels; the mask knows the padding.

    Raises:
        ValueError: images of bytes and of floats in one batch.
    """
    images, *rest = zip(*batch, strict=True)
    dtypes = {image.dtype for image in images}
    if len(dtypes) > 1:
        raise ValueError(f"images of several types in one batch: {', '.join(sorted(map(str, dtypes)))}")
    if torch.uint8 in dtypes:
        return ByteBatch(images, multiple), *rest
    return _padded_batch(images, multiple), *rest
