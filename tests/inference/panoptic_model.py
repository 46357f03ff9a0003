"""A checkpoint of a panoptic model that finds something, and pictures to show it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.pictures import read_picture
from tests.mask_model import SMALL
from tests.reference.settings import build, parse
from util.nested_tensor import ByteBatch

SIZES = "--eval_scale 64 --max_size 128"
NAMES = {i: f"class {i}" for i in range(1, 20)}


def noise(path: Path, height: int = 64, width: int = 96, seed: int = 0, **options: Any) -> Path:
    """A file with smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    return path


@torch.no_grad()
def decide(model: Any, pictures: Sequence[Tensor]) -> None:
    """Change filled weights so that the queries differ in class and certainty on some pictures."""
    head = getattr(model, "detr", model).class_embed
    head.weight *= 60
    outputs = model(ByteBatch(pictures).to("cpu"))
    head.bias -= outputs["pred_logits"].mean((0, 1))  # what all queries have in common


def save_panoptic(path: Path, pictures: Sequence[Path], stuff: Collection[int]) -> Path:
    """Write a checkpoint of a small panoptic model that finds things and stuff in some pictures."""
    words = f"{SMALL} --backbone_stages 3 --dataset_file coco_panoptic --num_classes 20 {SIZES}"
    model = build(words, 0)[0].eval()
    decide(model, [read_picture(picture) for picture in pictures])
    content = {
        "args": vars(parse(words)),
        "categories": NAMES,
        "is_thing": {i: i not in stuff for i in NAMES},
    }
    torch.save({"model": model.state_dict(), **content}, path)
    return path
