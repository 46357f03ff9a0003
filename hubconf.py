"""Entry points of torch.hub: `torch.hub.load(REPOSITORY, "detr_resnet50", pretrained=True)`."""

from __future__ import annotations

from models.backbone import Backbone, Joiner
from models.detr import DETR
from models.position_encoding import PositionEmbeddingSine
from models.postprocess import PostProcess, PostProcessPanoptic, coco_is_thing
from models.segmentation import DETRsegm
from models.transformer import Transformer
from util.checkpoint_file import load_checkpoint, model_state

dependencies = ["torch", "torchvision", "scipy"]

PUBLISHED = "https://dl.fbaipublicfiles.com/detr/"


def _detr(
    backbone: str,
    dilation: bool,
    num_classes: int,
    checkpoint: str | None,
    pretrained_backbone: bool,
    masks: bool = False,
) -> DETR:
    """The published model, 6 + 6 layers of width 256 and 100 queries; `checkpoint` names its weights.

    With `masks` the backbone gives what a mask head needs.
    """
    fetch_backbone = pretrained_backbone and checkpoint is None
    width = 256
    body = Backbone(
        backbone,
        train_backbone=True,
        return_interm_layers=masks,
        dilation=dilation,
        weights="imagenet" if fetch_backbone else "none",
    )
    model = DETR(
        Joiner(body, PositionEmbeddingSine(width // 2, normalize=True)),
        Transformer(d_model=width, return_intermediate_dec=True),
        num_classes=num_classes,
        num_queries=100,
    )
    if checkpoint is not None:
        model.load_state_dict(model_state(load_checkpoint(PUBLISHED + checkpoint)))
    return model


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
    model = _detr(
        "resnet50", False, num_classes, "detr-r50-e632da11.pth" if pretrained else None, pretrained_backbone
    )
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet50_dc5(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR-DC5 R50, published box AP 43.3; evaluate it with one image a batch. Arguments: detr_resnet50."""
    model = _detr(
        "resnet50",
        True,
        num_classes,
        "detr-r50-dc5-f0fb7ef5.pth" if pretrained else None,
        pretrained_backbone,
    )
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet101(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR R101, published box AP 43.5. Arguments: detr_resnet50."""
    model = _detr(
        "resnet101", False, num_classes, "detr-r101-2c7b67e5.pth" if pretrained else None, pretrained_backbone
    )
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet101_dc5(
    pretrained: bool = False,
    num_classes: int = 91,
    return_postprocessor: bool = False,
    pretrained_backbone: bool = True,
):
    """DETR-DC5 R101, published box AP 44.9; evaluate it with one image a batch. Arguments: detr_resnet50."""
    model = _detr(
        "resnet101",
        True,
        num_classes,
        "detr-r101-dc5-a2e86def.pth" if pretrained else None,
        pretrained_backbone,
    )
    return (model, PostProcess()) if return_postprocessor else model


def _panoptic(
    backbone: str,
    dilation: bool,
    num_classes: int,
    threshold: float,
    checkpoint: str | None,
    pretrained_backbone: bool,
    return_postprocessor: bool,
):
    """The published panoptic model, whose detector is that of `_detr`."""
    fetch_backbone = pretrained_backbone and checkpoint is None
    detr = _detr(backbone, dilation, num_classes, None, fetch_backbone, masks=True)
    model = DETRsegm(detr)
    if checkpoint is not None:
        model.load_state_dict(model_state(load_checkpoint(PUBLISHED + checkpoint)))
    if not return_postprocessor:
        return model
    return model, PostProcessPanoptic(coco_is_thing(num_classes), threshold=threshold)


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
    checkpoint = "detr-r50-panoptic-00ce5173.pth" if pretrained else None
    return _panoptic(
        "resnet50", False, num_classes, threshold, checkpoint, pretrained_backbone, return_postprocessor
    )


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
    checkpoint = "detr-r50-dc5-panoptic-da08f1b1.pth" if pretrained else None
    return _panoptic(
        "resnet50", True, num_classes, threshold, checkpoint, pretrained_backbone, return_postprocessor
    )


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
    checkpoint = "detr-r101-panoptic-40021d53.pth" if pretrained else None
    return _panoptic(
        "resnet101", False, num_classes, threshold, checkpoint, pretrained_backbone, return_postprocessor
    )
