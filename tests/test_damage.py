"""Damaged checkpoints, full disks and folders that cannot be written: a clear message, and nothing lost."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import assert_one_line, load, read_log, run
from tests.kill_and_resume import COMPARED, equal
from util.checkpoint import load_checkpoint, save_checkpoint
from util.errors import UserError

FLAGS = ("--backbone_stages", 2, "--batch_size", 1, "--dropout", 0, "--save_every_steps", 3)
STEPS = 5  # an epoch's


def start(root: Path, folder: Path, *more: object) -> int:
    return run(*FLAGS, "--coco_path", root, "--output_dir", folder, *more)


@pytest.fixture(scope="module")
def finished(coco_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs: `checkpoint.pth` was written behind the second, `checkpoint.1.pth` inside it."""
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


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("holiday.txt", "sun")
    return buffer.getvalue()


def _image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def _malicious(zipped: bool) -> Callable[[bytes, Path], bytes]:
    def make(content: bytes, marker: Path) -> bytes:
        buffer = io.BytesIO()
        checkpoint = {"model": {"w": torch.ones(2)}, "epoch": RunsCode(str(marker))}
        torch.save(checkpoint, buffer, _use_new_zipfile_serialization=zipped)
        return buffer.getvalue()

    return make


def _flipped(content: bytes, marker: Path) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda content, marker: b"",
    "cut off early": lambda content, marker: content[:100],
    "cut off in the middle": lambda content, marker: content[: len(content) // 2],
    "cut off at the end": lambda content, marker: content[:-1],
    "zeros behind the middle": lambda content, marker: (
        content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
    ),
    "a flipped bit": _flipped,
    "a text": lambda content, marker: b"epoch 3: AP 0.42\n",
    "an archive": lambda content, marker: _zip(),
    "an image": lambda content, marker: _image(),
    "a pickle that runs code": lambda content, marker: pickle.dumps(RunsCode(str(marker))),
    "a checkpoint that runs code": _malicious(zipped=True),
    "an old checkpoint that runs code": _malicious(zipped=False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_touched(
    coco_root: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path, marker = tmp_path / "broken.pth", tmp_path / "marker"
    path.write_bytes(DAMAGES[damage]((finished / "checkpoint.pth").read_bytes(), marker))
    capsys.readouterr()
    assert start(coco_root, tmp_path / "run", "--resume", path, "--epochs", 3) == 2
    assert_one_line(capsys, str(path))
    assert not marker.exists(), "code has run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_auto_goes_on_from_the_version_before_a_damaged_one(
    coco_root: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
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


def test_auto_refuses_where_every_version_is_damaged(
    coco_root: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("checkpoint.pth", "checkpoint.1.pth"):
        (folder / name).write_bytes(b"")
    log = (folder / "log.txt").read_bytes()
    capsys.readouterr()
    assert start(coco_root, folder, "--resume", "auto", "--epochs", 2) == 2
    assert "is readable" in capsys.readouterr().err
    assert (folder / "log.txt").read_bytes() == log


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
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


def test_a_full_disk_keeps_the_version_before(disk: Callable[[str], Path]) -> None:
    folder = disk("size=3m")
    path = folder / "checkpoint.pth"
    save_checkpoint({"model": {"w": torch.zeros(500_000)}}, path, keep=1)  # 2 MB
    with pytest.raises(UserError) as failure:
        save_checkpoint({"model": {"w": torch.ones(500_000)}}, path, keep=1)
    for part in (str(path), "No space left on device", "is kept", "--output_dir"):
        assert part in str(failure.value), str(failure.value)
    assert [found.name for found in folder.iterdir()] == ["checkpoint.pth"]
    assert not load_checkpoint(path)["model"]["w"].any()


def test_a_run_that_filled_its_disk_goes_on_when_there_is_room(
    coco_root: Path, finished: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    size = (finished / "checkpoint.pth").stat().st_size
    folder = disk(f"size={int(1.5 * size) // 1024}k")
    capsys.readouterr()
    assert start(coco_root, folder, "--epochs", 2) == 2
    assert_one_line(capsys, str(folder / "checkpoint.pth"), "No space left on device", "is kept")
    kept = load(folder / "checkpoint.pth")
    assert (kept["epoch"], kept["step"]) == (-1, 3)
    assert not list(folder.rglob("*.part"))
    disk("size=100m")
    assert start(coco_root, folder, "--epochs", 2, "--resume", "auto") == 0
    one, other = load(folder / "checkpoint.pth"), load(finished / "checkpoint.pth")
    assert all(equal(one[key], other[key]) for key in COMPARED)
    assert read_log(folder) == read_log(finished)


def test_a_disk_that_is_read_only(
    coco_root: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk("size=1m,ro")
    for place in (folder, folder / "new"):
        capsys.readouterr()
        assert start(coco_root, place, "--epochs", 1) == 2
        assert_one_line(capsys, f"--output_dir {place}")


def test_a_folder_below_a_file(coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        for resume in ([], ["--resume", "auto"]):
            capsys.readouterr()
            assert start(coco_root, place, "--epochs", 1, *resume) == 2
            assert_one_line(capsys, f"--output_dir {place}")


def test_what_cannot_be_written_ends_before_anything_is_trained(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("trained all the same")

    monkeypatch.setattr("engine.train_one_epoch", refuse)
    (tmp_path / "file").write_text("")
    assert start(coco_root, tmp_path / "file", "--epochs", 1) == 2
