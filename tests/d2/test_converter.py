"""d2/converter.py without detectron2: every tensor comes back bit for bit, and none is lost in silence."""

import argparse
import functools
from pathlib import Path

import pytest
import torch

from d2.converter import convert, get_parser, main, to_detectron2, to_detr
from main import get_args_parser
from models import build_model
from tests.helpers import ROOT, assert_equal, assert_one_line, python
from util.checkpoint_file import load_checkpoint, model_state
from util.coco_names import COCO_PANOPTIC, COCO_THINGS
from util.errors import UserError

SMALL = (
    "--device cpu --backbone_weights none --hidden_dim 128 --dim_feedforward 32 --enc_layers 1 "
    "--dec_layers 1 --num_queries 5"
)


@functools.cache
def state_of(flags: str) -> dict[str, torch.Tensor]:
    """A model's state of random numbers, in float32, those of frozen norms too."""
    model = build_model(get_args_parser().parse_args(f"{SMALL} {flags}".split()))[0]
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=draw) for name, tensor in model.state_dict().items()}


MODELS = {
    "boxes": "--backbone resnet50 --num_classes 3",
    "masks": "--backbone resnet50 --masks --num_classes 3",
    "learned positions": "--backbone resnet18 --position_embedding learned --num_classes 3",
    "masks, pre-norm": "--backbone resnet101 --masks --pre_norm --num_classes 7",
    "COCO": "--backbone resnet18",
    "COCO's ids in a panoptic model": "--backbone resnet18 --masks --dataset_file coco_panoptic",
}


@pytest.mark.parametrize("backbone", ["resnet", "detr"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_round_trip_changes_no_bit(kind: str, backbone: str) -> None:
    state = state_of(MODELS[kind])
    converted = to_detectron2(state, backbone)
    back = to_detr(converted)
    assert list(back) == list(state)
    rows = {92: sorted(COCO_THINGS) + [91], 251: sorted(COCO_PANOPTIC) + [250]}
    for name, tensor in state.items():
        used = rows.get(len(tensor), slice(None)) if "class_embed" in name else slice(None)
        assert torch.equal(back[name][used], tensor[used]), name
    assert_equal(to_detectron2(back, backbone), converted)
    assert_equal(to_detr(to_detectron2(state, backbone, keep_classes=True), keep_classes=True), state)


def test_names_are_those_of_detectron2() -> None:
    converted = to_detectron2(state_of(MODELS["masks"]))
    names = {
        "detr.detr.backbone.0.backbone.stem.conv1.weight",
        "detr.detr.backbone.0.backbone.stem.conv1.norm.running_mean",
        "detr.detr.backbone.0.backbone.res2.0.shortcut.weight",
        "detr.detr.backbone.0.backbone.res5.2.conv3.norm.bias",
        "detr.detr.query_embed.weight",
        "detr.bbox_attention.q_linear.weight",
        "detr.mask_head.lay1.weight",
    }
    assert names <= set(converted)
    learned = to_detectron2(state_of(MODELS["learned positions"]))
    assert {"detr.backbone.1.row_embed.weight", "detr.backbone.1.col_embed.weight"} <= set(learned)
    own = to_detectron2(state_of(MODELS["boxes"]), "detr")
    assert "detr.backbone.0.backbone.body.layer1.0.downsample.1.weight" in own


def test_a_box_model_to_start_a_mask_model_from() -> None:
    boxes, masks = state_of(MODELS["boxes"]), state_of(MODELS["masks"])
    names = set(to_detectron2(masks))
    detector = set(to_detectron2(boxes, masks=True))
    assert detector < names
    assert all(name.startswith(("detr.bbox_attention.", "detr.mask_head.")) for name in names - detector)
    assert set(to_detectron2(masks, masks=True)) == names


def test_coco_classes_become_contiguous_and_spread_again() -> None:
    state = state_of(MODELS["COCO"])
    converted = to_detectron2(state)
    head, wanted = converted["detr.class_embed.bias"], state["class_embed.bias"]
    assert len(head) == 81
    assert head[[0, 11, 79, 80]].equal(wanted[[1, 13, 90, 91]])
    spread = to_detr(converted)
    logits = spread["class_embed.weight"] @ torch.randn(128) + spread["class_embed.bias"]
    unused = [i for i in range(91) if i not in COCO_THINGS]
    assert logits.softmax(0)[unused].max() == 0


def test_what_is_there_for_training_is_no_weight_of_the_model() -> None:
    state = state_of(MODELS["boxes"])
    beside = {"criterion.empty_weight": torch.ones(4), "other_queries.weight": torch.ones(15, 128)}
    assert_equal(to_detr({**to_detectron2(state), **beside}), state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone.0.body.stages_0.blocks.0.weight", "no tensor of a torchvision ResNet"),
        ("backbone.0.body.bn1.num_batches_tracked", "ordinary batch norms"),
        ("backbone.2.weight", "no tensor of a DETR"),
        ("pred_head.weight", "no tensor of a DETR"),
    ],
)
def test_what_has_no_counterpart_is_refused(name: str, message: str) -> None:
    state = {**state_of("--backbone resnet18 --num_classes 3"), name: torch.zeros(1)}
    with pytest.raises(UserError, match=message):
        to_detectron2(state)


def test_unknown_tensors_of_the_wrapper_are_refused() -> None:
    state = to_detectron2(state_of("--backbone resnet18 --num_classes 3"))
    with pytest.raises(UserError, match="no tensor of the wrapper's model"):
        to_detr({**state, "roi_heads.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no tensor of a torchvision ResNet"):
        to_detr({**state, "detr.backbone.0.backbone.fpn_lateral2.weight": torch.zeros(1)})


def test_the_direction_has_to_fit() -> None:
    state = state_of("--backbone resnet18 --num_classes 3")
    with pytest.raises(UserError, match="in detectron2's form already"):
        to_detectron2(to_detectron2(state))
    with pytest.raises(UserError, match="not in detectron2's form"):
        to_detr(state)


def files(tmp_path: Path, name: str, **more: object) -> list[str]:
    state = state_of("--backbone resnet50 --num_classes 3")
    torch.save({"model": state, **more}, tmp_path / name)
    return ["--source_model", str(tmp_path / name), "--output_model", str(tmp_path / "out.pth")]


@pytest.mark.parametrize("by", ["args", "name"])
def test_a_dc5_model_is_not_given_to_detectron2s_resnet(tmp_path: Path, by: str) -> None:
    if by == "args":
        flags = files(tmp_path, "a.pth", args=argparse.Namespace(dilation=True))
    else:
        flags = files(tmp_path, "detr-r50-dc5-f0fb7ef5.pth".replace("-f0fb7ef5", ""))
    with pytest.raises(UserError, match="--backbone detr"):
        convert(get_parser().parse_args(flags))
    assert not (tmp_path / "out.pth").exists()


def test_the_command_writes_a_file_that_comes_back(tmp_path: Path) -> None:
    python(ROOT / "d2" / "converter.py", *files(tmp_path, "a.pth"), cwd=tmp_path, check=True)
    converted, back = str(tmp_path / "out.pth"), str(tmp_path / "back.pth")
    assert main(["--source_model", converted, "--output_model", back, "--to", "detr"]) == 0
    assert_equal(model_state(load_checkpoint(back)), model_state(load_checkpoint(tmp_path / "a.pth")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_model", "out.pth"], "--source_model: which file"),
        (["--source_model", "none.pth", "--output_model", "out.pth"], "none.pth: there is no such file"),
        (["--source_model", "none.pth", "--output_model", "no/out.pth"], "there is no folder"),
    ],
)
def test_mistakes_are_one_line_each(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(flags) == 2
    assert_one_line(capsys, message)
