"""COCO pictures with their objects, through PIL and floating point.

The random transforms draw in this project's order, so that both give the same pictures from the same seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from torchvision.ops import box_convert

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = tuple(range(480, 801, 32))


class CocoTraining(Dataset):
    """(normalised image [3, h, w], target) of the training split below `args.coco_path`."""

    def __init__(self, args: argparse.Namespace):
        root = Path(args.coco_path)
        self.folder = root / "train2017"
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(root / "annotations" / "instances_train2017.json"))
        self.ids = sorted(self.coco.imgs)
        self.masks = args.masks
        self.scales = tuple(args.scales or SCALES)
        self.longest = args.max_size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image_id = self.ids[index]
        path = self.folder / self.coco.loadImgs(image_id)[0]["file_name"]
        image = Image.open(path).convert("RGB")
        annotations = self.coco.loadAnns(self.coco.getAnnIds(imgIds=image_id))
        target = self._target(annotations, image.height, image.width)
        image, target = self._augment(image, target)
        pixels = F.normalize(F.to_tensor(image), MEAN, STD)
        width, height = image.size
        boxes = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
        return pixels, {**target, "boxes": boxes, "image_id": torch.tensor([image_id])}

    def _target(self, annotations: list[dict[str, Any]], height: int, width: int) -> dict[str, Tensor]:
        objects = [a for a in annotations if not a.get("iscrowd", 0)]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes = box_convert(boxes, "xywh", "xyxy")
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        target = {
            "boxes": boxes,
            "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
            "area": torch.tensor([a["area"] for a in objects], dtype=torch.float32),
            "iscrowd": torch.zeros(len(objects), dtype=torch.int64),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        if self.masks:
            decoded = [_mask(a["segmentation"], height, width) for a in objects]
            target["masks"] = (
                torch.stack(decoded) if decoded else torch.zeros((0, height, width), dtype=torch.uint8)
            )
        return _chosen(target, (boxes[:, 2:] > boxes[:, :2]).all(1))

    def _augment(
        self, image: Image.Image, target: dict[str, Tensor]
    ) -> tuple[Image.Image, dict[str, Tensor]]:
        """Mirror; then resize, or resize, crop and resize (FACTS of the published training)."""
        if random.random() < 0.5:
            image, target = mirror(image, target)
        if random.random() >= 0.5:
            ratio = max(self.scales) / max(SCALES)
            image, target = resize(image, target, random.choice([round(s * ratio) for s in (400, 500, 600)]))
            least, most = round(384 * ratio), round(600 * ratio)
            width = random.randint(min(least, image.width), min(most, image.width))
            height = random.randint(min(least, image.height), min(most, image.height))
            top = int(torch.randint(image.height - height + 1, ()))
            left = int(torch.randint(image.width - width + 1, ()))
            image, target = crop(image, target, top, left, height, width)
        return resize(image, target, random.choice(self.scales), self.longest)


def _mask(segmentation: Any, height: int, width: int) -> Tensor:
    parts: np.ndarray = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))
    return torch.from_numpy(parts.reshape(height, width, -1)).any(2).to(torch.uint8)


def _chosen(target: dict[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    per_object = ("boxes", "labels", "area", "iscrowd", "masks")
    return {name: value[keep] if name in per_object else value for name, value in target.items()}


def mirror(image: Image.Image, target: dict[str, Tensor]) -> tuple[Image.Image, dict[str, Tensor]]:
    """Left to right."""
    left, top, right, bottom = target["boxes"].unbind(1)
    target = {**target, "boxes": torch.stack([image.width - right, top, image.width - left, bottom], 1)}
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return F.hflip(image), target


def crop(
    image: Image.Image, target: dict[str, Tensor], top: int, left: int, height: int, width: int
) -> tuple[Image.Image, dict[str, Tensor]]:
    """Cut out; objects of which nothing is left are dropped."""
    boxes = target["boxes"] - torch.tensor([left, top, left, top])
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    sides = boxes[:, 2:] - boxes[:, :2]
    target = {**target, "boxes": boxes, "area": sides.prod(1), "size": torch.tensor([height, width])}
    if "masks" in target:
        target["masks"] = target["masks"][:, top : top + height, left : left + width]
    return F.crop(image, top, left, height, width), _chosen(target, (sides > 0).all(1))


def resize(
    image: Image.Image, target: dict[str, Tensor], short: int, longest: int | None = None
) -> tuple[Image.Image, dict[str, Tensor]]:
    """Bring the shorter side to `short`, or the longer one to `longest` if it would be longer."""
    low, high = min(image.size), max(image.size)
    if longest is not None and high / low * short > longest:
        short = round(longest * low / high)
    if low == short:
        height, width = image.height, image.width
    elif image.width > image.height:
        height, width = short, int(short * image.width / image.height)
    else:
        height, width = int(short * image.height / image.width), short
    x, y = width / image.width, height / image.height
    target = {
        **target,
        "boxes": target["boxes"] * torch.tensor([x, y, x, y]),
        "area": target["area"] * (x * y),
        "size": torch.tensor([height, width]),
    }
    if "masks" in target:
        target["masks"] = interpolate(target["masks"][:, None].float(), size=(height, width))[:, 0] > 0.5
    return F.resize(image, [height, width]), target


def collate(items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[tuple[Tensor, Tensor], list[dict]]:
    """Items -> ((padded batch, mask), targets); each image is copied once, into a batch of zeros."""
    images = [image for image, _ in items]
    height, width = max(image.shape[1] for image in images), max(image.shape[2] for image in images)
    pixels = torch.zeros((len(images), 3, height, width))
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for canvas, padding, image in zip(pixels, mask, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]].copy_(image)
        padding[: image.shape[1], : image.shape[2]] = False
    return (pixels, mask), [target for _, target in items]
