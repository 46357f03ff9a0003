"""What of d2/ speaks without detectron2: the configurations' values, and how to install it."""

import importlib.util
import os
from typing import Any

import pytest

from tests.helpers import ROOT, python

yaml = pytest.importorskip("yaml")

CONFIGS = ROOT / "d2" / "configs"
BOXES = {
    "META_ARCHITECTURE": "Detr",
    "WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "PIXEL_MEAN": [123.675, 116.28, 103.53],
    "PIXEL_STD": [58.395, 57.12, 57.375],
    "MASK_ON": False,
    "RESNETS": {"DEPTH": 50, "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "DETR": {"GIOU_WEIGHT": 2.0, "L1_WEIGHT": 5.0, "NUM_OBJECT_QUERIES": 100},
}
SOLVER = {
    "IMS_PER_BATCH": 64,
    "BASE_LR": 0.0001,
    "STEPS": "(369600,)",
    "MAX_ITER": 554400,
    "WARMUP_FACTOR": 1.0,
    "WARMUP_ITERS": 10,
    "WEIGHT_DECAY": 0.0001,
    "OPTIMIZER": "ADAMW",
    "BACKBONE_MULTIPLIER": 0.1,
    "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.01, "NORM_TYPE": 2.0},
}
OTHERS = {
    "DATASETS": {"TRAIN": '("coco_2017_train",)', "TEST": '("coco_2017_val",)'},
    "INPUT": {
        "MIN_SIZE_TRAIN": "(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)",
        "CROP": {"ENABLED": True, "TYPE": "absolute_range", "SIZE": "(384, 600)"},
        "FORMAT": "RGB",
    },
    "TEST": {"EVAL_PERIOD": 4000},
    "DATALOADER": {"FILTER_EMPTY_ANNOTATIONS": False, "NUM_WORKERS": 4},
    "VERSION": 2,
}


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(under[key], over[key]) for key in under if isinstance(over.get(key), dict)}
    return {**under, **over, **both}


def read(name: str) -> dict[str, Any]:
    """A configuration with those that it stands on, as detectron2 reads it."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    base = content.pop("_BASE_", None)
    return merged(read(base), content) if base else content


def test_the_published_configurations_hold_their_values() -> None:
    assert read("detr_256_6_6_torchvision.yaml") == {"MODEL": BOXES, "SOLVER": SOLVER, **OTHERS}
    masks = merged(BOXES, {"MASK_ON": True, "WEIGHTS": "", "DETR": {"FROZEN_WEIGHTS": ""}})
    solver = merged(SOLVER, {"STEPS": "(55440,)", "MAX_ITER": 92400})
    assert read("detr_segm_256_6_6_torchvision.yaml") == {"MODEL": masks, "SOLVER": solver, **OTHERS}


def test_the_other_configurations_change_what_their_name_says() -> None:
    own = {"BACKBONE": {"NAME": "build_detr_resnet_backbone"}, "WEIGHTS": ""}
    own["DETR"] = {"BACKBONE_WEIGHTS": "imagenet"}
    base = {"SOLVER": SOLVER, **OTHERS}
    models = {
        "detr_r101_256_6_6_torchvision.yaml": {"RESNETS": {"DEPTH": 101}},
        "detr_dc5_256_6_6_torchvision.yaml": {"RESNETS": {"RES5_DILATION": 2}},
        "detr_r101_dc5_256_6_6_torchvision.yaml": {"RESNETS": {"DEPTH": 101, "RES5_DILATION": 2}},
    }
    for name, change in models.items():
        assert read(name) == {"MODEL": merged(merged(BOXES, own), change), **base}, name
    panoptic = read("detr_panoptic_256_6_6_torchvision.yaml")
    assert panoptic["MODEL"]["DETR"]["PANOPTIC_ON"] and panoptic["MODEL"]["MASK_ON"]
    assert panoptic["MODEL"]["DETR"]["NUM_CLASSES"] == 133
    assert {path.name for path in CONFIGS.iterdir()} == {
        "detr_256_6_6_torchvision.yaml",
        "detr_segm_256_6_6_torchvision.yaml",
        "detr_panoptic_256_6_6_torchvision.yaml",
        *models,
    }


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="detectron2 is installed")
def test_train_net_says_how_to_install_detectron2() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = ("d2/train_net.py", "--config-file", "d2/configs/detr_256_6_6_torchvision.yaml")
    answer = python(*words, env=environment)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: detectron2 is not installed: pip install ")
    assert answer.stderr.count("\n") == 1 and answer.stdout == ""
