"""Transforms of an image together with its target, under the published names: `datasets.transforms as T`.

An image is a PIL image or a tensor [3, h, w]; all but ToTensor and ToByteTensor return the kind that they
were given. `ToByteTensor` as the first transform, as `make_coco_transforms` has it, makes the others work on
bytes, which is faster; without it a picture stays a PIL image until ToTensor. A target is None or a dict that
may hold
    boxes [N, 4] float32, xyxy in pixels,
    masks [N, h, w] bool or uint8, area [N] float32 in square pixels, labels [N], iscrowd [N],
    keypoints [N, K, 3] float32: x and y in pixels, visibility; (0, 0, 0) where there is none,
    size [2]: height, width of the image.
Nothing that the caller passed is edited. The random transforms draw from `random` and torch's generator.
All stand in this one file, as in the published code, which forks replace as a whole. `make_coco_transforms`
in datasets/coco.py says which are applied; a new one is added there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms as torchvision_transforms
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torch.nn import functional

from datasets.images import image_size
from util.box_ops import box_xyxy_to_cxcywh

ImageLike = Image.Image | Tensor
Target = dict[str, Any] | None
Pair = tuple[Any, Any]
Transform = Callable[[Any, Any], Pair]

# What a target holds once for each object, along the first axis.
PER_OBJECT = ("boxes", "labels", "masks", "area", "iscrowd", "keypoints")


def crop(image: ImageLike, target: Target, region: Sequence[int]) -> Pair:
    """Cut out `region` = (top, left, height, width).

    Boxes are clamped to the region and areas recomputed from them; keypoints outside become (0, 0, 0).
    Objects without extent inside are removed: judged by their boxes, or by masks where there are no boxes.
    """
    top, left, height, width = region
    cropped = F.crop(image, top, left, height, width)
    if target is None:
        return cropped, None
    target = {**target, "size": torch.tensor([height, width])}
    keep = None
    if "masks" in target:
        target["masks"] = target["masks"][:, top : top + height, left : left + width]
    if "boxes" in target:
        corners = target["boxes"].reshape(-1, 2, 2) - torch.tensor([left, top])  # [N, corner, x y]
        corners = corners.minimum(torch.tensor([width, height])).clamp(min=0)
        extent = corners[:, 1] - corners[:, 0]
        target["boxes"] = corners.reshape(-1, 4)
        target["area"] = extent.prod(1)
        keep = (extent > 0).all(1)
    elif "masks" in target:
        keep = target["masks"].flatten(1).any(1).bool()
    if "keypoints" in target:
        place, seen = target["keypoints"][..., :2] - torch.tensor([left, top]), target["keypoints"][..., 2:]
        inside = (place >= 0).all(-1) & (place[..., 0] <= width) & (place[..., 1] <= height)
        target["keypoints"] = torch.cat([place, seen], -1) * (inside[..., None] & (seen > 0))
    if keep is not None and not keep.all():
        target.update({name: target[name][keep] for name in PER_OBJECT if name in target})
    return cropped, target


def hflip(image: ImageLike, target: Target) -> Pair:
    """Mirror left and right. Keypoints keep their index: which are left-right pairs is not known here."""
    flipped = F.hflip(image)
    if target is None:
        return flipped, None
    width = image_size(image)[1]
    target = {**target}
    if "boxes" in target:
        left, top, right, bottom = target["boxes"].unbind(-1)
        target["boxes"] = torch.stack([width - right, top, width - left, bottom], -1)
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        x, y, seen = target["keypoints"].unbind(-1)
        target["keypoints"] = torch.stack([torch.where(seen > 0, width - x, x), y, seen], -1)
    return flipped, target


def resized_size(height: int, width: int, size: int | Sequence[int], max_size: int | None) -> tuple[int, int]:
    """(height, width) after `resize(size, max_size)` of a picture of height x width."""
    if not isinstance(size, int):
        return size[1], size[0]
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * size > max_size:
        size = max(1, round(max_size * short / long))
    if short == size:
        return height, width
    other = int(size * long / short)
    return (size, other) if height < width else (other, size)


def resize(image: ImageLike, target: Target, size: int | Sequence[int], max_size: int | None = None) -> Pair:
    """Scale to a new size, the image bilinearly with antialiasing, masks to their nearest pixel (bool).

    Args:
        image, target: see the module.
        size: of the shorter side, the other follows; or (width, height), whatever the shape becomes.
        max_size: limit of the longer side; where it would be exceeded, the shorter side is reduced.
    """
    old = image_size(image)
    height, width = new = resized_size(*old, size, max_size)
    if new == old:
        resized = image
    elif isinstance(image, Image.Image):
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
    else:
        # The batch axis goes before interleaved pixels, so that its stride tells the kernel of their layout:
        # it then takes them as they are, in less than half the time.
        batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # [1, 3, h, w]
        options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
        resized = functional.interpolate(batch, size=new, **options)[0]
    if target is None:
        return resized, None
    x, y = width / old[1], height / old[0]
    target = {**target, "size": torch.tensor([height, width])}
    if "boxes" in target:
        target["boxes"] = target["boxes"] * torch.tensor([x, y, x, y])
    if "area" in target:
        target["area"] = target["area"] * (x * y)
    if "masks" in target:
        rows, columns = map(_nearest, target["masks"].shape[1:], new)
        masks = target["masks"].bool().numpy()
        target["masks"] = torch.from_numpy(masks.take(columns, axis=2).take(rows, axis=1))
    if "keypoints" in target:
        target["keypoints"] = target["keypoints"] * torch.tensor([x, y, 1.0])
    return resized, target


def _nearest(old: int, new: int) -> np.ndarray:
    """Which of `old` places along an axis each of `new` ones takes, by torch's own rounding."""
    places = torch.arange(old, dtype=torch.float32)[None, None]
    return functional.interpolate(places, size=new, mode="nearest")[0, 0].long().numpy()


def pad(image: ImageLike, target: Target, padding: Sequence[int]) -> Pair:
    """Add `padding` = (columns, rows) of zeros at the right and at the bottom."""
    columns, rows = padding
    height, width = image_size(image)
    new = height + rows, width + columns
    padded = F.pad(image, [0, 0, columns, rows])
    if target is None:
        return padded, None
    target = {**target, "size": torch.tensor(new)}
    if "masks" in target:
        target["masks"] = functional.pad(target["masks"], (0, columns, 0, rows))
    return padded, target


class RandomCrop:
    """Crop to `size` = (height, width), or a square of that side, at a random place."""

    def __init__(self, size: int | Sequence[int]):
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return crop(img, target, _random_region(img, *self.size))


def _random_region(image: ImageLike, height: int, width: int) -> tuple[int, int, int, int]:
    """A random (top, left, height, width) inside the image."""
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
    """PIL image -> uint8 [3, h, w], channels_last; a tensor stays as it is."""

    def __call__(self, img: ImageLike, target: Target = None) -> Pair:
        return (F.pil_to_tensor(img) if isinstance(img, Image.Image) else img), target


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
    """Transforms one after the other."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = list(transforms)

    def __call__(self, image: ImageLike, target: Target = None) -> Pair:
        for transform in self.transforms:
            image, target = transform(image, target)
        return image, target

    def __repr__(self) -> str:
        return f"Compose({', '.join(type(transform).__name__ for transform in self.transforms)})"
