"""Converted models compute what their source computes."""

from pathlib import Path

import pytest
import torch

from d2.conversion_check import compare
from d2.converter import HEADS, main, to_detectron2, to_detr
from tests.d2.test_converter import state_of
from tests.d2.values import filled
from util.errors import UserError

MODELS = {
    "boxes": "--backbone resnet18",
    "masks": "--backbone resnet18 --masks --num_classes 3",
    "learned positions": "--backbone resnet18 --position_embedding learned --pre_norm --num_classes 3",
    "DC5": "--backbone resnet50 --dilation --num_classes 3",
}


class Held(torch.nn.Module):
    """Gives values.filled a state, which it fills by detectron2's names."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        self.state = state

    def state_dict(self, *args, **kwargs):
        return self.state


def sensible(flags: str) -> dict[str, torch.Tensor]:
    """A model's state whose outputs are finite."""
    theirs = to_detectron2(state_of(flags), keep_classes=True)
    return to_detr(filled(Held(theirs)).state_dict(), keep_classes=True)


@pytest.mark.parametrize("kind", MODELS)
def test_one_image_both_ways(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = sensible(MODELS[kind])
    name = "a-dc5.pth" if kind == "DC5" else "a.pth"
    torch.save({"model": state}, tmp_path / name)
    backbone = ["--backbone", "detr"] if kind == "DC5" else []
    there = [str(tmp_path / name), str(tmp_path / f"b-{name}"), str(tmp_path / "c.pth")]
    assert main(["--source_model", there[0], "--output_model", there[1], *backbone]) == 0
    assert main(["--source_model", there[1], "--output_model", there[2], "--to", "detr"]) == 0
    assert capsys.readouterr().out.count("one random image, largest differences") == 2


def test_another_function_is_refused() -> None:
    state = sensible(MODELS["DC5"])
    with pytest.raises(UserError, match="differ by"):  # detectron2's own ResNet is not dilated here
        compare(state, to_detectron2(state), dilation=True, nheads=8, heads=HEADS)
