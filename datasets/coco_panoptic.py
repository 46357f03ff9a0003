"""COCO panoptic data: images with segments that share out the pixels, things and stuff alike."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import datasets.transforms as T
from datasets import coco
from datasets.annotations import is_crowd, load_annotations
from datasets.images import find_picture, image_size, picture_name, read_image
from datasets.layouts import read_json
from datasets.panoptic_annotations import PanopticAnnotations, find_panoptic_files
from datasets.panoptic_png import read_ids, run_starts
from datasets.sampler import ItemSeeds
from util.box_ops import masks_to_boxes
from util.errors import UserError


class CocoPanoptic(Dataset):
    """Pairs (image, target), one for each image of a panoptic file, in the order of image ids.

    After the transforms a target is what ConvertCocoPolysToMask makes, of segments instead of instances:
        boxes [N, 4] float32: xyxy in pixels, from the first to the last pixel of the segment, none added,
        labels [N] int64: category ids,
        masks [N, h, w] uint8, 0 or 1, or bool (only with return_masks),
        image_id [1], area [N] float32, iscrowd [N] int64, orig_size and size [2]: height, width.
    Crowds are objects like others, as published. Where an epoch has been set, the random transforms of an
    item depend on seed, epoch and index alone; otherwise each call draws anew.

    Annotations come packed from the file until somebody asks for `coco`, and from that object ever after, so
    that what is changed there counts.

    Args:
        img_folder: folder of the pictures. A picture bears the name that the file lists, or that name's
            stem with .jpg or .png.
        ann_folder: folder of the panoptic PNGs.
        ann_file: COCO panoptic JSON.
        transforms: called with (image, target); None for the image and target as they are.
        return_masks: give masks too.
        seed: of the random transforms.
        white_level: of pictures of more than 8 bits, see datasets.images.read_image.

    Attributes:
        ids: image ids, ascending.
        annotations: the packed annotation file.
        is_thing: category id -> whether it is one of things.

    Raises:
        UserError: the annotation file is missing or faulty; on access: an image or its PNG is missing or
            damaged, their sizes differ, or the PNG and the annotation file do not name the same segments.
    """

    def __init__(
        self,
        img_folder: str | Path,
        ann_folder: str | Path,
        ann_file: str | Path,
        transforms: T.Transform | None = None,
        return_masks: bool = True,
        *,
        seed: int = 0,
        white_level: float | None = None,
    ):
        self.img_folder, self.ann_folder, self.ann_file = Path(img_folder), Path(ann_folder), Path(ann_file)
        self.annotations: PanopticAnnotations = load_annotations(ann_file, PanopticAnnotations)
        self.ids: list[int] = self.annotations.image_ids.tolist()
        self.is_thing = self.annotations.is_thing
        self.transforms = transforms
        self.return_masks = return_masks
        self._seeds = ItemSeeds(seed)
        self._white_level = white_level
        self._coco: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, idx: int) -> tuple[Any, dict[str, Any]]:
        idx = range(len(self))[idx]  # from the end where negative; IndexError beyond
        note, frame = f" (image id {self.ids[idx]})", self.stated_size(idx)
        image = read_image(self.image_path(idx), note, stated=frame, white_level=self._white_level)
        height, width = image_size(image)
        annotations = self.annotations.annotations if self._coco is None else self._coco["annotations"]
        annotation = annotations[idx]
        segments = annotation["segments_info"]
        png = self.ann_folder / annotation["file_name"]
        ids = read_ids(png)
        if ids.shape != (height, width):
            found, wanted = f"{ids.shape[0]} x {ids.shape[1]}", f"{height} x {width}"
            raise UserError(f"{png} has {found} pixels, but image {self.ids[idx]} has {wanted}")
        try:
            masks = segment_masks(ids, [segment["id"] for segment in segments])
        except ValueError as error:
            raise UserError(f"{png} does not fit {self.ann_file}: {error}") from error
        target: dict[str, Any] = {
            "boxes": masks_to_boxes(masks),
            "labels": torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64),
            "image_id": torch.tensor([self.ids[idx]]),
            "area": torch.tensor([segment["area"] for segment in segments], dtype=torch.float32),
            "iscrowd": torch.tensor([int(is_crowd(segment)) for segment in segments], dtype=torch.int64),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        if self.return_masks:
            target["masks"] = masks.byte()
        if self.transforms is not None:
            with self._seeds.of_item(idx):
                image, target = self.transforms(image, target)
        return image, target

    @property
    def coco(self) -> dict[str, Any]:
        """The annotation file's JSON object, this data set's own; read when first asked for.

        Images and annotations are sorted by image id: items take theirs by index.
        """
        if self._coco is None:
            content = read_json(self.ann_file)
            images = sorted(content["images"], key=lambda image: image["id"])
            annotations = sorted(content["annotations"], key=lambda annotation: annotation["image_id"])
            self._coco = {**content, "images": images, "annotations": annotations}
        return self._coco

    @coco.setter
    def coco(self, coco: dict[str, Any]) -> None:
        self._coco = coco

    def _image(self, idx: int) -> dict[str, Any]:
        """What the file says of an image."""
        return self.annotations.images[idx] if self._coco is None else self._coco["images"][idx]

    def set_epoch(self, epoch: int | None) -> None:
        """Fix the random transforms by (seed, epoch, index), in running data workers too; None: draw anew."""
        self._seeds.set_epoch(epoch)

    def image_path(self, idx: int) -> Path:
        """The file of the picture at `idx`; the one listed, where none of its names exists."""
        listed = picture_name(self._image(idx))
        stem = os.path.splitext(listed)[0]
        found = (find_picture(self.img_folder, name) for name in (listed, stem + ".jpg", stem + ".png"))
        return next(filter(None, found), self.img_folder / listed)

    def stated_size(self, idx: int) -> tuple[Any, Any]:
        """Width and height of the picture at `idx`, as its entry states them; None where it does not."""
        image = self._image(idx)
        return image.get("width"), image.get("height")

    def get_height_and_width(self, idx: int) -> tuple[int, int]:
        """Size of an image in pixels, as the file says; KeyError where it does not."""
        image = self._image(idx)
        return image["height"], image["width"]


def segment_masks(ids: np.ndarray, segment_ids: list[int]) -> Tensor:
    """Masks bool [N, h, w] of N segments in a map of ids int32 [h, w]; 0 is no segment unless it is listed.

    Raises:
        ValueError: a segment has no pixel, or a pixel's segment is unknown.
    """
    present = set(np.unique(ids.ravel()[run_starts(ids)]).tolist())
    for unknown in sorted(present - {0, *segment_ids})[:1]:
        raise ValueError(f"segment {unknown} is in the PNG, and not in the JSON")
    for absent in [segment for segment in segment_ids if segment not in present][:1]:
        raise ValueError(f"segment {absent} is in the JSON, and not in the PNG")
    return torch.from_numpy(ids) == torch.tensor(segment_ids, dtype=torch.int32)[:, None, None]


def build(image_set: str, args: Namespace) -> CocoPanoptic:
    """The data set below `args.coco_path` and `args.coco_panoptic_path`; see `datasets.build_dataset`."""
    files = find_panoptic_files(args.coco_path, args.coco_panoptic_path, image_set)
    if hasattr(coco, "transforms_of"):
        transforms = coco.transforms_of(image_set, args)
    else:  # a fork's own coco.py, made for the published code
        transforms = coco.make_coco_transforms(image_set)
    settings = {"seed": args.seed, "white_level": args.white_level}
    return CocoPanoptic(*files, transforms, args.masks, **settings)
