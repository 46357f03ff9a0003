"""From detectron2's configuration to the modules of DETR."""

import logging
from typing import Any

from torch import nn

from models.backbone import Joiner
from models.detr import DETR, SetCriterion
from models.matcher import HungarianMatcher
from models.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from models.transformer import Transformer
from util.checkpoint_file import load_checkpoint, model_state
from util.errors import UserError

from .backbone import MaskedBackbone

__all__ = ["build_criterion", "build_detector", "load_frozen_weights"]


def build_detector(cfg: Any, masked_backbone: MaskedBackbone) -> DETR:
    """The model for boxes."""
    settings = cfg.MODEL.DETR
    width = settings.HIDDEN_DIM
    if settings.POSITION_EMBEDDING == "sine":
        embedding: nn.Module = PositionEmbeddingSine(width // 2, normalize=True)
    elif settings.POSITION_EMBEDDING == "learned":
        embedding = PositionEmbeddingLearned(width // 2)
    else:
        raise UserError(
            f"MODEL.DETR.POSITION_EMBEDDING {settings.POSITION_EMBEDDING}: neither sine nor learned"
        )
    backbone = Joiner(masked_backbone, embedding)
    backbone.num_channels = masked_backbone.num_channels
    transformer = Transformer(
        d_model=width,
        nhead=settings.NHEADS,
        num_encoder_layers=settings.ENC_LAYERS,
        num_decoder_layers=settings.DEC_LAYERS,
        dim_feedforward=settings.DIM_FEEDFORWARD,
        dropout=settings.DROPOUT,
        normalize_before=settings.PRE_NORM,
        return_intermediate_dec=settings.DEEP_SUPERVISION,
    )
    return DETR(
        backbone,
        transformer,
        num_classes=settings.NUM_CLASSES,
        num_queries=settings.NUM_OBJECT_QUERIES,
        aux_loss=settings.DEEP_SUPERVISION,
    )


def build_criterion(cfg: Any) -> SetCriterion:
    """The loss. What its weight_dict does not hold, the losses of masks, is summed as it is."""
    settings = cfg.MODEL.DETR
    weights = {"loss_ce": 1.0, "loss_bbox": settings.L1_WEIGHT, "loss_giou": settings.GIOU_WEIGHT}
    if settings.DEEP_SUPERVISION:
        earlier = range(settings.DEC_LAYERS - 1)
        weights |= {f"{name}_{i}": weight for i in earlier for name, weight in weights.items()}
    matcher = HungarianMatcher(cost_class=1, cost_bbox=settings.L1_WEIGHT, cost_giou=settings.GIOU_WEIGHT)
    losses = ["labels", "boxes", "cardinality"] + (["masks"] if cfg.MODEL.MASK_ON else [])
    return SetCriterion(settings.NUM_CLASSES, matcher, weights, settings.NO_OBJECT_WEIGHT, losses)


def load_frozen_weights(detector: nn.Module, path: str) -> None:
    """Fill a detector from a box model, or from the detector of a mask model, in this wrapper's format."""
    state = model_state(load_checkpoint(path))
    prefix = "detr.detr." if any(name.startswith("detr.detr.") for name in state) else "detr."
    weights = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    left_out = [name for name in state if not name.startswith(prefix)]
    logging.getLogger(__name__).info("%s: not a detector's, left out: %s", path, left_out)
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"MODEL.DETR.FROZEN_WEIGHTS {path}: does not fit ({str(error).splitlines()[1].strip():.200}); a "
            "checkpoint of main.py is converted by d2/converter.py"
        ) from error
