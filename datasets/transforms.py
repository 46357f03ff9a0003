"""Transforms of an image together with its target, under the published names: `datasets.transforms as T`.

What an image and a target may be, and the functions `crop`, `hflip`, `resize` and `pad`, are described in
`datasets.geometry`. Transforms are called with (image, target), where the target may be None, and return
new ones. The random ones draw from `random` and from torch's generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms as torchvision_transforms
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from datasets.geometry import ImageLike, Pair, Target, crop, hflip, image_size, pad, resize
from datasets.images import pil_to_tensor
from util.box_ops import box_xyxy_to_cxcywh

__all__ = [
    "CenterCrop",
    "Compose",
    "Normalize",
    "NormalizeBoxes",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomPad",
    "RandomResize",
    "RandomSelect",
    "RandomSizeCrop",
    "ToByteTensor",
    "ToTensor",
    "crop",
    "hflip",
    "pad",
    "resize",
]

Transform = Callable[[Any, Any], Pair]


class RandomCrop:
    """Crop to `size` = (height, width), or a square of that side, at a random place."""

    def __init__(self, size: int | Sequence[int]):
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return crop(img, target, _random_region(img, *self.size))


def _random_region(image: ImageLike, height: int, width: int) -> tuple[int, int, int, int]:
    available = image_size(image)
    free_rows, free_columns = available[0] - height, available[1] - width
    if free_rows < 0 or free_columns < 0:
        raise ValueError(f"a crop of {height} x {width} does not fit into {available[0]} x {available[1]}")
    top = int(torch.randint(free_rows + 1, ()))
    left = int(torch.randint(free_columns + 1, ()))
    return top, left, height, width


class RandomSizeCrop:
    """Crop to a random size at a random place: each side from `min_size` to `max_size`, within the image."""

    def __init__(self, min_size: int, max_size: int):
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        height, width = image_size(img)
        new_width = self._side(width)
        new_height = self._side(height)
        return crop(img, target, _random_region(img, new_height, new_width))

    def _side(self, available: int) -> int:
        return random.randint(min(self.min_size, available), min(self.max_size, available))


class CenterCrop:
    """Crop to `size` = (height, width) in the middle."""

    def __init__(self, size: Sequence[int]):
        self.size = size

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        height, width = image_size(img)
        new_height, new_width = self.size
        top, left = round((height - new_height) / 2), round((width - new_width) / 2)
        return crop(img, target, (top, left, new_height, new_width))


class RandomHorizontalFlip:
    """Mirror with probability `p`."""

    def __init__(self, p: float = 0.5):
        self.p = p

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return hflip(img, target) if random.random() < self.p else (img, target)


class RandomResize:
    """Resize to one of `sizes`, each with equal chance; see `resize`."""

    def __init__(self, sizes: Sequence[Any], max_size: int | None = None):
        self.sizes = list(sizes)
        self.max_size = max_size

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return resize(img, target, random.choice(self.sizes), self.max_size)


class RandomPad:
    """Pad right and bottom by 0 to `max_pad` pixels each."""

    def __init__(self, max_pad: int):
        self.max_pad = max_pad

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        columns, rows = random.randint(0, self.max_pad), random.randint(0, self.max_pad)
        return pad(img, target, (columns, rows))


class RandomSelect:
    """`transforms1` with probability `p`, otherwise `transforms2`."""

    def __init__(self, transforms1: Transform, transforms2: Transform, p: float = 0.5):
        self.transforms1 = transforms1
        self.transforms2 = transforms2
        self.p = p

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return (self.transforms1 if random.random() < self.p else self.transforms2)(img, target)


class ToTensor:
    """PIL or uint8 image -> float32 [3, h, w] in 0…1; a float tensor stays as it is."""

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        if isinstance(img, Tensor):
            return (img / 255 if img.dtype == torch.uint8 else img), target
        return F.to_tensor(img), target


class ToByteTensor:
    """PIL image -> uint8 [3, h, w]; a tensor, which a LazyImage will be, stays as it is."""

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return (pil_to_tensor(img) if isinstance(img, Image.Image) else img), target


class RandomErasing:
    """torchvision's RandomErasing, with its parameters, on the image alone."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.eraser = torchvision_transforms.RandomErasing(*args, **kwargs)

    def __call__(self, img: Tensor, target: Target = None) -> Pair:
        return self.eraser(img), target


class NormalizeBoxes:
    """Boxes xyxy in pixels -> cxcywh in units of the image's width and height; the image stays."""

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        if target is None or "boxes" not in target:
            return img, target
        height, width = image_size(img)
        boxes = box_xyxy_to_cxcywh(target["boxes"]) / torch.tensor([width, height, width, height])
        return img, {**target, "boxes": boxes.float()}


class Normalize:
    """(image − mean) / std for each channel, and NormalizeBoxes.

    Takes float images in 0…1, and uint8 ones in 0…255, which it scales in the same pass.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean = mean
        self.std = std

    def __call__(self, image: Tensor, target: Target = None) -> Pair:
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32)[..., None, None]  # [3, 1, 1]
        if image.dtype == torch.uint8:
            pixels = image.to(torch.float32, memory_format=torch.contiguous_format)  # a copy: edited in place
            return NormalizeBoxes()(pixels.mul_(1 / (255 * std)).sub_(mean / std), target)
        return NormalizeBoxes()((image - mean) / std, target)


class Compose:
    """Transforms one behind the other."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = list(transforms)

    def __call__(self, image: ImageLike, target: Target = None) -> Pair:
        for transform in self.transforms:
            image, target = transform(image, target)
        return image, target

    def __repr__(self) -> str:
        return f"Compose({', '.join(type(transform).__name__ for transform in self.transforms)})"


# Those that leave the pixels of an image alone, or change them by datasets.geometry.
_WITHOUT_PIXELS = (
    *(RandomCrop, RandomSizeCrop, CenterCrop, RandomHorizontalFlip, RandomResize, RandomPad),
    *(ToByteTensor, NormalizeBoxes),
)
_WITH_PIXELS = ToTensor, RandomErasing, Normalize


def takes_lazy_images(transform: Transform) -> bool:
    """Whether a transform needs no pixels when it is called, so that a LazyImage will do."""
    return _consists_of(transform, _WITHOUT_PIXELS)


def takes_tensors(transform: Transform) -> bool:
    """Whether a transform is one of this module, or made of them: one of a user's own wants PIL images."""
    return _consists_of(transform, (*_WITHOUT_PIXELS, *_WITH_PIXELS))


def _consists_of(transform: Transform, types: Sequence[type]) -> bool:
    if type(transform) is Compose:
        return all(_consists_of(part, types) for part in transform.transforms)
    if type(transform) is RandomSelect:
        return all(_consists_of(part, types) for part in (transform.transforms1, transform.transforms2))
    return type(transform) in types
