"""Genuine COCO panoptic pictures, where they lie beside the project: two steps, an evaluation, records."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers import ROOT, read_log, run

DATA = ROOT.parent / "shared" / "data" / "coco_panoptic"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_two_steps_and_an_evaluation_on_genuine_pictures(tmp_path: Path) -> None:
    words: list[object] = ["--dataset_file", "coco_panoptic", "--coco_path", DATA, "--masks"]
    words += ["--coco_panoptic_path", DATA, "--hidden_dim", 128, "--nheads", 8, "--num_queries", 50]
    words += ["--backbone_stages", 3]
    status = run(*words, "--batch_size", 18, "--epochs", 1, "--lr_drop", 1, "--output_dir", tmp_path)
    assert status == 0
    (line,) = read_log(tmp_path)
    assert math.isfinite(line["train_loss"])
    assert line["train_loss_mask"] > 0
    assert line["train_loss_dice"] > 0
    assert line["test_PQ_all"]["n"] > 40, "classes among the 304 segments of 24 pictures"
    assert set(line["test_PQ_all"]) == {"pq", "sq", "rq", "n"}
    assert len(line["test_coco_eval_masks"]) == 12
    assert len(list((tmp_path / "panoptic_eval").glob("*.png"))) == 24
