"""The keys that DETR adds to detectron2's configuration, with their defaults."""

from typing import Any

from detectron2.config import CfgNode

__all__ = ["add_detr_config"]


def add_detr_config(cfg: Any) -> None:
    """Add `MODEL.DETR` and what else DETR reads to a configuration that `get_cfg()` gave."""
    cfg.MODEL.DETR = CfgNode()
    cfg.MODEL.DETR.NUM_CLASSES = 80  # contiguous from 0, without "no object"

    # Masks. With FROZEN_WEIGHTS, a box model in this wrapper's format, its mask head is trained alone.
    cfg.MODEL.DETR.FROZEN_WEIGHTS = ""
    # How instance masks leave the model: "roi32" squeezes each through a grid of 32 x 32 cells in its box, as
    # Mask R-CNN does; "full" keeps every pixel.
    cfg.MODEL.DETR.MASK_FORMAT = "roi32"
    # Things and stuff, of data sets that register_coco_panoptic has registered; with MODEL.MASK_ON also their
    # maps.
    cfg.MODEL.DETR.PANOPTIC_ON = False
    cfg.MODEL.DETR.PANOPTIC_THRESHOLD = 0.85  # least probability of a segment's class

    # Loss (paper, section 3.1)
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    cfg.MODEL.DETR.DEEP_SUPERVISION = True
    cfg.MODEL.DETR.NO_OBJECT_WEIGHT = 0.1

    # So many groups of queries train side by side, and one detects (models/query_groups.py).
    cfg.MODEL.DETR.QUERY_GROUPS = 1

    # Transformer (paper, section 3.2)
    cfg.MODEL.DETR.NHEADS = 8
    cfg.MODEL.DETR.DROPOUT = 0.1
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    cfg.MODEL.DETR.ENC_LAYERS = 6
    cfg.MODEL.DETR.DEC_LAYERS = 6
    cfg.MODEL.DETR.PRE_NORM = False
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 100
    cfg.MODEL.DETR.POSITION_EMBEDDING = "sine"  # or "learned"

    # Read by build_detr_resnet_backbone where MODEL.WEIGHTS is empty: "imagenet" (torchvision's), "none", or
    # the path of a ResNet's state_dict.
    cfg.MODEL.DETR.BACKBONE_WEIGHTS = "none"

    # Sizes as DETR rounds them: 800 x 1066 where detectron2 makes 800 x 1067.
    cfg.INPUT.DETR_RESIZE = False

    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # of the learning rate, for parameters with "backbone" in their name
