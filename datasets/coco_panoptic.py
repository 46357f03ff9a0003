"""COCO panoptic data: images with segments that share out the pixels, things and stuff alike."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import datasets.transforms as T
from datasets.augmented import AugmentedImages, Item
from datasets.coco import make_coco_transforms
from datasets.geometry import image_size
from datasets.images import LazyImage
from datasets.masks import LazySegments
from datasets.panoptic_annotations import PanopticAnnotations, Segments, load_panoptic_annotations
from datasets.panoptic_png import read_ids, run_starts
from util.errors import UserError


class CocoPanoptic(AugmentedImages):
    """Pairs (image, target), one for each image of a panoptic file, in the order of image ids.

    Behind the transforms a target is what ConvertCocoPolysToMask makes, of segments instead of instances:
        boxes [N, 4] float32: xyxy in pixels, from the first to the last pixel of the segment, none added,
        labels [N] int64: category ids,
        masks [N, h, w] uint8, 0 or 1, or bool (only with return_masks),
        image_id [1], area [N] float32, iscrowd [N] int64, orig_size and size [2]: height, width.
    Crowds are objects like others, as published. Where an epoch has been set, the random transforms of an
    item depend on seed, epoch and index alone; otherwise each call draws anew.

    Args:
        img_folder: folder of the pictures. A picture bears the name that the file lists, or that name's
            stem with .jpg or .png.
        ann_folder: folder of the panoptic PNGs.
        ann_file: COCO panoptic JSON.
        transforms: called with (image, target); None for the image and target as they are.
        return_masks: give masks too.
        seed: of the random transforms.
        as_tensors: read pictures as uint8 tensors where all transforms are this project's; faster. A user's
            own get PIL images.

    Attributes:
        ids: image ids, ascending.
        annotations: the packed annotation file.
        is_thing: category id -> whether it is one of things.
        seed: may be changed at any time before data workers start.

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
        as_tensors: bool = False,
    ):
        self.img_folder, self.ann_folder, self.ann_file = Path(img_folder), Path(ann_folder), Path(ann_file)
        self.annotations: PanopticAnnotations = load_panoptic_annotations(ann_file)
        super().__init__(self.annotations.image_ids.tolist(), seed, as_tensors)
        self.transforms = transforms
        self.return_masks = return_masks

    @property
    def is_thing(self) -> dict[int, bool]:
        """Category id -> whether it is one of things."""
        return self.annotations.is_thing

    @property
    def coco(self) -> dict[str, Any]:
        """The annotation file's JSON object, images sorted by id; read when it is first asked for."""
        return self.annotations.coco

    def get_height_and_width(self, idx: int) -> tuple[int, int]:
        """Size of an image in pixels, as the file says."""
        return int(self.annotations.heights[idx]), int(self.annotations.widths[idx])

    def begin(self, index: int) -> Callable[[], Item]:
        """See datasets.augmented."""
        image = self._image(index, self.transforms)
        target = self._target(index, image)
        return self._transformed(index, image, target, self.transforms)

    def image_path(self, index: int) -> Path:
        """The file of the picture at `index`; the one listed, where none of its names exists."""
        path = self.img_folder / self.annotations.file_name(index)
        names = (path, path.with_suffix(".jpg"), path.with_suffix(".png"))
        return next((name for name in names if name.exists()), path)

    def _target(self, index: int, image: Image.Image | LazyImage) -> dict[str, Any]:
        height, width = image_size(image)
        segments = self.annotations.segments_of(index)
        png = self.ann_folder / self.annotations.png_name(index)
        ids = read_ids(png)
        if ids.shape != (height, width):
            found, wanted = f"{ids.shape[0]} x {ids.shape[1]}", f"{height} x {width}"
            raise UserError(f"{png} has {found} pixels, but image {self.ids[index]} has {wanted}")
        try:
            places, extents = locate_segments(ids, segments)
        except ValueError as error:
            raise UserError(f"{png} does not fit {self.ann_file}: {error}") from error
        target: dict[str, Any] = {
            "boxes": (extents - torch.tensor([0, 0, 1, 1])).float(),
            "labels": torch.from_numpy(segments.category_ids.astype(np.int64)),
            "image_id": torch.tensor([self.ids[index]]),
            "area": torch.from_numpy(segments.areas.astype(np.float32)),
            "iscrowd": torch.from_numpy(segments.crowds.astype(np.int64)),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        if self.return_masks:
            masks = LazySegments(places, extents)
            target["masks"] = masks if isinstance(image, LazyImage) else masks.tensor().byte()
        return target


def locate_segments(ids: np.ndarray, segments: Segments) -> tuple[Tensor, Tensor]:
    """Where the segments of an image lie.

    Args:
        ids: int32 [h, w], the map of ids; 0 is no segment unless `segments` has it.
        segments: N of them.

    Returns:
        places [h, w], which segment each pixel belongs to, N for none; and the rectangles int64 [N, 4] that
        the segments fill: left, top, right, bottom, the last two one beyond the last pixel.

    Raises:
        ValueError: a segment has no pixel, or a pixel's segment is unknown.
    """
    count, width = len(segments.ids), ids.shape[1]
    starts = run_starts(ids)  # [R]
    owners = _owners(ids.ravel()[starts], segments.ids)  # [R]
    lengths = np.diff(starts, append=ids.size)
    top, left = np.divmod(starts, width)
    extents = np.zeros((count + 1, 4), dtype=np.int64)
    extents[:, :2] = ids.size  # beyond any pixel
    np.minimum.at(extents[:, 0], owners, left)
    np.minimum.at(extents[:, 1], owners, top)
    np.maximum.at(extents[:, 2], owners, left + lengths)
    np.maximum.at(extents[:, 3], owners, top + 1)
    places = np.repeat(owners.astype(np.uint8 if count < 256 else np.int32), lengths).reshape(ids.shape)
    return torch.from_numpy(places), torch.from_numpy(extents[:count])


def _owners(values: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """For ids [R] of a PNG their places among the segments' ids [N]; N where a 0 is no segment's."""
    count = len(segment_ids)
    place_of = {segment: place for place, segment in enumerate(segment_ids.tolist())}
    place_of.setdefault(0, count)
    found, where = np.unique(values, return_inverse=True)
    unknown = [value for value in found.tolist() if value not in place_of]
    if unknown:
        raise ValueError(f"segment {unknown[0]} is in the PNG, and not in the JSON")
    places = np.array([place_of[value] for value in found.tolist()])
    absent = np.setdiff1d(np.arange(count), places)
    if len(absent):
        raise ValueError(f"segment {segment_ids[absent[0]]} is in the JSON, and not in the PNG")
    return places[where]


def build(image_set: str, args: Namespace, normalize_images: bool = True) -> CocoPanoptic:
    """The data set below `args.coco_path` and `args.coco_panoptic_path`; see `datasets.build_dataset`."""
    files = find_panoptic_files(args.coco_path, args.coco_panoptic_path, image_set)
    transforms = make_coco_transforms(
        image_set, args.scales, args.eval_scale, args.max_size, normalize_images, args.crop
    )
    return CocoPanoptic(*files, transforms, args.masks, seed=args.seed, as_tensors=True)


def read_categories(image_set: str, args: Namespace) -> dict[int, str]:
    """Category id -> name, from the annotation file alone."""
    return _annotations(image_set, args).categories


def things(args: Namespace, image_sets: Iterable[str] = ("train", "val")) -> dict[int, bool]:
    """Category id -> whether it is one of things, by id, from the annotation files of some splits.

    Raises:
        UserError: a file is missing or faulty.
    """
    is_thing: dict[int, bool] = {}
    for image_set in image_sets:
        is_thing |= _annotations(image_set, args).is_thing
    return dict(sorted(is_thing.items()))


def _annotations(image_set: str, args: Namespace) -> PanopticAnnotations:
    files = find_panoptic_files(args.coco_path, args.coco_panoptic_path, image_set)
    return load_panoptic_annotations(files[2])


def find_panoptic_files(
    coco_path: str | Path | None, panoptic_path: str | Path | None, image_set: str
) -> tuple[Path, Path, Path]:
    """The image folder, the folder of PNGs and the panoptic file of an image set in COCO's layout.

    Raises:
        UserError: there is none; the message says what was looked for and what lies there.
    """
    (img_folder,) = _inside("--coco_path", coco_path, [f"{image_set}2017"])
    names = [f"panoptic_{image_set}2017", f"annotations/panoptic_{image_set}2017.json"]
    ann_folder, ann_file = _inside("--coco_panoptic_path", panoptic_path, names)
    return img_folder, ann_folder, ann_file


def _inside(flag: str, folder: str | Path | None, names: list[str]) -> list[Path]:
    """The paths `names` below `folder`, all of which exist."""
    if not folder:
        raise UserError(f"{flag} is missing: the folder that holds {' and '.join(names)}")
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{flag} {root}: there is no such folder")
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
        raise UserError(f"{flag} {root}: no {' and no '.join(missing)} there; the folder holds {there}")
    return [root / name for name in names]
