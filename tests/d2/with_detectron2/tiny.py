"""A small model and records for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from d2.detr import add_detr_config
from tests.d2.values import image

SMALL: list[Any] = [
    *("MODEL.META_ARCHITECTURE", "Detr", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.STRIDE_IN_1X1", False),
    *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]),
    *("MODEL.DETR.NUM_CLASSES", 3, "MODEL.DETR.NUM_OBJECT_QUERIES", 6, "MODEL.DETR.HIDDEN_DIM", 128),
    *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.DIM_FEEDFORWARD", 32),
    *("INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TRAIN", (64, 80), "INPUT.MIN_SIZE_TEST", 64),
]
OWN = ["MODEL.BACKBONE.NAME", "build_detr_resnet_backbone"]


def config(*options: Any) -> Any:
    """The small model's configuration with some options more."""
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_list([*SMALL, *options])
    return cfg


def record(size: tuple[int, int], objects: int, masks: bool = False) -> dict[str, Any]:
    """An image as the mapper gives it, with so many objects in bit masks."""
    h, w = size
    instances = Instances(size)
    boxes = torch.tensor([[4.0 + i, 6.0, w / 2 + i, h - 9.0] for i in range(objects)]).reshape(-1, 4)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.arange(objects) % 3
    if masks:
        areas = torch.zeros((objects, h, w), dtype=torch.bool)
        for area, (x0, y0, x1, y1) in zip(areas, boxes.int().tolist(), strict=True):
            area[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(areas)
    pixels = torch.from_numpy(np.ascontiguousarray(image(size, objects).transpose(2, 0, 1)))
    return {"image": pixels, "instances": instances, "height": h, "width": w}


def picture(folder: Path, size: tuple[int, int] = (60, 90)) -> str:
    """A file with a picture."""
    path = folder / f"{size[0]}x{size[1]}.png"
    Image.fromarray(image(size, 1)).save(path)
    return str(path)
