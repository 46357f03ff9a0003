"""Outputs of a mask model made by hand, and what the published code makes of masks in full."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from models.selection import masks_of
from util.coco_names import coco_is_thing

THINGS = coco_is_thing(250)
NO_OBJECT = 250


def random_outputs(
    images: int = 2, queries: int = 8, height: int = 10, width: int = 14, seed: int = 0
) -> dict:
    """Logits that are sure of COCO's classes or of none, boxes, and masks that are hills."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1, (images, queries, NO_OBJECT + 1))
    classes = draw.choice([1, 3, 17, 93, 93, 100, NO_OBJECT], (images, queries))
    np.put_along_axis(logits, classes[..., None], 12, axis=2)
    rows, columns = np.mgrid[:height, :width]
    centres = draw.uniform(0, 1, (2, images, queries, 1, 1)) * np.array([height, width]).reshape(
        2, 1, 1, 1, 1
    )
    distances = (rows - centres[0]) ** 2 + (columns - centres[1]) ** 2
    masks = 4 - distances / draw.uniform(1, 8, (images, queries, 1, 1))
    return {
        "pred_logits": torch.from_numpy(logits).float(),
        "pred_boxes": torch.from_numpy(draw.uniform(0.2, 0.6, (images, queries, 4))).float(),
        "pred_masks": torch.from_numpy(masks).float(),
    }


def selected(outputs: dict, chosen: list[Tensor]) -> dict:
    """The same outputs as the model gives them for a selection."""
    return {**outputs, "pred_masks": masks_of(outputs, chosen), "selected": chosen}


def ids_of(result: dict[str, Any]) -> np.ndarray:
    """The ids in a panoptic PNG, [H, W]."""
    colours = np.array(Image.open(io.BytesIO(result["png_string"]))).astype(np.int64)
    assert colours.ndim == 3 and colours.shape[2] == 3
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def enlarged(masks: Tensor, canvas: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """What the published code computes in full: masks on the canvas, cropped to the image."""
    on_canvas = interpolate(masks[None], size=canvas, mode="bilinear", align_corners=False)[0]
    return on_canvas[:, : image[0], : image[1]]
