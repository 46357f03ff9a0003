"""Damaged checkpoints, full disks and folders that cannot be written: a clear message, and nothing lost."""

import errno
import io
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import load, python, read_log, run
from tests.run.kill_and_resume import COMPARED, equal
from util.checkpoint_file import load_checkpoint, save_checkpoint
from util.errors import UserError

FLAGS = ("--backbone_stages", 2, "--batch_size", 1, "--dropout", 0, "--save_every_steps", 3)
STEPS = 5  # an epoch's


def start(root: Path, folder: Path, *more: object) -> int:
    return run(*FLAGS, "--coco_path", root, "--output_dir", folder, *more)


@pytest.fixture(scope="module")
def finished(coco_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs: `checkpoint.pth` was written after the second, `checkpoint.1.pth` inside it."""
    folder = tmp_path_factory.mktemp("finished")
    assert start(coco_root, folder, "--epochs", 2) == 0
    return folder


# --- Damaged and foreign files -------------------------------------------------------------------------


class RunsCode:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, made: str):
        self.made = made

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (self.made,)


def _with_a_flipped_bit(content: bytes, marker: Path) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def _that_runs_code(content: bytes, marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.ones(2)}, "epoch": RunsCode(str(marker))}, buffer)
    return buffer.getvalue()


# Of other damages and of foreign files, tests/util/test_checkpoint_file.py
DAMAGES: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda content, marker: b"",
    "cut off": lambda content, marker: content[: len(content) // 2],
    "a flipped bit": _with_a_flipped_bit,
    "a checkpoint that runs code": _that_runs_code,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_touched(coco_root, finished, tmp_path, refused, damage):
    path, marker = tmp_path / "broken.pth", tmp_path / "marker"
    path.write_bytes(DAMAGES[damage]((finished / "checkpoint.pth").read_bytes(), marker))
    refused([coco_root, tmp_path / "run", "--resume", path, "--epochs", 3], str(path), run=start)
    assert not marker.exists(), "code has run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_auto_goes_on_from_the_version_before_a_damaged_one(coco_root, finished, tmp_path, capsys, damage):
    folder, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(finished, folder)
    newest = folder / "checkpoint.pth"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes(), marker))
    broken = newest.read_bytes()
    capsys.readouterr()
    assert start(coco_root, folder, "--resume", "auto", "--epochs", 2) == 0
    (named,) = (line for line in capsys.readouterr().err.splitlines() if "checkpoint" in line)
    assert str(newest) in named and "the one before it" in named
    assert not marker.exists(), "code has run"
    one, other = load(newest), load(finished / "checkpoint.pth")
    assert all(equal(one[key], other[key]) for key in COMPARED)
    assert read_log(folder) == read_log(finished)
    assert (folder / "checkpoint.damaged.pth").read_bytes() == broken


def test_auto_refuses_where_every_version_is_damaged(coco_root, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("checkpoint.pth", "checkpoint.1.pth"):
        (folder / name).write_bytes(b"")
    log = (folder / "log.txt").read_bytes()
    capsys.readouterr()
    assert start(coco_root, folder, "--resume", "auto", "--epochs", 2) == 2
    assert "is readable" in capsys.readouterr().err
    assert (folder / "log.txt").read_bytes() == log


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    path, expected = (
        tmp_path / "small.pth",
        {"model": {"w": torch.randn(40, 8)}, "epoch": 3, "note": "x" * 99},
    )
    save_checkpoint(expected, path)
    content = path.read_bytes()
    start_of_weights = content.index(expected["model"]["w"].numpy().tobytes())  # type: ignore[index]
    weights = range(start_of_weights, start_of_weights + 40 * 8 * 4)
    draw = random.Random(0)
    refused_weights = 0
    places = [*draw.sample(weights, 150), *draw.sample(range(len(content)), 350)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path)
        except UserError as error:
            assert str(path) in str(error)
            refused_weights += place in weights
        else:
            assert equal(found, expected), f"byte {place} of {len(content)}"
    assert refused_weights == sum(place in weights for place in places)


# --- Whole files with entries of another form -----------------------------------------------------------


def _of_sgd(checkpoint: dict[str, Any]) -> None:
    """As SGD with momentum would have trained the same parameters."""
    state, groups = checkpoint["optimizer"]["state"], checkpoint["optimizer"]["param_groups"]
    weights = [
        [torch.nn.Parameter(torch.zeros_like(state[i]["exp_avg"])) for i in group["params"]]
        for group in groups
    ]
    optimizer = torch.optim.SGD([{"params": group} for group in weights], lr=0.1, momentum=0.9)
    for weight in sum(weights, []):
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    checkpoint["optimizer"] = optimizer.state_dict()


def _each_state(edit: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Edit what the optimizer keeps of each parameter."""

    def edit_all(checkpoint: dict[str, Any]) -> None:
        for state in checkpoint["optimizer"]["state"].values():
            edit(state)

    return edit_all


def _one_moment_too_short(checkpoint: dict[str, Any]) -> None:
    next(iter(checkpoint["optimizer"]["state"].values()))["exp_avg_sq"] = torch.zeros(1)


def _with_amsgrad(checkpoint: dict[str, Any]) -> None:
    for group in checkpoint["optimizer"]["param_groups"]:
        group["amsgrad"] = True


def _momentum_alone(state: dict[str, Any]) -> None:
    moment = state["exp_avg"]
    state.clear()
    state["momentum_buffer"] = moment


ENTRIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an optimizer of another kind": (_of_sgd, "not AdamW"),
    "an optimizer that is a list": (lambda c: c.update(optimizer=[1]), "not AdamW"),
    "no optimizer": (lambda c: c.update(optimizer=None), "not AdamW"),
    "states in a list": (lambda c: c["optimizer"].update(state=[1]), "not AdamW"),
    "no groups": (lambda c: c["optimizer"].pop("param_groups"), "not AdamW"),
    "momentum alone": (_each_state(_momentum_alone), "moments"),
    "moments of other shapes": (_each_state(lambda s: s.update(exp_avg=torch.zeros(3))), "moments"),
    "one moment too short": (_one_moment_too_short, "moments"),
    "moments without steps": (_each_state(lambda s: s.pop("step")), "moments"),
    "a moment missing": (_with_amsgrad, "moments"),
    "no schedule": (lambda c: c.update(lr_scheduler=None), "`lr_scheduler`"),
    "an epoch of None": (lambda c: c.update(epoch=None), "`epoch`"),
    "an epoch in words": (lambda c: c.update(epoch="1"), "`epoch`"),
    "half an epoch": (lambda c: c.update(epoch=0.5), "`epoch`"),
    "an epoch before all": (lambda c: c.update(epoch=-2), "`epoch`"),
    "a step of None": (lambda c: c.update(step=None), "`step`"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_training_does_not_go_on_from_an_entry_of_another_form(coco_root, finished, tmp_path, refused, name):
    edit, message = ENTRIES[name]
    checkpoint = load(finished / "checkpoint.pth")
    edit(checkpoint)
    path = tmp_path / "other.pth"
    torch.save(checkpoint, path)
    refused(
        [coco_root, tmp_path / "run", "--resume", path, "--epochs", 3],
        f"--resume {path}: ",
        message,
        "--finetune",
        run=start,
    )
    assert not (tmp_path / "run" / "log.txt").exists()


@pytest.mark.parametrize("how", ["--resume", "--finetune"])
def test_entries_of_another_form_are_none_where_they_are_not_needed(
    coco_root, finished, tmp_path, capsys, how
):
    checkpoint = load(finished / "checkpoint.pth")
    for number, categories in enumerate((["bolt", "nut"], [{"id": 1, "name": "bolt"}], {"bolt": 1}, 5)):
        path = tmp_path / f"{number}.pth"
        torch.save({**checkpoint, "epoch": None, "categories": categories, "args": ["--lr", "1"]}, path)
        capsys.readouterr()
        assert start(coco_root, tmp_path / "run", how, path, "--eval") == 0
        assert "category" not in capsys.readouterr().err


def test_auto_does_not_take_a_denied_file_for_a_damaged_one(
    coco_root, finished, tmp_path, monkeypatch, refused
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest = folder / "checkpoint.pth"

    def deny(path: Any, *more: Any) -> Any:
        if Path(path) == newest:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, *more)

    monkeypatch.setattr("util.checkpoint_file.open", deny, raising=False)  # a mode binds no root
    for resume, advice in ((newest, ""), ("auto", "move it away")):
        refused(
            [coco_root, folder, "--resume", resume, "--epochs", 3],
            f"{newest}: cannot be read (Permission denied)",
            advice,
            run=start,
        )
    assert not (folder / "checkpoint.damaged.pth").exists()


# --- Disks ----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, mounted, or mounted anew, with the given options."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if os.path.ismount(place) else ["-o", options]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(place)], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_run_that_filled_its_disk_goes_on_when_there_is_room(coco_root, finished, disk, refused):
    size = (finished / "checkpoint.pth").stat().st_size
    folder = disk(f"size={int(1.5 * size) // 1024}k")
    refused(
        [coco_root, folder, "--epochs", 2],
        str(folder / "checkpoint.pth"),
        "No space left on device",
        "is kept",
        run=start,
    )
    kept = load(folder / "checkpoint.pth")
    assert (kept["epoch"], kept["step"]) == (-1, 3)
    assert not list(folder.rglob("*.part"))
    disk("size=100m")
    assert start(coco_root, folder, "--epochs", 2, "--resume", "auto") == 0
    one, other = load(folder / "checkpoint.pth"), load(finished / "checkpoint.pth")
    assert all(equal(one[key], other[key]) for key in COMPARED)
    assert read_log(folder) == read_log(finished)


@pytest.mark.parametrize("kind", ["torchscript", "torch_export"])
def test_a_disk_too_small_for_an_exported_model(finished, disk, kind):
    """As typed, since torch's own writer would end the process."""
    path = disk("size=512k") / "model.pt2"
    words = ["--resume", finished / "checkpoint.pth", "--format", kind, "--output", path]
    done = python("export.py", *words)
    (line,) = done.stderr.splitlines()
    assert line == f"error: --output {path}: cannot be written (No space left on device)"
    assert done.returncode == 2 and not list(path.parent.iterdir())


def test_a_disk_that_is_read_only(coco_root, disk, refused):
    folder = disk("size=1m,ro")
    for place in (folder, folder / "new"):
        refused([coco_root, place, "--epochs", 1], f"--output_dir {place}", run=start)


def test_a_folder_below_a_file(coco_root, tmp_path, monkeypatch, refused):
    monkeypatch.setattr("engine.train_one_epoch", lambda *_, **__: pytest.fail("trained all the same"))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        for resume in ([], ["--resume", "auto"]):
            refused([coco_root, place, "--epochs", 1, *resume], f"--output_dir {place}", run=start)
