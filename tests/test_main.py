"""main.py as a user runs it: train, resume, evaluate, and what that writes."""

import json
import math
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
import main
from tests.helpers import (
    CUSTOM_CATEGORIES,
    TINY,
    TRAIN_SIZES,
    assert_equal,
    command,
    files,
    load,
    read_log,
    run,
    trained_flags,
)
from tests.reference.settings import build
from util.run_log import read_evaluation

STEPS = len(TRAIN_SIZES) // 2  # an epoch's, with batches of two
CHECKPOINTS = ("checkpoint0001.pth", "checkpoint.pth")


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], list[int]]]:
    """Filled with (statistics, sizes of the batches) at each evaluation that main runs."""
    seen: list[tuple[dict[str, Any], list[int]]] = []
    evaluate = engine.evaluate

    def watched(model: Any, criterion: Any, postprocessors: Any, loader: Any, *rest: Any, **more: Any) -> Any:
        stats, evaluator = evaluate(model, criterion, postprocessors, loader, *rest, **more)
        seen.append((stats, [len(targets) for _, targets in loader]))
        return stats, evaluator

    monkeypatch.setattr(engine, "evaluate", watched)
    return seen


# --- What training writes ------------------------------------------------------------------------------


def test_training_writes_the_published_files(trained):
    written = set(files(trained))
    wanted = {"log.txt", "checkpoint.pth", "checkpoint0001.pth", "eval/latest.pth", "eval/000.pth"}
    assert wanted <= written
    dated = {path.name for path in trained.glob("checkpoint0*.pth")}
    assert dated == {"checkpoint0001.pth"}, "kept before a drop, and every 100 epochs"
    assert {path.name for path in trained.glob("eval/*.pth")} == {"latest.pth", "000.pth"}
    assert not [name for name in written if name.endswith((".part", ".tmp"))]


def test_log_has_the_published_keys(trained):
    losses = [f"{name}{layer}" for name in ("loss_ce", "loss_bbox", "loss_giou") for layer in ("", "_0")]
    common = [
        "loss",
        *losses,
        *(f"{name}_unscaled" for name in losses),
        "class_error",
        "class_error_unscaled",
    ]
    common += ["cardinality_error_unscaled", "cardinality_error_0_unscaled"]
    wanted = {f"train_{name}" for name in [*common, "lr"]}
    wanted |= {f"test_{name}" for name in [*common, "coco_eval_bbox"]} | {"epoch", "n_parameters"}
    log = read_log(trained)
    assert [set(line) for line in log] == [wanted] * 3
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert [len(line["test_coco_eval_bbox"]) for line in log] == [12] * 3
    numbers = [value for line in log for name, value in line.items() if name != "test_coco_eval_bbox"]
    assert all(type(value) in (int, float) and math.isfinite(value) for value in numbers)


def test_learning_rate_drops_after_lr_drop_epochs(trained):
    assert [line["train_lr"] for line in read_log(trained)] == pytest.approx([1e-4, 1e-4, 1e-5])
    rates = [[g["lr"] for g in load(trained / name)["optimizer"]["param_groups"]] for name in CHECKPOINTS]
    assert np.array(rates) == pytest.approx(np.array([[1e-5, 1e-6], [1e-5, 1e-6]]))


@pytest.mark.parametrize("name, epoch", list(zip(CHECKPOINTS, (1, 2), strict=True)))
def test_checkpoints_hold_what_continues_a_run(trained, name, epoch):
    checkpoint = load(trained / name)
    assert {"model", "optimizer", "lr_scheduler", "epoch", "args"} <= set(checkpoint)
    assert checkpoint["epoch"] == epoch
    assert checkpoint["lr_scheduler"]["last_epoch"] == epoch + 1
    assert checkpoint["categories"] == CUSTOM_CATEGORIES
    steps = {float(state["step"]) for state in checkpoint["optimizer"]["state"].values()}
    assert steps == {STEPS * (epoch + 1.0)}


def test_arguments_in_a_checkpoint_are_plain(trained):
    args = load(trained / "checkpoint.pth")["args"]
    assert type(args) is dict
    flags = vars(main.get_args_parser().parse_args([]))
    assert set(flags) <= set(args)
    assert (args["hidden_dim"], args["device"], args["num_classes"]) == (32, "cpu", 6)
    assert args["eval_batch_size"] == args["batch_size"] == 2, "what was left open is decided"
    assert json.loads(json.dumps(args)) == args


def test_log_counts_the_parameters_that_train(trained):
    model = build(f"{TINY} --num_classes 6", seed=0)[0]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {line["n_parameters"] for line in read_log(trained)} == {count}


def test_training_moves_every_parameter_that_trains_and_no_other(prepared, trained):
    before, after = load(prepared.start)["model"], load(trained / "checkpoint.pth")["model"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    model = build(f"{TINY} --num_classes 6", seed=0)[0]
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_nothing_is_written_without_an_output_folder(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(files(prepared.root))
    assert run("--coco_path", prepared.root, "--epochs", 1) == 0
    assert files(tmp_path) == {} and set(files(prepared.root)) == before


# --- Resume and evaluation -----------------------------------------------------------------------------


def test_a_resumed_run_ends_as_the_run_that_was_not_interrupted(prepared, trained, tmp_path):
    """Weights, optimizer, schedule and figures, bit for bit, with dropout and augmentation."""
    first = trained / "checkpoint0001.pth"
    flags = [*trained_flags(prepared), "--epochs", 3, "--output_dir", tmp_path]
    assert run(*flags, "--resume", first) == 0
    assert read_log(tmp_path) == read_log(trained)[2:]
    ours, theirs = load(tmp_path / "checkpoint.pth"), load(trained / "checkpoint.pth")
    for name in ("model", "optimizer", "lr_scheduler", "epoch"):
        assert_equal(ours[name], theirs[name])


def test_warm_up_asked_for_at_a_resume_never_exceeds_the_learning_rate(prepared, trained, tmp_path):
    flags = ["--coco_path", prepared.root, "--epochs", 4, "--output_dir", tmp_path, "--warmup_steps", 4]
    assert run(*flags, "--resume", trained / "checkpoint0001.pth") == 0
    assert max(line["train_lr"] for line in read_log(tmp_path)) <= 1e-5 * (1 + 1e-6)


def test_a_run_saved_in_its_warm_up_reaches_its_learning_rate_without_the_flag(prepared, tmp_path):
    flags = ["--coco_path", prepared.root, "--output_dir", tmp_path]
    assert run(*flags, "--epochs", 1, "--warmup_steps", 4) == 0
    assert run(*flags, "--epochs", 4, "--resume", tmp_path / "checkpoint.pth") == 0
    assert read_log(tmp_path)[-1]["train_lr"] == pytest.approx(1e-4)


def test_evaluation_gives_the_figures_of_the_log(prepared, trained, tmp_path, evaluations, capsys):
    flags = ["--coco_path", prepared.root, "--eval", "--output_dir", tmp_path]
    assert run(*flags, "--resume", trained / "checkpoint.pth") == 0
    ((stats, _),) = evaluations
    last = read_log(trained)[-1]
    assert {f"test_{name}": value for name, value in stats.items()} == {
        name: value for name, value in last.items() if name.startswith("test_")
    }
    assert 0.05 < stats["coco_eval_bbox"][0] < 0.95, "else little is tested"
    assert f"maxDets=100 ] = {stats['coco_eval_bbox'][0]:.3f}" in capsys.readouterr().out

    assert not {"log.txt", "checkpoint.pth"} & set(files(tmp_path)), "nothing was trained"
    ours, latest = read_evaluation(tmp_path / "eval.pth"), read_evaluation(trained / "eval" / "latest.pth")
    assert ours["precision"].shape == (10, 101, len(CUSTOM_CATEGORIES), 4, 3)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, latest[name])
    first = read_evaluation(trained / "eval" / "000.pth")
    assert not np.array_equal(first["scores"], latest["scores"]), "latest is not the first epoch's"


def test_evaluation_needs_no_training_data(prepared, trained, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(prepared.root, root, ignore=shutil.ignore_patterns("*train2017*"))
    assert run("--coco_path", root, "--eval", "--resume", trained / "checkpoint.pth") == 0


@pytest.mark.parametrize("size", [1, 3, 4])
def test_figures_do_not_depend_on_the_evaluation_batch_size(prepared, trained, size, evaluations):
    """All pictures have one size: nothing is padded."""
    flags = ["--coco_path", prepared.root, "--eval", "--eval_batch_size", size]
    assert run(*flags, "--resume", trained / "checkpoint.pth") == 0
    ((stats, sizes),) = evaluations
    assert sizes == {1: [1, 1, 1, 1], 3: [3, 1], 4: [4]}[size]
    assert stats["coco_eval_bbox"] == pytest.approx(read_log(trained)[-1]["test_coco_eval_bbox"], abs=1e-6)


def test_train_resume_and_evaluate_as_typed(coco_root, tmp_path):
    """From scratch, with flags from a recipe."""
    out = tmp_path / "a run"
    recipe = tmp_path / "tiny.args"
    words = TINY.split()
    lines = ["# It's a recipe: what follows a # is left out.", "", " ".join(words[:6]), *_pairs(words[6:])]
    lines += [f"--coco_path '{coco_root}'   # several words a line", f'--output_dir "{out}"']
    recipe.write_text("\n".join(lines) + "\n")

    answer = command(f"@{recipe}", "--epochs", 2)
    assert (answer.returncode, answer.stderr) == (0, "")
    for line in ("Epoch: [1]", "1  bolt", "5  gear", "device", "seed", "Average Precision"):
        assert line in answer.stdout, line
    assert [line["epoch"] for line in read_log(out)] == [0, 1]
    checkpoint = load(out / "checkpoint.pth")
    assert len(checkpoint["model"]["class_embed.bias"]) == max(CUSTOM_CATEGORIES) + 2

    answer = command(f"@{recipe}", "--epochs", 3, "--resume", out / "checkpoint.pth")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "Epoch: [2]" in answer.stdout and "Epoch: [1]" not in answer.stdout
    log = read_log(out)
    assert [line["epoch"] for line in log] == [0, 1, 2]

    answer = command(f"@{recipe}", "--eval", "--resume", out / "checkpoint.pth")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("Average Recall") == 6
    assert (out / "eval.pth").is_file() and read_log(out) == log


def _pairs(words: list[str]) -> Iterator[str]:
    return (" ".join(words[i : i + 2]) for i in range(0, len(words), 2))


# --- Reproducibility -----------------------------------------------------------------------------------


def test_equal_seeds_give_equal_runs_whoever_loads_the_images(coco_root, tmp_path):
    """With dropout and augmentation; two epochs, so that workers live on from one to the next."""

    def result(name: str, *words: object) -> tuple[str, dict[str, Tensor]]:
        out = tmp_path / name
        assert run("--coco_path", coco_root, "--epochs", 2, "--output_dir", out, *words) == 0
        return (out / "log.txt").read_text(), load(out / "checkpoint.pth")["model"]

    log, weights = result("first")
    for name, words in (("again", []), ("workers", ["--num_workers", 2])):
        other_log, other_weights = result(name, *words)
        assert_equal(other_weights, weights)
        assert other_log == log
    assert result("other seed", "--seed", 43)[0] != log
