"""The blocks of docs/forking.md run as they stand, and what they build trains a step."""

import re
from typing import Any

import pytest
import torch

from datasets.coco import CocoDetection
from engine import train_one_epoch
from models import build_model
from tests.helpers import ROOT, TINY_MODEL
from tests.reference.settings import parse
from tests.stand_in import make_batch
from util.nested_tensor import nested_tensor_from_tensor_list

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "forking.md").read_text(encoding="utf-8"), re.S)


def name_of(block: str) -> str:
    return re.findall(r"^class (\w+)", block, re.M)[0]


def test_every_part_has_a_block() -> None:
    assert [name_of(block) for block in BLOCKS] == [
        "WithSize", "WithDepth", "Greedy", "Patches", "WithoutSmallObjects"
    ]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS[:4], ids=name_of)
def test_a_block_trains_a_step(block: str) -> None:
    args = parse(f"{TINY_MODEL} --num_queries 8")
    names: dict[str, Any] = {"torch": torch, "args": args, "build_model": build_model}
    exec(block, names)
    model, criterion = names["model"], names["criterion"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = [p.detach().clone() for p in model.parameters()]
    images = nested_tensor_from_tensor_list([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    batch = images, make_batch(2, 1)[1]
    stats = train_one_epoch(model, criterion, [batch], optimizer, torch.device("cpu"), 0, 0.1)
    assert stats["loss"] > 0
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    if "loss_size" in block:
        assert stats["loss_size"] > 0
    if "pred_depth" in block:
        assert model([torch.rand(3, 64, 64)])["pred_depth"].shape == (1, 8, 1)


def test_the_data_set_leaves_small_objects_out(coco_root: Any) -> None:
    names: dict[str, Any] = {"torch": torch}
    exec(BLOCKS[4], names)
    kind = names["WithoutSmallObjects"]
    files = coco_root / "val2017", coco_root / "annotations" / "instances_val2017.json"
    all_objects, large = (cls(*files, None, False) for cls in (CocoDetection, kind))
    for (_, every), (_, few) in zip(all_objects, large, strict=True):
        assert len(few["boxes"]) == int((every["area"] >= 32**2).sum())
