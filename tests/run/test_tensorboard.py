"""TensorBoard's files, read back."""

from pathlib import Path

import pytest

from tests.helpers import Prepared, read_log, run


def test_scalars_are_those_of_the_log(prepared: Prepared, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ["--coco_path", prepared.root, "--resume", prepared.start, "--batch_size", 2, "--epochs", 2]
    assert run(*flags, "--output_dir", tmp_path, "--tensorboard") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    log = read_log(tmp_path)
    for tag, key in (
        ("train/loss", "train_loss"),
        ("test/class_error", "test_class_error"),
        ("train/lr", "train_lr"),
    ):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [0, 1]
        assert [scalar.value for scalar in scalars] == pytest.approx([line[key] for line in log], rel=1e-5)
    precision = [scalar.value for scalar in events.Scalars("test/bbox_AP50")]
    assert precision == pytest.approx([line["test_coco_eval_bbox"][1] for line in log], rel=1e-5)
