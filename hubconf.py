"""Entry points of torch.hub: `torch.hub.load(REPOSITORY, "detr_resnet50", pretrained=True)`."""

from __future__ import annotations

import os
import sys


def _refuse_namesakes(*names: str) -> None:
    """Other projects have packages of these names too; one that is imported already would stand in for ours.

    Raises:
        ImportError: there is one.
    """
    here = os.path.dirname(os.path.realpath(__file__))
    for name in names:
        other = sys.modules.get(name)
        places = [
            getattr(other, "__file__", None) or "",
            *getattr(other, "__path__", ()),
        ]  # without __init__.py
        place = next(filter(None, places), "a module without a file")
        if other is not None and not os.path.realpath(place).startswith(os.path.join(here, name)):
            raise ImportError(
                f"detr's package `{name}` cannot be imported, as another one of that name has been: {place}. "
                "Load detr in a process of its own"
            )


_refuse_namesakes("models", "util")

from models.backbone import Backbone, Joiner
from models.detr import DETR
from models.position_encoding import PositionEmbeddingSine
from models.postprocess import PostProcess
from models.segmentation import DETRsegm, PostProcessPanoptic
from models.transformer import Transformer
from util.checkpoint_file import load_checkpoint, model_state
from util.coco_names import coco_is_thing
from util.hub_models import HUB_MODELS, PUBLISHED

dependencies = ["torch", "torchvision", "scipy"]


def _build(name: str, pretrained: bool, num_classes: int, pretrained_backbone: bool) -> DETR | DETRsegm:
    """A published model: 6 + 6 layers of width 256, 100 queries.

    The backbone's own weights are fetched only where `pretrained` does not replace them anyway.
    """
    file, backbone_name, dilation, masks = HUB_MODELS[name]
    width = 256
    backbone = Backbone(
        backbone_name,
        train_backbone=True,
        return_interm_layers=masks,
        dilation=dilation,
        weights="imagenet" if pretrained_backbone and not pretrained else "none",
    )
    detr = DETR(
        Joiner(backbone, PositionEmbeddingSine(width // 2, normalize=True)),
        Transformer(d_model=width, return_intermediate_dec=True),
        num_classes=num_classes,
        num_queries=100,
    )
    model = DETRsegm(detr) if masks else detr
    if pretrained:
        model.load_state_dict(model_state(load_checkpoint(PUBLISHED + file)))
    return model


# --- Detection -----------------------------------------------------------------------------------------


def detr_resnet50(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR R50, published box AP 42.0 on COCO val5k.

    Args:
        pretrained: fetch the published weights (91 classes).
        num_classes: highest category id + 1.
        return_postprocessor: give (model, PostProcess()) in place of the model.
        pretrained_backbone: start the backbone from ImageNet weights; nothing is fetched for it where
            `pretrained` replaces them anyway.
    """
    model = _build("detr_resnet50", pretrained, num_classes, pretrained_backbone)
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet50_dc5(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR-DC5 R50, published box AP 43.3; evaluate it with one image a batch. Arguments: detr_resnet50."""
    model = _build("detr_resnet50_dc5", pretrained, num_classes, pretrained_backbone)
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet101(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR R101, published box AP 43.5. Arguments: detr_resnet50."""
    model = _build("detr_resnet101", pretrained, num_classes, pretrained_backbone)
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet101_dc5(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR-DC5 R101, published box AP 44.9; evaluate it with one image a batch. Arguments: detr_resnet50."""
    model = _build("detr_resnet101_dc5", pretrained, num_classes, pretrained_backbone)
    return (model, PostProcess()) if return_postprocessor else model


# --- Panoptic segmentation -----------------------------------------------------------------------------


def detr_resnet50_panoptic(
    pretrained: bool = False,
    num_classes: int = 250,
    threshold: float = 0.85,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR R50 with masks, published PQ 43.4, box AP 38.8, segm AP 31.1 on COCO val5k.

    Args:
        pretrained: fetch the published weights (250 classes).
        num_classes: highest category id + 1. Ids up to 90 are things, as in COCO.
        threshold: least probability of a segment's class, for the post-processor.
        return_postprocessor: give (model, PostProcessPanoptic(...)) in place of the model.
        pretrained_backbone: start the backbone from ImageNet weights; nothing is fetched for it where
            `pretrained` replaces them anyway.
    """
    model = _build("detr_resnet50_panoptic", pretrained, num_classes, pretrained_backbone)
    return (model, _panoptic(num_classes, threshold)) if return_postprocessor else model


def detr_resnet50_dc5_panoptic(
    pretrained: bool = False,
    num_classes: int = 250,
    threshold: float = 0.85,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR-DC5 R50 with masks, published PQ 44.6, box AP 40.2, segm AP 31.9; one image a batch.

    Arguments: detr_resnet50_panoptic.
    """
    model = _build("detr_resnet50_dc5_panoptic", pretrained, num_classes, pretrained_backbone)
    return (model, _panoptic(num_classes, threshold)) if return_postprocessor else model


def detr_resnet101_panoptic(
    pretrained: bool = False,
    num_classes: int = 250,
    threshold: float = 0.85,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR R101 with masks, published PQ 45.1, box AP 40.1, segm AP 33.0.

    Arguments: detr_resnet50_panoptic.
    """
    model = _build("detr_resnet101_panoptic", pretrained, num_classes, pretrained_backbone)
    return (model, _panoptic(num_classes, threshold)) if return_postprocessor else model


def _panoptic(num_classes: int, threshold: float) -> PostProcessPanoptic:
    """The post-processor with COCO's division into things and stuff."""
    return PostProcessPanoptic(coco_is_thing(num_classes), threshold=threshold)
