"""Small models to exchange with transformers, and the command that does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.helpers import TINY_MODEL
from tests.reference.settings import build, parse
from tools import convert_hf

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("safetensors", reason="needs safetensors")
pytest.importorskip("timm", reason="needs timm")

WIDE = "--masks --hidden_dim 128 --nheads 8"
# Flags of small models: with transformers' own ResNet, and with timm's.
MODELS = {
    "r18": "",
    "two stages of batch norm": "--backbone_stages 2 --backbone_norm batch",
    "r34": "--backbone resnet34 --enc_layers 2 --dec_layers 1",
    "r50": "--backbone resnet50 --backbone_stages 3",
    "r101": "--backbone resnet101 --backbone_stages 3",
    "learned positions": "--position_embedding learned --num_queries 7 --dim_feedforward 40",
    "masks": f"{WIDE} --num_classes 12",
    "panoptic": f"{WIDE} --dataset_file coco_panoptic --backbone resnet50 --backbone_stages 3",
    "timm: dc5": "--backbone resnet50 --dilation",
    "timm: dc5, masks, batch norm": f"{WIDE} --backbone resnet50 --dilation --backbone_norm batch",
    "timm: groups": "--backbone resnext50_32x4d --backbone_stages 3",
    "timm: wide": "--backbone wide_resnet50_2 --backbone_stages 2",
}
NAMES = {1: "bolt", 2: "nut", 7: "gear"}


def written(path: Path, words: str = "", bare: bool = False) -> tuple[Any, Path]:
    """A small model with filled weights, and a checkpoint of it: as main.py saves it, or bare."""
    words = f"{TINY_MODEL} {words}"
    model = build(words, seed=0)[0].eval()
    state = model.state_dict()
    for number, name in enumerate(state):
        if name.endswith("num_batches_tracked"):
            state[name].fill_(100 + number)  # each its own
    content: dict[str, Any] = {"model": state}
    if not bare:
        args = vars(parse(words, "--eval_scale=96", "--max_size=160", "--set_cost_bbox=2.5"))
        args |= {"num_classes": model_of(model).class_embed.out_features - 1}
        content |= {"args": args, "categories": NAMES}
        content |= {"is_thing": {1: True, 2: False, 7: True}} if "panoptic" in words else {}
    torch.save(content, path)
    return model, path


def model_of(model: Any) -> Any:
    return model.detr if hasattr(model, "detr") else model


def convert(*words: object) -> int:
    """The command line, in this process -> its exit status."""
    return convert_hf.run([str(word) for word in words])


def loaded(folder: Path) -> Any:
    """As a user of transformers loads it, who knows nothing of this project."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder).eval()


class Exported(NamedTuple):
    """A checkpoint and the folder that was made of it; nobody may write there."""

    checkpoint: Path
    folder: Path

    @classmethod
    def within(cls, folder: Path) -> Exported:
        """Made of the smallest model."""
        _, path = written(folder / "ours.pth")
        assert convert("to-hf", path, folder / "there") == 0
        return cls(path, folder / "there")

    def copied(self, folder: Path) -> Path:
        """The same folder, to be changed."""
        folder.mkdir()
        for file in self.folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder
