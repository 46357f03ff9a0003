"""Geometry of an image together with its target: crop, mirror, resize, pad.

An image is a PIL image, a tensor [3, h, w] or a LazyImage of one: uint8 on the project's own, faster road. A
target is None or a dict that may hold
    boxes [N, 4] float32, xyxy in pixels,
    masks [N, h, w] bool or uint8 (or LazyMasks), area [N] float32 in square pixels, labels [N], iscrowd [N],
    keypoints [N, K, 3] float32: x and y in pixels, visibility; (0, 0, 0) where there is none,
    size [2]: height, width of the image.
Every function returns a new image and a new target; nothing that the caller passed is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from datasets.images import LazyImage
from datasets.masks import LazyMasks

ImageLike = Image.Image | Tensor | LazyImage
Target = dict[str, Any] | None
Pair = tuple[Any, Any]

# What a target holds once for each object, along the first axis.
_PER_OBJECT = ("boxes", "labels", "masks", "area", "iscrowd", "keypoints")


def image_size(image: ImageLike) -> tuple[int, int]:
    """(height, width) of a PIL image, a LazyImage or a tensor [..., h, w]."""
    if isinstance(image, LazyImage):
        return image.size
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    return image.height, image.width


def _changed(image: ImageLike, change: Callable[[Any], Any], size: tuple[int, int]) -> Any:
    """`change(image)`, which has this size (h, w): now, or when a LazyImage is asked for its pixels."""
    return image.then(change, size) if isinstance(image, LazyImage) else change(image)


def crop(image: ImageLike, target: Target, region: Sequence[int]) -> Pair:
    """Cut out `region` = (top, left, height, width).

    Boxes are clamped to the region and areas recomputed from them; keypoints outside become (0, 0, 0).
    Objects without extent inside are removed: judged by their boxes, or by masks where there are no boxes.
    """
    top, left, height, width = region
    cropped = _changed(image, lambda pixels: F.crop(pixels, top, left, height, width), (height, width))
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
        keep = _plain(target["masks"]).flatten(1).any(1).bool()
    if "keypoints" in target:
        target["keypoints"] = _move_keypoints(target["keypoints"], left, top, width, height)
    if keep is not None and not keep.all():
        target.update({name: target[name][keep] for name in _PER_OBJECT if name in target})
    return cropped, target


def _move_keypoints(keypoints: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    place = keypoints[..., :2] - torch.tensor([left, top])
    inside = (place >= 0).all(-1) & (place[..., 0] <= width) & (place[..., 1] <= height)
    seen = inside & (keypoints[..., 2] > 0)
    return torch.cat([place, keypoints[..., 2:]], -1) * seen[..., None]


def hflip(image: ImageLike, target: Target) -> Pair:
    """Mirror left and right. Keypoints keep their index: which are left-right pairs is not known here."""
    flipped = _changed(image, F.hflip, image_size(image))
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
    """(height, width) behind `resize`; the size of a picture goes first, then resize's own parameters."""
    if not isinstance(size, int):
        return size[1], size[0]
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * size > max_size:
        size = round(max_size * short / long)
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
    resized = _changed(image, lambda pixels: _resize_image(pixels, new), new)
    if target is None:
        return resized, None
    x, y = width / old[1], height / old[0]
    target = {**target, "size": torch.tensor([height, width])}
    if "boxes" in target:
        target["boxes"] = target["boxes"] * torch.tensor([x, y, x, y])
    if "area" in target:
        target["area"] = target["area"] * (x * y)
    if "masks" in target:
        target["masks"] = _resize_masks(target["masks"], new)
    if "keypoints" in target:
        target["keypoints"] = target["keypoints"] * torch.tensor([x, y, 1.0])
    return resized, target


def _resize_image(image: Image.Image | Tensor, size: tuple[int, int]) -> Image.Image | Tensor:
    if image_size(image) == size:
        return image
    if isinstance(image, Image.Image):
        return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    # The batch axis goes before interleaved pixels, so that its stride tells the kernel of their layout:
    # it then takes them as they are, in less than half the time.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # [1, 3, h, w]
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return torch.nn.functional.interpolate(batch, size=size, **options)[0]


def _plain(masks: Tensor | LazyMasks) -> Tensor:
    return masks.tensor() if isinstance(masks, LazyMasks) else masks


def _resize_masks(masks: Tensor | LazyMasks, size: tuple[int, int]) -> Tensor | LazyMasks:
    if isinstance(masks, LazyMasks):
        return masks.resize(size)
    return masks.bool() if masks.shape[1:] == size else LazyMasks(masks).resize(size).tensor()


def pad(image: ImageLike, target: Target, padding: Sequence[int]) -> Pair:
    """Add `padding` = (columns, rows) of zeros at the right and at the bottom."""
    columns, rows = padding
    height, width = image_size(image)
    new = height + rows, width + columns
    padded = _changed(image, lambda pixels: F.pad(pixels, [0, 0, columns, rows]), new)
    if target is None:
        return padded, None
    target = {**target, "size": torch.tensor(new)}
    if "masks" in target:
        target["masks"] = torch.nn.functional.pad(_plain(target["masks"]), (0, columns, 0, rows))
    return padded, target
