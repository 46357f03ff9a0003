"""--ema: the average by its formula, evaluated and saved beside the weights, which it leaves alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from run.ema import WeightAverage
from tests.helpers import Prepared, Refused, assert_equal, load, read_log, run, trained_flags
from tests.stand_in import weights_of
from util.errors import UserError


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def move(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)
    model[1].running_mean.add_(by)  # type: ignore[index, union-attr, operator]
    model[1].num_batches_tracked.add_(1)  # type: ignore[index, union-attr, operator]


# --- The average -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95])
def test_it_is_the_average_of_its_formula(decay: float) -> None:
    model = small_model()
    average = WeightAverage(model, decay)
    expected = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for n in range(1, 40):
        move(model, float(np.sin(n)))
        average.update(model)
        d = min(decay, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * value.double().numpy()
    for name, value in average.model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == 39
        else:
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_model_is_left_alone_and_the_average_does_not_train() -> None:
    model = small_model().train()
    average = WeightAverage(model, 0.5)
    before = weights_of(model)
    average.update(model)
    assert_equal(weights_of(model), before)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_file_without_or_with_another_average() -> None:
    average = WeightAverage(small_model(), 0.9)
    assert not average.load_state_dict({"model": {}}, "x.pth")
    with pytest.raises(UserError, match="x.pth: its averaged weights are those of another architecture"):
        average.load_state_dict({"ema": {"other": torch.zeros(1)}, "ema_updates": 3}, "x.pth")


# --- As a flag -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the fixture `trained`, with an average."""
    out = tmp_path_factory.mktemp("averaged") / "run"
    words = ["--resume", prepared.start, "--epochs", 3, "--output_dir", out, "--ema", 0.8]
    assert run(*trained_flags(prepared), *words) == 0
    return out


def test_training_itself_stays_as_it_is(trained: Path, averaged: Path) -> None:
    plain, beside = load(trained / "checkpoint.pth"), load(averaged / "checkpoint.pth")
    assert set(beside) - set(plain) == {"ema", "ema_updates"}
    for key in ("model", "optimizer", "lr_scheduler"):
        assert_equal(plain[key], beside[key])
    for one, other in zip(read_log(trained), read_log(averaged), strict=True):
        assert {name: other[name] for name in one} == one


def test_the_average_is_saved_and_evaluated(prepared: Prepared, averaged: Path, tmp_path: Path) -> None:
    checkpoint = load(averaged / "checkpoint.pth")
    assert checkpoint["ema"].keys() == checkpoint["model"].keys()
    assert checkpoint["ema_updates"] == 6
    assert any(not torch.equal(checkpoint["ema"][k], v) for k, v in checkpoint["model"].items())
    line = read_log(averaged)[-1]
    plain = {name.removeprefix("test_") for name in line if name.startswith("test_")}
    assert {f"ema_{name}" for name in plain if not name.startswith("ema_")} <= plain
    assert line["test_ema_loss"] != line["test_loss"]

    # Evaluated by hand: the average in the place of the model.
    torch.save({"model": checkpoint["ema"]}, tmp_path / "average.pth")
    words = ["--coco_path", prepared.root, "--eval", "--output_dir", tmp_path, "--no_report"]
    assert run(*words, "--resume", tmp_path / "average.pth") == 0
    by_hand = json.loads((tmp_path / "eval.json").read_text())
    for name in ("loss", "coco_eval_bbox", "class_error"):
        assert by_hand[f"test_{name}"] == line[f"test_ema_{name}"], name


def test_eval_evaluates_the_average_too(prepared: Prepared, averaged: Path, tmp_path: Path) -> None:
    words = ["--coco_path", prepared.root, "--eval", "--output_dir", tmp_path, "--no_report", "--ema", 0.8]
    assert run(*words, "--resume", averaged / "checkpoint.pth") == 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    line = read_log(averaged)[-1]
    assert figures == {name: line[name] for name in figures}
    assert {"test_coco_eval_bbox", "test_ema_coco_eval_bbox"} <= figures.keys()


def test_eval_without_an_average_is_refused(prepared: Prepared, trained: Path, refused: Refused) -> None:
    words = ["--coco_path", prepared.root, "--eval", "--ema", 0.8]
    for resume in ([], ["--resume", trained / "checkpoint.pth"]):
        refused([*words, *resume], "--eval --ema: there are no averaged weights")


def test_an_average_may_begin_or_end_with_a_resumed_run(
    prepared: Prepared, trained: Path, averaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*trained_flags(prepared), "--epochs", 4, "--no_report"]
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    assert run(*words, "--resume", trained / "checkpoint.pth", "--output_dir", begun, "--ema", 0.8) == 0
    assert "holds no averaged weights: the average begins with its weights" in capsys.readouterr().out
    assert load(begun / "checkpoint.pth")["ema_updates"] == 2
    assert run(*words, "--resume", averaged / "checkpoint.pth", "--output_dir", ended) == 0
    assert "are dropped; pass --ema to go on" in capsys.readouterr().err
    checkpoints = load(begun / "checkpoint.pth"), load(ended / "checkpoint.pth")
    assert "ema" not in checkpoints[1]
    assert_equal(checkpoints[0]["model"], checkpoints[1]["model"])
