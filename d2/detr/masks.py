"""Masks and segments of the model in the forms that detectron2 reads.

Shapes: Q queries, k masks of one image, h w their size, which covers the padded batch (the canvas).
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from util.errors import UserError

__all__ = ["full_masks", "roi_masks", "segments_of", "things_of"]

ROI_CELLS = 32  # a side of the grid through which MASK_FORMAT roi32 passes masks
MASKS_AT_ONCE = 16  # so many are enlarged together; all of an image's at once would be large


def _on_image(logits: Tensor, canvas: Sequence[int], size: Sequence[int]) -> Tensor:
    """Mask logits [k, h, w] that cover a canvas -> [k, height, width] of the image in its upper left."""
    whole = interpolate(logits[None].float(), size=tuple(canvas), mode="bilinear", align_corners=False)[0]
    return whole[:, : size[0], : size[1]]


def roi_masks(logits: Tensor, canvas: Sequence[int], size: Sequence[int], boxes: Tensor) -> Tensor:
    """Mask logits [Q, h, w] and boxes [Q, 4] -> the masks in their boxes, bool [Q, 1, 32, 32]."""
    parts = []
    for some, their_boxes in zip(logits.split(MASKS_AT_ONCE), boxes.split(MASKS_AT_ONCE), strict=True):
        masks = BitMasks(_on_image(some, canvas, size) > 0)
        parts.append(masks.crop_and_resize(their_boxes, ROI_CELLS))
    return torch.cat(parts)[:, None]


def full_masks(logits: Tensor, canvas: Sequence[int], seen: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Mask logits [k, h, w] -> bool [k, H, W].

    Args:
        logits: cover the padded batch.
        canvas, seen, wanted: (height, width) of that batch, of the image in it, and of the result.
    """
    if not len(logits):
        return torch.zeros((0, *wanted), dtype=torch.bool, device=logits.device)
    parts = []
    for some in logits.split(MASKS_AT_ONCE):
        image = _on_image(some, canvas, seen)
        parts.append(
            interpolate(image[None], size=tuple(wanted), mode="bilinear", align_corners=False)[0] > 0
        )
    return torch.cat(parts)


def segments_of(panoptic_map: dict[str, Any], device: torch.device) -> tuple[Tensor, list[dict[str, Any]]]:
    """What PostProcessPanoptic gives, in detectron2's form: ids from 1 on, for 0 means no segment."""
    with Image.open(io.BytesIO(panoptic_map["png_string"])) as image:
        red, green, blue = torch.from_numpy(np.array(image)).int().unbind(-1)
    segments = [{**segment, "id": segment["id"] + 1} for segment in panoptic_map["segments_info"]]
    ids = red + 256 * green + 65536 * blue
    return (ids + 1 if segments else torch.zeros_like(ids)).to(device), segments


def things_of(cfg: Any) -> dict[int, bool]:
    """Contiguous class -> whether it is a thing, as the first data set of the configuration says."""
    name = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][0]
    metadata = MetadataCatalog.get(name)
    things = metadata.get("thing_dataset_id_to_contiguous_id", {}).values()
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {}).values()
    if not stuff or set(things) & set(stuff):
        raise UserError(
            f"MODEL.DETR.PANOPTIC_ON: things and stuff of data set {name} do not share one range of classes; "
            "take one that register_coco_panoptic has registered, such as coco_2017_train_panoptic"
        )
    classes = {**dict.fromkeys(things, True), **dict.fromkeys(stuff, False)}
    if max(classes) >= cfg.MODEL.DETR.NUM_CLASSES:
        raise UserError(
            f"MODEL.DETR.NUM_CLASSES {cfg.MODEL.DETR.NUM_CLASSES}: too few, data set {name} has "
            f"{max(classes) + 1}"
        )
    return classes
