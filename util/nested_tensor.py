"""Batches of images of different sizes: padded to a common canvas, with a mask of the padding.

Shapes: B images, C channels, H W of the canvas (the largest height and the largest width).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class NestedTensor:
    """A batch and the mask of its padding.

    Attributes:
        tensors: [B, C, H, W], zero where padded.
        mask: bool [B, H, W], True where padded; None where nobody needs it.
    """

    def __init__(self, tensors: Tensor, mask: Tensor | None):
        self.tensors = tensors
        self.mask = mask

    @torch.jit.unused
    def to(self, device: Any, non_blocking: bool = False) -> "NestedTensor":
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking), mask)

    def decompose(self):
        """The pair (tensors, mask)."""
        return self.tensors, self.mask

    @torch.jit.unused
    def pin_memory(self) -> "NestedTensor":
        """The same batch in page-locked memory (the data loader calls this under `pin_memory`)."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return NestedTensor(self.tensors.pin_memory(), mask)

    def __repr__(self):
        return str(self.tensors)


def nested_tensor_from_tensor_list(tensor_list: list[Tensor]) -> NestedTensor:
    """Images [C, h, w] of one dtype and device, or one tensor [B, C, H, W], as a padded batch.

    The batch is channels_last, the layout in which convolutions are fastest; the model keeps it to its last
    feature map.

    Raises:
        ValueError: the images are not all [C, h, w].
    """
    for image in tensor_list:
        if image.ndim != 3:
            raise ValueError(f"images must be [C, h, w], and one has the shape {image.shape}")
    if torch.jit.is_tracing():
        return _onnx_nested_tensor_from_tensor_list(tensor_list)
    return padded_batch(tensor_list, _max_by_axis([list(image.shape) for image in tensor_list]))


def _max_by_axis(the_list: list[list[int]]) -> list[int]:
    """Sizes of several tensors, axis by axis -> the largest of each."""
    largest = the_list[0]
    for sizes in the_list[1:]:
        largest = [max(a, b) for a, b in zip(largest, sizes)]  # noqa: B905 (TorchScript has no strict)
    return largest


def padded_batch(images: list[Tensor], size: list[int]) -> NestedTensor:
    """Images [c, h, w] on canvases of one size [C, H, W], from the upper left on."""
    channels, height, width = size
    first = images[0]
    tensors = torch.zeros((len(images), channels, height, width), dtype=first.dtype, device=first.device)
    tensors = tensors.contiguous(memory_format=torch.channels_last)
    mask = torch.ones((len(images), height, width), dtype=torch.bool, device=first.device)
    for i, image in enumerate(images):
        c, h, w = image.shape
        tensors[i, :c, :h, :w].copy_(image)
        mask[i, :h, :w] = False
    return NestedTensor(tensors, mask)


@torch.jit.unused
def _onnx_nested_tensor_from_tensor_list(tensor_list: list[Tensor]) -> NestedTensor:
    """The same by padding alone: tracing cannot record a copy into a slice of changing size."""
    largest = [
        torch.stack([torch.as_tensor(image.shape[axis]) for image in tensor_list]).max() for axis in range(3)
    ]
    tensors, masks = [], []
    for image in tensor_list:
        extra_channels, below, right = (side - own for side, own in zip(largest, image.shape, strict=True))
        tensors.append(pad(image, (0, right, 0, below, 0, extra_channels)))  # type: ignore[arg-type]
        inside = torch.zeros_like(image[0], dtype=torch.int)
        masks.append(pad(inside, (0, right, 0, below), value=1).to(torch.bool))  # type: ignore[arg-type]
    return NestedTensor(torch.stack(tensors), torch.stack(masks))


def collate_fn(batch: Sequence[tuple[Tensor, dict]]) -> tuple:
    """Items (image, target) -> (NestedTensor, tuple of targets), as the published loader gives them."""
    images, *rest = zip(*batch, strict=True)
    return nested_tensor_from_tensor_list(list(images)), *rest


class ByteBatch:
    """Images as uint8 on their way to the device: a quarter of the bytes of a normalised batch.

    `to(device)` moves them and normalises there; what comes out equals the published order (normalise, then
    pad with zeros) but for rounding.

    Args:
        images: uint8 [3, h, w] each.
        multiple: round the canvas up to a multiple of this many pixels.

    Attributes:
        tensors: the canvases, uint8 [B, 3, H, W] in channels_last, zero where padded.
        sizes: (h, w) of each image within its canvas.
    """

    def __init__(self, images: Sequence[Tensor], multiple: int = 1):
        self.sizes = [(image.shape[1], image.shape[2]) for image in images]
        size = _canvas(self.sizes, multiple)
        self.tensors = torch.zeros((len(images), 3, *size), dtype=torch.uint8)
        self.tensors = self.tensors.contiguous(memory_format=torch.channels_last)
        for canvas, image, (h, w) in zip(self.tensors, images, self.sizes, strict=True):
            canvas[:, :h, :w] = image

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the canvas."""
        return self.tensors.shape[2], self.tensors.shape[3]

    def pin_memory(self) -> "ByteBatch":
        """The same images in page-locked memory (the data loader calls this under `pin_memory`)."""
        pinned = copy.copy(self)
        pinned.tensors = self.tensors.pin_memory()
        return pinned

    def to(self, device: Any, non_blocking: bool = False) -> NestedTensor:
        """Move, normalise with ImageNet's mean and deviation, and pad with zeros -> NestedTensor."""
        pixels = self.tensors.to(device, non_blocking=non_blocking).float()
        height, width = self.size
        # Rows of 3 W interleaved values, with scale and shift repeated W times: broadcasting over 3 channels
        # would run a CPU's inner loop over 3 values.
        std = 255 * torch.tensor(IMAGENET_STD)
        shift = (-255 * torch.tensor(IMAGENET_MEAN) / std).repeat(width).to(device, non_blocking=non_blocking)
        scale = (1 / std).repeat(width).to(device, non_blocking=non_blocking)
        rows = pixels.permute(0, 2, 3, 1).flatten(2)  # [B, H, 3 W], the same memory
        torch.addcmul(shift, rows, scale, out=rows)
        mask = torch.zeros((len(self.sizes), height, width), dtype=torch.bool, device=device)
        for i, (h, w) in enumerate(self.sizes):
            if (h, w) != self.size:
                pixels[i, :, h:] = 0
                pixels[i, :, :h, w:] = 0
                mask[i, h:] = True
                mask[i, :h, w:] = True
        return NestedTensor(pixels, mask)


def _canvas(sizes: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """(height, width) that hold all sizes, rounded up to a multiple of this many pixels."""
    height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*sizes, strict=True))
    return height, width


def collate_bytes(batch: Sequence[tuple[Tensor, dict]], multiple: int = 1) -> tuple:
    """Items (uint8 image, target) -> (ByteBatch, tuple of targets): what the project's own loaders give.

    Images of floats, which user-defined transforms have normalised, become a NestedTensor.

    Args:
        batch: as a data loader gives it.
        multiple: round the canvas up to a multiple of this many pixels; the mask covers the padding.

    Raises:
        ValueError: images of bytes and of floats in one batch.
    """
    images, *rest = zip(*batch, strict=True)
    dtypes = {image.dtype for image in images}
    if len(dtypes) > 1:
        raise ValueError(f"images of several types in one batch: {', '.join(sorted(map(str, dtypes)))}")
    if torch.uint8 in dtypes:
        return ByteBatch(images, multiple), *rest
    size = _canvas([(image.shape[1], image.shape[2]) for image in images], multiple)
    return padded_batch(list(images), [max(image.shape[0] for image in images), *size]), *rest
