"""COCO detection data: images with boxes, and with masks where they are asked for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

import datasets.transforms as T
from datasets.annotations import CocoAnnotations, is_crowd, load_annotations, read_coco
from datasets.images import find_picture, image_size, picture_name, read_image
from datasets.layouts import find_split
from datasets.masks import run_lengths
from datasets.sampler import ItemSeeds
from util.errors import UserError
from util.nested_tensor import IMAGENET_MEAN, IMAGENET_STD

TRAIN_SCALES = tuple(range(480, 801, 32))


class CocoDetection(torchvision.datasets.CocoDetection):
    """Pairs (image, target), one for each image of an annotation file, in the order of image ids.

    The target is what ConvertCocoPolysToMask makes, after the transforms. Where an epoch has been set, the
    random transforms of an item depend on seed, epoch and index alone; otherwise each call draws anew.

    Annotations come packed from the file until somebody asks for `coco`, and from that object ever after, so
    that what is changed there counts for items and evaluation alike.

    Args:
        img_folder: folder of the pictures.
        ann_file: COCO instances JSON.
        transforms: called with (image, target); None for the image and target as they are.
        return_masks: give masks too.
        seed: of the random transforms.
        white_level: of pictures of more than 8 bits, see read_image.

    Attributes:
        ids: image ids, ascending.
        annotations: the packed annotation file.

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
        white_level: float | None = None,
    ):
        torchvision.datasets.VisionDataset.__init__(self, img_folder)  # CocoDetection's would read the file
        self.annotations: CocoAnnotations = load_annotations(ann_file)
        self.ids: list[int] = self.annotations.image_ids.tolist()
        self.prepare = ConvertCocoPolysToMask(return_masks)
        self._transforms = transforms
        self._seeds = ItemSeeds(seed)
        self._white_level = white_level
        self._coco: Any = None

    def __getitem__(self, idx: int) -> tuple[Any, dict[str, Any]]:
        idx = range(len(self))[idx]  # from the end where negative; IndexError beyond
        image, annotations = super().__getitem__(idx)
        image, target = self.prepare(image, {"image_id": self.ids[idx], "annotations": annotations})
        if self._transforms is not None:
            with self._seeds.of_item(idx):
                image, target = self._transforms(image, target)
        return image, target

    def stated_size(self, idx: int) -> tuple[Any, Any]:
        """Width and height of the picture at `idx`, as its entry states them; None where it does not."""
        image = self._image(self.ids[idx])
        return image.get("width"), image.get("height")

    def _load_image(self, id: int) -> Image.Image:
        image = self._image(id)
        stated = image.get("width"), image.get("height")
        return read_image(self._path(id), f" (image id {id})", stated=stated, white_level=self._white_level)

    def _load_target(self, id: int) -> list[dict[str, Any]]:
        return self.annotations.annotations_of(id) if self._coco is None else super()._load_target(id)

    def _path(self, image_id: int) -> Path:
        root, name = Path(self.root), picture_name(self._image(image_id))
        return find_picture(root, name) or root / name

    def _image(self, image_id: int) -> dict[str, Any]:
        """What the file says of an image."""
        if self._coco is None:
            return self.annotations.images[self.annotations.index_of(image_id)]
        return self._coco.loadImgs(image_id)[0]

    @property
    def coco(self) -> Any:
        """The pycocotools object of the annotation file, this data set's own; made when first asked for."""
        if self._coco is None:
            self._coco = read_coco(self.annotations.source)
        return self._coco

    @coco.setter
    def coco(self, coco: Any) -> None:
        self._coco = coco

    def set_epoch(self, epoch: int | None) -> None:
        """Fix the random transforms by (seed, epoch, index), in running data workers too; None: draw anew."""
        self._seeds.set_epoch(epoch)

    def image_path(self, idx: int) -> Path:
        """The file of the picture at `idx`."""
        return self._path(self.ids[idx])

    def get_height_and_width(self, idx: int) -> tuple[int, int]:
        """Size of an image in pixels, as the file says; KeyError where it does not."""
        image = self._image(self.ids[idx])
        return image["height"], image["width"]


class ConvertCocoPolysToMask:
    """COCO annotations of an image -> the target of DETR.

    Called with an image (PIL or tensor [3, h, w]) and a dict of `image_id` and `annotations`, it returns the
    image and a new dict of
        boxes [N, 4] float32: xyxy in pixels, within the image,
        labels [N] int64: category ids,
        masks [N, h, w] uint8: 0 or 1 (only with return_masks),
        keypoints [N, K, 3] float32: x, y, visibility (only where annotations have them; 0 of others),
        image_id [1], area [N] float32, iscrowd [N] int64, orig_size and size [2]: height, width.
    Crowds are left out, and so are boxes without width or height inside the image.

    Args:
        return_masks: give masks too.

    Raises:
        UserError: an object has no usable segmentation, with return_masks.
    """

    def __init__(self, return_masks: bool = False):
        self.return_masks = return_masks

    def __call__(self, image: Image.Image | Tensor, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        height, width = image_size(image)
        objects = [a for a in target["annotations"] if not is_crowd(a)]
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
            "iscrowd": torch.zeros(len(objects), dtype=torch.int64),
            "orig_size": torch.tensor([height, width]),
            "size": torch.tensor([height, width]),
        }
        if self.return_masks:
            result["masks"] = _masks(objects, height, width)
        if any("keypoints" in a for a in target["annotations"]):
            none = [0] * max(len(a.get("keypoints", ())) for a in target["annotations"])  # 0: not labelled
            rows = torch.tensor([a.get("keypoints", none) for a in objects], dtype=torch.float32)
            result["keypoints"] = rows.reshape(len(objects), len(none) // 3, 3)
        return image, result


def convert_coco_poly_to_mask(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """Masks uint8 [N, height, width], 0 or 1, of COCO segmentations: polygons or run lengths each."""
    from pycocotools.mask import decode

    if not segmentations:
        return torch.zeros((0, height, width), dtype=torch.uint8)
    masks = decode([run_lengths(one, height, width) for one in segmentations])  # [h, w, N], columns first
    return torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1)))


def _masks(objects: Sequence[dict[str, Any]], height: int, width: int) -> Tensor:
    """[N, height, width]; an object without a mask is named."""
    for one in objects:
        if not one.get("segmentation"):
            raise UserError(
                f"annotation {one.get('id')} has no segmentation to make a mask of: "
                "add polygons, or train without --masks"
            )
    try:
        return convert_coco_poly_to_mask([one["segmentation"] for one in objects], height, width)
    except Exception:  # pycocotools raises plain Exception for what it does not understand
        for one in objects:
            try:
                convert_coco_poly_to_mask([one["segmentation"]], height, width)
            except Exception as error:
                raise UserError(
                    f"the segmentation of annotation {one.get('id')} gives no mask of {height} x {width} "
                    f"pixels ({error}): correct it, or train without --masks"
                ) from error
        raise


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
    start: list[Any] = []
    if hasattr(T, "ToByteTensor"):
        start = [T.ToByteTensor()]
        end: Any = T.Normalize(IMAGENET_MEAN, IMAGENET_STD) if normalize_images else T.NormalizeBoxes()
    else:  # a fork's own transforms.py, made for the published code: PIL images until ToTensor
        end = T.Compose([T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    if image_set == "val":
        return T.Compose([*start, T.RandomResize([eval_scale], max_size=max_size), end])
    if image_set != "train":
        raise ValueError(f"image_set is 'train' or 'val', not {image_set!r}")
    scales = TRAIN_SCALES if scales is None else tuple(scales)
    whole = T.RandomResize(scales, max_size=max_size)
    if not crop:
        return T.Compose([*start, T.RandomHorizontalFlip(), whole, end])
    ratio = max(scales) / max(TRAIN_SCALES)
    *before_crop, smallest, largest = (max(1, round(side * ratio)) for side in (400, 500, 600, 384, 600))
    part = T.Compose([T.RandomResize(before_crop), T.RandomSizeCrop(smallest, largest), whole])
    return T.Compose([*start, T.RandomHorizontalFlip(), T.RandomSelect(whole, part), end])


def transforms_of(image_set: str, args: Namespace) -> T.Compose:
    """The transforms that flags ask for; without `args.normalize_images`, images are normalised."""
    normalize = getattr(args, "normalize_images", True)
    return make_coco_transforms(image_set, args.scales, args.eval_scale, args.max_size, normalize, args.crop)


def build(image_set: str, args: Namespace) -> CocoDetection:
    """The data set below `args.coco_path`; see `datasets.build_dataset`."""
    img_folder, ann_file = find_coco_files(args.coco_path, image_set, args.dataset_file)
    transforms = transforms_of(image_set, args)
    settings = {"seed": args.seed, "white_level": args.white_level}
    return CocoDetection(img_folder, ann_file, transforms, args.masks, **settings)


def find_coco_files(
    coco_path: str | Path | None, image_set: str, dataset_file: str = "coco"
) -> tuple[Path, Path]:
    """The image folder and the instances file of an image set: layouts.find_split, for scripts of users.

    Args:
        dataset_file: the layout that is preferred where a folder follows several.

    Raises:
        UserError: there is none; the message says what was looked for and what lies there.
    """
    return find_split(coco_path, image_set, dataset_file)
