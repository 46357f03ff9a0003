"""What a script of detectron2 needs of DETR; importing it registers `Detr` and its backbone."""

from .backbone import MaskedBackbone, build_detr_resnet_backbone
from .config import add_detr_config
from .dataset_mapper import DetrDatasetMapper
from .detr import Detr
from .evaluators import DetrPanopticEvaluator

__all__ = [
    "Detr",
    "DetrDatasetMapper",
    "DetrPanopticEvaluator",
    "MaskedBackbone",
    "add_detr_config",
    "build_detr_resnet_backbone",
]
