"""Learning rates that a resumed run goes on with, and those that it is given anew."""

from pathlib import Path

import pytest

from tests.helpers import Prepared, load, read_log, run


def resumed(prepared: Prepared, trained: Path, out: Path, *flags: object) -> tuple[dict, list[float]]:
    """The checkpoint and the logged rates of one more epoch after `trained`'s three."""
    words = ["--coco_path", prepared.root, "--resume", trained / "checkpoint.pth", "--epochs", 4]
    assert run(*words, "--batch_size", 2, "--output_dir", out, *flags) == 0
    return load(out / "checkpoint.pth"), [line["train_lr"] for line in read_log(out)]


def test_other_rates_are_warned_of_and_not_used(
    prepared: Prepared, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load(trained / "checkpoint.pth")["optimizer"]["param_groups"]
    _, rates = resumed(prepared, trained, tmp_path, "--lr", 0.5, "--lr_drop", 7)
    said = capsys.readouterr().err
    assert "--lr 0.5 is not used: the checkpoint goes on with 0.0001; pass --override_lr" in said
    assert "--lr_drop 7 is not used" in said and "--lr_backbone" not in said
    assert rates == [pytest.approx(before[0]["lr"])]


def test_override_lr_gives_new_rates_and_keeps_the_moments(
    prepared: Prepared, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--override_lr", "--lr", 0.004, "--lr_backbone", 0.002, "--lr_drop", 3]
    after, rates = resumed(prepared, trained, tmp_path, *flags)
    assert "not used" not in capsys.readouterr().err
    assert rates == [pytest.approx(0.0004)]  # three epochs are one drop of the new schedule
    groups = after["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [0.004, 0.002]
    assert [group["lr"] for group in groups] == pytest.approx([0.0004, 0.0002])
    assert after["lr_scheduler"]["step_size"] == 3
    steps = {float(state["step"]) for state in after["optimizer"]["state"].values()}
    assert steps == {8.0}  # the counters of three epochs and one more, two steps each
