"""A killed run goes on exactly with each of the flags that change how it computes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import util.amp
from tests.helpers import load, read_log
from tests.run.kill_and_resume import COMPARED, equal
from tests.run.test_resume import after_step, kill, kill_it, start

EPOCHS = 2
SETTINGS = {
    "bf16": "--amp bf16",
    "fp16": "--amp fp16",
    "averaged": "--ema 0.9",
    "recomputed": "--grad_checkpoint",
    "groups of queries": "--query_groups 3 --ema 0.9",
    "grouped": "--group_by_aspect",
    "deterministic": "--deterministic",
    "all at once": "--amp bf16 --ema 0.9 --grad_checkpoint --group_by_aspect --deterministic",
    "compiled": "--compile --ema 0.9 --backbone_stages 1 --dec_layers 1",  # few kernels to compile
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, as a run's sums depend on their number; and no setting stays."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(util.amp, "INITIAL_SCALE", 2.0**10)  # so that fp16 takes most of these few steps
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def assert_goes_on_exactly(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """Killed between two checkpoints in each epoch, started anew -> the checkpoint."""
    words = [*flags, "--epochs", EPOCHS, "--no_report"]
    assert start(root, folder / "whole", *words) == 0
    for epoch in range(EPOCHS):
        kill_it(monkeypatch, after_step(epoch, 3, kill), root, folder / "killed", *words)
    assert start(root, folder / "killed", *words) == 0
    whole, killed = (load(folder / name / "checkpoint.pth") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for key in {*COMPARED, "scaler", "ema", "ema_updates", "query_groups"} & whole.keys():
        assert equal(whole[key], killed[key]), key
    assert read_log(folder / "whole") == read_log(folder / "killed")
    return whole


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(flags, id=name, marks=[pytest.mark.slow] if name == "compiled" else [])
        for name, flags in SETTINGS.items()
    ],
)
def test_a_killed_run_goes_on_exactly(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    checkpoint = assert_goes_on_exactly(coco_root, tmp_path, monkeypatch, *flags.split())
    assert ("ema" in checkpoint) == ("--ema" in flags)
    if "fp16" in flags:
        assert checkpoint["scaler"]["_growth_tracker"] > 0, "some steps were taken"


def test_other_groups_start_the_interrupted_epoch_anew(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its batches are not those of the checkpoint."""
    words = ["--epochs", 1, "--no_report"]
    kill_it(monkeypatch, after_step(0, 3, kill), coco_root, tmp_path, *words)
    assert start(coco_root, tmp_path, *words, "--group_by_aspect") == 0
    assert "other batches" in capsys.readouterr().err
