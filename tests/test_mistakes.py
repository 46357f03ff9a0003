"""A user's mistakes on main.py's command line: one line on stderr, exit status 2, nothing half written."""

import errno
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from tests.helpers import (
    FIRST_ID,
    TINY,
    TRAIN_SIZES,
    command,
    files,
    load,
    python,
    run,
)
from util.errors import exit_status


def edited(
    coco_root: Path, folder: Path, edit: Callable[[dict[str, Any]], Any], split: str = "train"
) -> Path:
    """A copy of the tiny data with one of its annotation files changed."""
    shutil.copytree(coco_root, folder)
    path = folder / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """An output folder with the records of an earlier run: no mistake changes them.

    A run that has begun when it fails has set its predecessor's records aside, under another name.
    """
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("log.txt", "checkpoint.pth", "args.json"):
        (folder / name).write_text(f"{name} of an earlier run")
    before = files(folder)
    yield folder
    after = files(folder)
    begun = "log.1.txt" in after
    assert {
        name: after.get(re.sub(r"^(log|args)\b", r"\1.1", name) if begun else name) for name in before
    } == before
    assert begun or after.keys() == before.keys(), "nothing is half written"


# Words, and what the line must name; {tmp} is an empty folder but for flat/pictures, {start} a checkpoint.
MISTAKES = {
    "unknown data set": ("--dataset_file voc", "--dataset_file voc", "coco", "shapes"),
    "no folder named": ("--coco_path=", "--coco_path", "annotations/"),
    "folder missing": ("--coco_path {tmp}/nowhere", "--coco_path", "nowhere"),
    "another layout": ("--coco_path {tmp}/flat", "train2017", "instances_train2017.json", "pictures"),
    "checkpoint missing": ("--resume {tmp}/none.pth", "none.pth"),
    "nothing to go on from": ("--resume auto --output_dir=", "--resume auto"),
    "another width": ("--resume {start} --hidden_dim 64", "--resume", "(32,", "(64,", "transformer."),
    "fewer layers": ("--resume {start} --dec_layers 1", "--resume", "transformer.decoder.layers.1."),
    "more layers": ("--resume {start} --enc_layers 2", "transformer.encoder.layers.1."),
    "too few classes": ("--num_classes 1", "category id ", "--num_classes 1,", "--num_classes 6"),
    "unknown backbone": ("--backbone vgg16", "--backbone vgg16", "resnet50"),
    "undilatable": ("--dilation --backbone_stages 4", "--dilation", "resnet18"),
    "unknown device": ("--device gpu", "--device gpu", "cuda"),
    "no width for masks": ("--masks --hidden_dim 64 --backbone_stages 4", "multiple of 128"),
    "no evaluation batch": ("--eval_batch_size 0", "--eval_batch_size"),
    "negative workers": ("--num_workers -1", "--num_workers"),
    "heads that do not divide": ("--nheads 5", "--nheads"),
    "no decoder": ("--dec_layers 0", "--dec_layers"),
    "negative seed": ("--seed -1", "--seed"),
}
IN_TRAINING = {
    "no batch": ("--batch_size 0", "--batch_size"),
    "batch too large": ("--batch_size 6", "--batch_size", "5 images"),
    "more batches a step than there are": ("--accum_steps 3", "--accum_steps"),
    "no epoch to drop at": ("--lr_drop 0", "--lr_drop"),
    "no size": ("--scales 0", "--scales"),
    "an average of nothing": ("--ema 1", "--ema"),
    "an average of the opposite": ("--ema -0.1", "--ema"),
    "an average of no number": ("--ema nan", "--ema"),
    "two starts": ("--resume {start} --finetune {start}", "--resume", "--finetune"),
    "frozen boxes without masks": ("--frozen_weights x.pth", "pass --masks"),
    "frozen boxes missing": ("--masks --frozen_weights x.pth", "x.pth"),
    "groups of frozen queries": (
        "--masks --frozen_weights {start} --query_groups 2",
        "--query_groups trains a detector, and --frozen_weights freezes it",
    ),
    "recomputed graphs": ("--compile --grad_checkpoint", "--grad_checkpoint", "--compile"),
    "no folder for TensorBoard": ("--tensorboard --output_dir=", "--tensorboard", "--output_dir"),
}


CASES = [*((name, "train") for name in [*MISTAKES, *IN_TRAINING]), *((name, "evaluate") for name in MISTAKES)]


@pytest.mark.parametrize("name, how", CASES)
def test_mistakes_are_reported_in_one_line(name, how, prepared, out, tmp_path, refused):
    words, *fragments = {**MISTAKES, **IN_TRAINING}[name]
    (tmp_path / "flat" / "pictures").mkdir(parents=True)
    given = words.format(tmp=tmp_path, start=prepared.start).split()
    if how == "evaluate":
        given.append("--eval")
        fragments = [fragment.replace("train2017", "val2017") for fragment in fragments]
    refused(["--coco_path", prepared.root, "--epochs", 1, "--output_dir", out, *given], *fragments)


def test_a_line_end_in_a_name_makes_no_second_line(coco_root, refused):
    refused(["--coco_path", coco_root, "--resume", "a\nb.pth"], "a b.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_as_typed(coco_root):
    answer = command("--coco_path", coco_root, "--device", "cuda:1")
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: --device cuda:1") and "--device cpu" in line


def test_an_annotation_file_that_is_no_json(coco_root, tmp_path, out, refused):
    root = edited(coco_root, tmp_path / "data", lambda content: None)
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    refused(["--coco_path", root, "--output_dir", out], "instances_val2017.json", "line 1")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_named(workers, coco_root, tmp_path, out, refused):
    root = edited(coco_root, tmp_path / "data", lambda content: None)
    name = f"{FIRST_ID['train']:012d}.jpg"
    (root / "train2017" / name).unlink()
    flags = ["--coco_path", root, "--batch_size", len(TRAIN_SIZES), "--num_workers", workers]
    refused([*flags, "--output_dir", out], name, f"image id {FIRST_ID['train']}")


def of_category(category: int) -> Callable[[dict[str, Any]], None]:
    """Gives the first object a category of its own."""

    def edit(content: dict[str, Any]) -> None:
        content["categories"].append({"id": category, "name": "gap"})
        content["annotations"][0]["category_id"] = category

    return edit


UNCHECKED = ["--check_data", "off"]
NEGATIVE = (of_category(-3), UNCHECKED, ["category id -3 (gap), and ids begin at 0"])
HUGE = (of_category(10**9), UNCHECKED, ["category ids go up to 1000000000"])
NONE = ["instances_train2017.json", "no image has any object", "image_id"]


@pytest.mark.parametrize(
    ("split", "edit", "flags", "fragments"),
    [
        ("train", lambda c: c["annotations"][0].update(category_id=9), ["--num_classes", 6], ["9", "--num_"]),
        ("train", lambda c: c.update(annotations=[]), [], NONE),
        *(("train", *NEGATIVE), ("train", *HUGE), ("val", *NEGATIVE), ("val", *HUGE)),
    ],
    ids=["undeclared", "no object", "negative", "huge", "negative, evaluated", "huge, evaluated"],
)
def test_annotations_that_no_model_learns_from_are_reported(
    split, edit, flags, fragments, coco_root, tmp_path, out, refused
):
    root = edited(coco_root, tmp_path / "data", edit, split)
    how = ["--eval"] if split == "val" else []
    refused(["--coco_path", root, "--output_dir", out, *flags, *how], *fragments)


def test_evaluating_weights_that_are_not_finite_is_reported(prepared, tmp_path, out, refused):
    state = load(prepared.start)["model"]
    state["bbox_embed.layers.2.bias"].fill_(math.nan)
    torch.save({"model": state}, tmp_path / "nan.pth")
    words = ["--coco_path", prepared.root, "--eval", "--resume", tmp_path / "nan.pth", "--output_dir", out]
    refused(words, "not finite")


def test_resuming_with_another_set_of_trained_parameters_is_reported(prepared, trained, out, refused):
    flags = ["--coco_path", prepared.root, "--epochs", 4, "--lr_backbone", 0, "--output_dir", out]
    refused([*flags, "--resume", trained / "checkpoint.pth"], "--lr_backbone")


def test_unknown_flags_and_recipes_end_with_status_2(capsys):
    for word in ("--learning_rate", "@no/such.args"):
        assert run(word) == 2
        assert word.strip("@") in capsys.readouterr().err


COMMANDS = (
    "doctor doctor.convert datasets.check datasets.convert datasets.panoptic_eval datasets.shapes"
    " util.plot_utils"
)


@pytest.mark.parametrize("module", COMMANDS.split())
def test_an_unknown_flag_of_any_command_is_reported_in_one_line(module):
    answer = python("-m", module, "some", "thing", "--no_such_flag")
    (line,) = answer.stderr.splitlines()
    assert answer.returncode == 2 and line.startswith("error: ") and line.endswith("; see --help")


@pytest.mark.parametrize(
    "content, message",
    [
        ("--epochs 1".encode("utf-16"), "no UTF-8 text"),
        ("# Wörter".encode("latin-1"), "no UTF-8 text"),
        (b"@{recipe}", "includes itself"),
        (b"@recipes/no_such.args", "no recipe recipes/no_such.args"),
        ("--batch_size 0".encode("utf-8-sig"), "--batch_size"),  # what stands in front of it is left out
    ],
    ids=["utf-16", "latin-1", "itself", "missing", "byte order mark"],
)
def test_recipes_that_cannot_be_read(content, message, tmp_path, refused):
    recipe = tmp_path / "a.args"
    recipe.write_bytes(content.replace(b"{recipe}", str(recipe).encode()))
    refused([f"@{recipe}"], message)


def test_what_the_system_says_of_a_file_is_reported(coco_root, monkeypatch, refused):
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "some/file")

    monkeypatch.setattr("run.settings.read_categories", denied)
    refused(["--coco_path", coco_root], "some/file: permission denied")
    refused([], "some/file: permission denied", run=lambda: exit_status(denied))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which Linux has")
@pytest.mark.parametrize("program", [["main.py", *TINY.split(), "--eval", "--coco_path"], ["-m", "doctor"]])
def test_what_cannot_be_printed_is_reported(program, coco_root):
    with open("/dev/full", "w") as full:
        streams: dict[str, Any] = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        answer = python(*program, coco_root, **streams)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1] == "error: standard output: no space left on device"


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(main.UserError, match="nowhere"):
        run("--coco_path", tmp_path / "nowhere", "--debug")


# --- What goes wrong on the way --------------------------------------------------------------------------


def test_a_model_that_is_used_otherwise_than_trained_is_reported(prepared, trained, tmp_path, capsys):
    def permuted(content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], ("B OLT", "gear", "nut"), strict=True):
            category["name"] = name

    checkpoint = trained / "checkpoint.pth"
    evaluate = ["--eval", "--resume", checkpoint]
    assert run("--coco_path", prepared.root, *evaluate) == 0
    assert "warning" not in capsys.readouterr().err
    other = edited(prepared.root, tmp_path / "other", permuted, "val")
    assert run("--coco_path", other, *evaluate, "--nheads", 8, "--eval_scale", 96) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 3
    assert f"--nheads is 8, and {checkpoint} was trained with 4" in said[0]
    assert "--eval_scale is 96" in said[1]
    assert "category 2 is 'gear' in the data and 'nut'" in said[2] and "1 more differ" in said[2]
    assert run("--coco_path", prepared.root, "--eval") == 0
    assert "--eval without --resume" in capsys.readouterr().err


def test_a_finished_checkpoint_asks_for_more_epochs(prepared, trained, refused):
    before = files(trained)
    words = ["--coco_path", prepared.root, "--resume", trained / "checkpoint.pth", "--output_dir", trained]
    refused([*words, "--epochs", 3], "3 epochs", "--epochs", "--eval")
    assert files(trained) == before


def test_a_loss_that_is_not_finite_keeps_its_batch(prepared, tmp_path, refused):
    kept = tmp_path / "run" / "crash_rank0.pth"
    flags = ["--coco_path", prepared.root, "--batch_size", 2, "--epochs", 3, "--output_dir", kept.parent]
    words = [*flags, "--lr", 1e30, "--lr_backbone", 1e30]
    refused(words, "not finite", "image ids 10", "--lr", str(kept))
    report = load(kept)
    assert len(report["image_ids"]) == 2 and report["learning_rates"] == [1e30, 1e30]
    assert report["samples"][0].shape[:2] == (2, 3) and len(report["targets"]) == 2
    assert "gradient_norm" in report


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
)
def test_out_of_memory_names_shape_and_images(error, coco_root, out, refused, monkeypatch):
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("models.detr.DETR.forward", full)
    words = ["--coco_path", coco_root, "--batch_size", 2, "--epochs", 1, "--output_dir", out]
    refused(words, "out of memory", "(2, 3, ", "image ids 10", "--batch_size", "--max_size")


def test_other_errors_keep_their_traceback(coco_root, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("models.detr.DETR.forward", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run("--coco_path", coco_root, "--batch_size", 2, "--epochs", 1)


def test_few_steps_from_scratch_are_advised_against(prepared, coco_root, capsys):
    flags = ["--coco_path", coco_root, "--batch_size", 2, "--epochs", 1]
    assert run(*flags) == 0
    assert "consider --finetune" in capsys.readouterr().out
    assert run(*flags, "--finetune", prepared.start) == 0
    assert "consider --finetune" not in capsys.readouterr().out


def test_more_objects_than_queries_are_warned_of(coco_root, capsys):
    assert run("--coco_path", coco_root, "--batch_size", 2, "--epochs", 1, "--num_queries", 2) == 0
    assert "an image holds 3 objects, the model can find 2: raise --num_queries" in capsys.readouterr().err
