"""From a record of detectron2's data sets to what `Detr` reads, with DETR's augmentation.

Shapes: H W image, N objects.
"""

import copy
import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from util.box_ops import masks_to_boxes
from util.errors import UserError

__all__ = ["DetrDatasetMapper", "DetrResize", "build_transform_gen"]

CROP_SIZES = [400, 500, 600]  # shorter side before a crop


class DetrResize(T.Augmentation):
    """Resizes the shorter side to one of some lengths, and rounds as DETR does.

    Args:
        sizes: lengths of the shorter side, each with equal chance.
        max_size: limit of the longer side.
    """

    def __init__(self, sizes: Sequence[int], max_size: int = sys.maxsize):
        super().__init__()
        self.sizes = sizes
        self.max_size = max_size

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform of an image [H, W, 3]."""
        height, width = image.shape[:2]
        short, long = min(height, width), max(height, width)
        size = int(np.random.choice(self.sizes))
        if size * long / short > self.max_size:
            size = int(round(self.max_size * short / long))
        longer = int(size * long / short)
        new = (size, longer) if height <= width else (longer, size)
        return T.ResizeTransform(height, width, *new)


def build_transform_gen(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """The augmentations without a crop: in training a flip, and always a resize."""
    if is_train:
        flip, sizes, max_size = [T.RandomFlip()], cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
        style = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    else:
        flip, sizes, max_size, style = [], cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice"
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if not cfg.INPUT.DETR_RESIZE:
        return [*flip, T.ResizeShortestEdge(sizes, max_size, style)]
    if style == "range":
        sizes = list(range(sizes[0], sizes[1] + 1))
    return [*flip, DetrResize(sizes, max_size)]


class DetrDatasetMapper:
    """Maps a record of detectron2's data sets to a record for `Detr`.

    In training an image is flipped; then, with equal chance, it is resized, or resized, cropped and resized
    again. Objects that lie outside of the crop are left out, and so are crowds, except of panoptic records.

    Args:
        cfg: of INPUT the sizes, the crop, FORMAT, MASK_FORMAT and DETR_RESIZE; of MODEL MASK_ON, and of
            MODEL.DETR NUM_CLASSES and PANOPTIC_ON.
        is_train: augment, and give objects.

    Raises:
        UserError: crops with polygons need shapely, and it is missing.
    """

    def __init__(self, cfg: Any, is_train: bool = True):
        self.tfm_gens = build_transform_gen(cfg, is_train)
        self.crop_gen: list[T.Augmentation] | None = None
        if cfg.INPUT.CROP.ENABLED and is_train:
            if cfg.INPUT.DETR_RESIZE:
                resize = DetrResize(CROP_SIZES)
            else:
                resize = T.ResizeShortestEdge(CROP_SIZES, sample_style="choice")
            self.crop_gen = [resize, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)]
        self.is_train = is_train
        self.img_format = cfg.INPUT.FORMAT
        self.mask_on = cfg.MODEL.MASK_ON
        self.mask_format = cfg.INPUT.MASK_FORMAT
        self.panoptic_on = cfg.MODEL.DETR.PANOPTIC_ON
        self.num_classes = cfg.MODEL.DETR.NUM_CLASSES
        cuts_polygons = self.crop_gen and self.mask_on and not self.panoptic_on
        if cuts_polygons and importlib.util.find_spec("shapely") is None:
            raise UserError("INPUT.CROP with MODEL.MASK_ON cuts polygons with shapely: pip install shapely")
        logging.getLogger(__name__).info(
            "%s: %s, crop: %s", "training" if is_train else "test", self.tfm_gens, self.crop_gen
        )

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: with `file_name`, and in training `annotations`; or, with PANOPTIC_ON,
                `pan_seg_file_name` and `segments_info`. It is not changed.

        Returns:
            The record without these, but with `image`, uint8 [3, H, W], and in training `instances` of
            gt_boxes, gt_classes and, with MASK_ON, gt_masks (polygons or bit masks).

        Raises:
            UserError: a class that the model does not have, or an object without a mask where one is needed.
        """
        record = copy.deepcopy(dataset_dict)
        pixels = utils.read_image(record["file_name"], format=self.img_format)
        utils.check_image_size(record, pixels)
        augmentations = self.tfm_gens
        if self.crop_gen is not None and np.random.rand() <= 0.5:
            augmentations = [*self.tfm_gens[:-1], *self.crop_gen, self.tfm_gens[-1]]
        pixels, transforms = T.apply_transform_gens(augmentations, pixels)
        record["image"] = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        annotations = record.pop("annotations", None)
        if self.is_train and self.panoptic_on:
            record["instances"] = self.segments(record, transforms, pixels.shape[:2])
        elif self.is_train and annotations is not None:
            objects = [one for one in annotations if one.get("iscrowd", 0) == 0]
            self._check_classes([one["category_id"] for one in objects], record["file_name"])
            record["instances"] = self.objects(objects, transforms, pixels.shape[:2], record["file_name"])
        return record

    def _check_classes(self, classes: list[int], name: str) -> None:
        if classes and max(classes) >= self.num_classes:
            raise UserError(
                f"MODEL.DETR.NUM_CLASSES {self.num_classes}: too few, {name} has an object of class "
                f"{max(classes)} (counted from 0)"
            )

    def objects(
        self, objects: list[dict[str, Any]], transforms: T.TransformList, size: tuple[int, int], name: str
    ) -> Instances:
        """The objects of an image after its transforms; (height, width) `size` is the new one."""
        has_runs = False
        for one in objects:
            one.pop("keypoints", None)
            if not self.mask_on:
                one.pop("segmentation", None)
                continue
            segmentation = one.get("segmentation")
            if not segmentation:
                raise UserError(f"{name}: MODEL.MASK_ON is on, and an object has no segmentation")
            if isinstance(segmentation, dict):
                has_runs = True
                if isinstance(segmentation["counts"], list):
                    one["segmentation"] = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        # Run lengths have no polygons: in such an image all masks are bit masks.
        mask_format = "bitmask" if has_runs else self.mask_format
        objects = [utils.transform_instance_annotations(one, transforms, size) for one in objects]
        instances = utils.annotations_to_instances(objects, size, mask_format)
        if self.mask_on and not objects:
            empty = PolygonMasks([]), BitMasks(torch.zeros((0, *size), dtype=torch.bool))
            instances.gt_masks = empty[mask_format == "bitmask"]
        return utils.filter_empty_instances(instances)

    def segments(
        self, record: dict[str, Any], transforms: T.TransformList, size: tuple[int, int]
    ) -> Instances:
        """The segments of a panoptic record: their boxes are those of their masks before the transforms."""
        segments = record.pop("segments_info", None)
        if segments is None or "pan_seg_file_name" not in record:
            raise UserError(
                f"{record['file_name']}: MODEL.DETR.PANOPTIC_ON is on, and the data set has no panoptic "
                "segments; take one that register_coco_panoptic has registered"
            )
        classes = [segment["category_id"] for segment in segments]
        self._check_classes(classes, record["file_name"])
        colours = utils.read_image(record.pop("pan_seg_file_name"), format="RGB")
        wanted = torch.tensor([segment["id"] for segment in segments])[:, None, None]
        boxes = masks_to_boxes(_segment_ids(colours) == wanted)  # [N, 4]
        height, width = size
        corners = transforms.apply_box(boxes.numpy().reshape(-1, 4)).clip(min=0)
        corners = np.minimum(corners, [width, height, width, height])
        instances = Instances(size)
        instances.gt_boxes = Boxes(corners)
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        if self.mask_on:
            new_colours = transforms.apply_segmentation(colours)
            instances.gt_masks = BitMasks(_segment_ids(new_colours) == wanted)  # [N, H, W]
        return utils.filter_empty_instances(instances)


def _segment_ids(colours: np.ndarray) -> torch.Tensor:
    """Colours of a panoptic PNG, uint8 [H, W, 3] -> ids R + 256 G + 65536 B, int64 [H, W]."""
    red, green, blue = torch.from_numpy(np.array(colours)).long().unbind(-1)
    return red + 256 * green + 65536 * blue
