"""Starting from other weights: what fits is loaded, the rest is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.finetune import detector_state, load_for_finetuning
from tests.helpers import TINY_MODEL, Prepared, assert_one_line, load, run
from tests.reference.settings import build
from util.errors import UserError


def tiny(flags: str = "") -> Any:
    return build(f"{TINY_MODEL} {flags}", seed=0)[0]


def test_what_fits_is_loaded_and_the_head_starts_anew() -> None:
    old, new = tiny("--num_classes 9"), tiny("--num_classes 4")
    for parameter in new.parameters():
        parameter.data.fill_(7)
    report = load_for_finetuning(new, old.state_dict(), "old.pth")
    assert set(report.fresh) == {"class_embed.weight", "class_embed.bias"}
    assert not report.partly and not report.unused
    ours, theirs = new.state_dict(), old.state_dict()
    for name in report.loaded:
        assert torch.equal(ours[name], theirs[name]), name
    assert (ours["class_embed.weight"] == 7).all()
    assert "class_embed.weight: (10, 32) there, (5, 32) here" in str(report)


@pytest.mark.parametrize("queries", [4, 16])
def test_queries_are_carried_as_far_as_both_reach(queries: int) -> None:
    old, new = tiny(), tiny(f"--num_queries {queries}")
    new.query_embed.weight.data.fill_(7)
    report = load_for_finetuning(new, old.state_dict(), "old.pth")
    shared = min(queries, 10)
    assert torch.equal(new.query_embed.weight[:shared], old.query_embed.weight[:shared])
    assert (new.query_embed.weight[shared:] == 7).all()
    assert report.partly == {"query_embed.weight": f"the first {shared} of {queries} rows"}


def test_a_detector_starts_a_mask_model_and_the_reverse() -> None:
    widths = "--hidden_dim 128 --nheads 8 --dim_feedforward 32"
    detector, masks = tiny(widths), tiny(f"{widths} --masks")
    report = load_for_finetuning(masks, detector.state_dict(), "boxes.pth")
    assert all(not name.startswith("detr.") for name in report.fresh) and report.fresh
    report = load_for_finetuning(detector, masks.state_dict(), "masks.pth")
    assert not report.fresh
    assert set(detector_state(masks.state_dict())) == set(detector.state_dict())


def test_a_foreign_file_is_refused() -> None:
    with pytest.raises(UserError, match="--finetune other.pth: none of its tensors fits"):
        load_for_finetuning(tiny(), {"a": torch.zeros(3)}, "other.pth")


def test_fine_tuning_from_the_command_line(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    flags = ["--coco_path", prepared.root, "--epochs", 1, "--batch_size", 2, "--output_dir", tmp_path / "run"]
    start = ["--finetune", prepared.start, "--num_classes", 8, "--backbone_weights", "imagenet"]
    assert run(*flags, *start, "--lr", 0, "--lr_backbone", 0) == 0
    assert "fresh    class_embed.weight" in capsys.readouterr().out
    result, started = load(tmp_path / "run" / "checkpoint.pth"), load(prepared.start)
    assert result["epoch"] == 0
    assert torch.equal(result["model"]["query_embed.weight"], started["model"]["query_embed.weight"])
    assert not (tmp_path / "empty").exists()  # no ImageNet weights were fetched


def test_resume_and_finetune_contradict_each_other(
    prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--coco_path", prepared.root, "--resume", prepared.start, "--finetune", prepared.start]
    assert run(*flags) == 2
    assert_one_line(capsys, "--resume", "--finetune")
