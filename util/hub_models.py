"""The seven published models, by their names in hubconf.py: files, and what they are made of."""

from __future__ import annotations

from typing import NamedTuple

PUBLISHED = "https://dl.fbaipublicfiles.com/detr/"


class HubModel(NamedTuple):
    """A published model.

    Attributes:
        file: of its weights, below PUBLISHED.
        backbone: torchvision's name of its ResNet.
        dilation: DC5.
        masks: a mask head is trained, on panoptic data.
    """

    file: str
    backbone: str
    dilation: bool = False
    masks: bool = False


HUB_MODELS = {
    "detr_resnet50": HubModel("detr-r50-e632da11.pth", "resnet50"),
    "detr_resnet50_dc5": HubModel("detr-r50-dc5-f0fb7ef5.pth", "resnet50", dilation=True),
    "detr_resnet101": HubModel("detr-r101-2c7b67e5.pth", "resnet101"),
    "detr_resnet101_dc5": HubModel("detr-r101-dc5-a2e86def.pth", "resnet101", dilation=True),
    "detr_resnet50_panoptic": HubModel("detr-r50-panoptic-00ce5173.pth", "resnet50", masks=True),
    "detr_resnet50_dc5_panoptic": HubModel(
        "detr-r50-dc5-panoptic-da08f1b1.pth", "resnet50", dilation=True, masks=True
    ),
    "detr_resnet101_panoptic": HubModel("detr-r101-panoptic-40021d53.pth", "resnet101", masks=True),
}
