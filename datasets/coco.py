"""COCO detection data: images with boxes, and with masks where they are asked for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import datasets.transforms as T
from datasets.annotations import CocoAnnotations, load_annotations
from datasets.augmented import AugmentedImages, Item
from datasets.geometry import ImageLike, image_size
from datasets.images import LazyImage
from datasets.layouts import find_split
from datasets.masks import LazyMasks, decode, run_lengths
from util.errors import UserError
from util.nested_tensor import IMAGENET_MEAN, IMAGENET_STD

TRAIN_SCALES = tuple(range(480, 801, 32))


class CocoDetection(AugmentedImages):
    """Pairs (image, target), one for each image of an annotation file, in the order of image ids.

    The target is what ConvertCocoPolysToMask makes, behind the transforms. Where an epoch has been set,
    the random transforms of an item depend on seed, epoch and index alone; otherwise each call draws anew.

    Args:
        img_folder: folder of the pictures.
        ann_file: COCO instances JSON.
        transforms: called with (image, target); None for the image and target as they are.
        return_masks: give masks too.
        seed: of the random transforms.
        as_tensors: read pictures as uint8 tensors where `prepare` and all transforms are this project's;
            faster. A user's own get PIL images.

    Attributes:
        ids: image ids, ascending.
        annotations: the packed annotation file.
        seed: may be changed at any time before data workers start.

    Raises:
        UserError: the annotation file is missing or faulty; on access: an image is missing or damaged, or
            an object has no usable segmentation where masks are asked for.
    """

    def __init__(
        self,
        img_folder: str | Path,
        ann_file: str | Path,
        transforms: T.Transform | None,
        return_masks: bool,
        *,
        seed: int = 0,
        as_tensors: bool = False,
    ):
        self.root = Path(img_folder)
        self.annotations: CocoAnnotations = load_annotations(ann_file)
        super().__init__(self.annotations.image_ids.tolist(), seed, as_tensors)
        self.prepare = ConvertCocoPolysToMask(return_masks)
        self._transforms = transforms
        self._return_masks = return_masks

    @property
    def coco(self) -> Any:
        """The pycocotools object of the annotation file, built when it is first asked for."""
        return self.annotations.coco

    def begin(self, index: int) -> Callable[[], Item]:
        """See datasets.augmented."""
        image_id = self.ids[index]
        annotations = self.annotations.annotations_of(image_id, segmentation=self._return_masks)
        own = type(self.prepare) is ConvertCocoPolysToMask
        image = self._image(index, self._transforms if own else None)
        image, target = self.prepare(image, {"image_id": image_id, "annotations": annotations})
        return self._transformed(index, image, target, self._transforms)

    def image_path(self, index: int) -> Path:
        """The file of the picture at `index`."""
        return self.root / self.annotations.file_name(index)


class ConvertCocoPolysToMask:
    """COCO annotations of an image -> the target of DETR.

    Called with an image (PIL, tensor [3, h, w] or LazyImage) and a dict of `image_id` and `annotations`, it
    returns the image and a new dict of
        boxes [N, 4] float32: xyxy in pixels, within the image,
        labels [N] int64: category ids,
        masks [N, h, w] uint8: 0 or 1 (only with return_masks), LazyMasks of a LazyImage,
        keypoints [N, K, 3] float32: x, y, visibility (only where annotations have them),
        image_id [1], area [N] float32, iscrowd [N] int64, orig_size and size [2]: height, width.
    Crowds are left out, and so are boxes without width or height inside the image.

    Args:
        return_masks: give masks too.

    Raises:
        UserError: an object has no usable segmentation, with return_masks.
    """

    def __init__(self, return_masks: bool = False):
        self.return_masks = return_masks

    def __call__(self, image: ImageLike, target: dict[str, Any]) -> Item:
        height, width = image_size(image)
        objects = [a for a in target["annotations"] if a.get("iscrowd", 0) == 0]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        limit = torch.tensor([width, height])
        boxes = torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)], 1)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects = [a for a, kept in zip(objects, keep.tolist(), strict=True) if kept]
        result: dict[str, Any] = {
            "boxes": boxes[keep],
            "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
            "image_id": torch.tensor([int(target["image_id"])]),
            "area": torch.tensor([a["area"] for a in objects], dtype=torch.float32),
            "iscrowd": torch.tensor([a.get("iscrowd", 0) for a in objects], dtype=torch.int64),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        if self.return_masks:
            runs = _runs(objects, height, width)
            make = LazyMasks.from_runs if isinstance(image, LazyImage) else decode
            result["masks"] = make(runs, height, width)
        if any("keypoints" in a for a in target["annotations"]):
            result["keypoints"] = _keypoints(objects, target["annotations"])
        return image, result


def _runs(objects: Sequence[dict[str, Any]], height: int, width: int) -> list[dict[str, Any]]:
    for annotation in objects:
        if not annotation.get("segmentation"):
            raise UserError(
                f"annotation {annotation.get('id')} has no segmentation to make a mask of: "
                "add polygons, or train without --masks"
            )
    runs = []
    for annotation in objects:
        try:
            runs.append(run_lengths(annotation["segmentation"], height, width))
        except Exception as error:  # pycocotools raises plain Exception for what it does not understand
            raise UserError(
                f"the segmentation of annotation {annotation.get('id')} gives no mask of {height} x {width} "
                f"pixels ({error}): correct it, or train without --masks"
            ) from error
    return runs


def _keypoints(objects: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> Tensor:
    """[N, K, 3]; zeros, which means not labelled, for objects that have none while others do."""
    none = [0] * max(len(a.get("keypoints", ())) for a in annotations)
    rows = [a.get("keypoints", none) for a in objects]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(objects), len(none) // 3, 3)


def convert_coco_poly_to_mask(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """Masks uint8 [N, height, width], 0 or 1, of COCO segmentations: polygons or run lengths each."""
    return decode([run_lengths(one, height, width) for one in segmentations], height, width)


def make_coco_transforms(
    image_set: str,
    scales: Sequence[int] | None = None,
    eval_scale: int = 800,
    max_size: int = 1333,
    normalize_images: bool = True,
    crop: bool = True,
) -> T.Compose:
    """The transforms of training ('train') or evaluation ('val').

    Args:
        image_set: 'train' or 'val'.
        scales: shorter sides in training, each with equal chance; None: 480 to 800 in steps of 32. The
            sizes of the cropping branch scale with the largest.
        eval_scale: shorter side in evaluation.
        max_size: limit of the longer side.
        normalize_images: end with float32 images, normalised with ImageNet's mean and deviation; False:
            with uint8 images. Boxes are normalised either way.
        crop: in training, crop a random part in half of the cases.

    Raises:
        ValueError: another image_set.
    """
    end = T.Normalize(IMAGENET_MEAN, IMAGENET_STD) if normalize_images else T.NormalizeBoxes()
    finish = [T.ToByteTensor(), end]
    if image_set == "val":
        return T.Compose([T.RandomResize([eval_scale], max_size=max_size), *finish])
    if image_set != "train":
        raise ValueError(f"image_set is 'train' or 'val', not {image_set!r}")
    scales = TRAIN_SCALES if scales is None else tuple(scales)
    whole = T.RandomResize(scales, max_size=max_size)
    if not crop:
        return T.Compose([T.RandomHorizontalFlip(), whole, *finish])
    ratio = max(scales) / max(TRAIN_SCALES)
    *before_crop, smallest, largest = (max(1, round(side * ratio)) for side in (400, 500, 600, 384, 600))
    part = T.Compose(
        [
            T.RandomResize(before_crop),
            T.RandomSizeCrop(smallest, largest),
            T.RandomResize(scales, max_size=max_size),
        ]
    )
    return T.Compose([T.RandomHorizontalFlip(), T.RandomSelect(whole, part), *finish])


def build(image_set: str, args: Namespace, normalize_images: bool = True) -> CocoDetection:
    """The data set below `args.coco_path`; see `datasets.build_dataset`."""
    img_folder, ann_file = find_coco_files(args.coco_path, image_set, args.dataset_file)
    transforms = make_coco_transforms(
        image_set, args.scales, args.eval_scale, args.max_size, normalize_images, args.crop
    )
    return CocoDetection(img_folder, ann_file, transforms, args.masks, seed=args.seed, as_tensors=True)


def read_categories(image_set: str, args: Namespace) -> dict[int, str]:
    """Category id -> name, from the annotation file alone."""
    return load_annotations(find_coco_files(args.coco_path, image_set, args.dataset_file)[1]).categories


def find_coco_files(
    coco_path: str | Path | None, image_set: str, dataset_file: str = "coco"
) -> tuple[Path, Path]:
    """The image folder and the instances file of an image set, in any of datasets.layouts.

    Args:
        dataset_file: the layout that is preferred where a folder follows several.

    Raises:
        UserError: there is none; the message says what was looked for and what lies there.
    """
    return find_split(coco_path, image_set, dataset_file)
