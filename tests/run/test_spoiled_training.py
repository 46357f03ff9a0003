"""Training on every spoiled data set either runs as it should, or refuses with a line that names the fault.

There is never an assertion on a device, a traceback, or a loss without objects. Most are refused before the
first step; pictures whose end is missing, and panoptic PNGs, by the step that meets them.
"""

import math
import shutil
from pathlib import Path

import pytest

from doctor.kinds import KINDS, NEEDED_BY_MASKS, Level
from tests.helpers import read_log, run
from tests.spoiled import NUM_CLASSES, SPOILED, CleanSet, Spoiled, spoil, write_clean
from tests.spoiled_panoptic import PANOPTIC, SPOILED_PANOPTIC, spoil_panoptic, write_clean_panoptic

pytestmark = pytest.mark.slow

REFUSED = {name for name, kind in KINDS.items() if kind.level in (Level.UNUSABLE, Level.ERROR)}
TRAINING = ("--epochs", 1, "--batch_size", 2)
MASKS = ("--hidden_dim", 128, "--nheads", 8, "--masks", "--backbone_stages", 3)
WITHOUT_MASK = {"box outside", "box over the edge"}  # one object of these sets has an empty segmentation
WITH_MASKS = WITHOUT_MASK | {
    name for name, fault in SPOILED.items() if "polygon" in fault.kind or "mask" in fault.kind
    or fault.kind in NEEDED_BY_MASKS
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> CleanSet:
    return write_clean(tmp_path_factory.mktemp("clean") / "set")


@pytest.fixture(scope="module")
def clean_panoptic(tmp_path_factory: pytest.TempPathFactory) -> CleanSet:
    return write_clean_panoptic(tmp_path_factory.mktemp("clean") / "set")


def assert_refused(status: int, error: str, fault: Spoiled) -> None:
    """Exit status 2, and one line that names what is at fault."""
    assert status == 2, f"it trained, though {KINDS[fault.kind].why}"
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    if "png" in fault.kind:  # only the step that reads it finds out
        assert f"panoptic_train2017/{fault.image_id}.png" in line, line
        assert fault.annotation_id is None or f"segment {fault.annotation_id} " in line, line
        return
    for what, number in (("annotation", fault.annotation_id), ("image", fault.image_id)):
        assert number is None or f"{what} id {number!r}" in line, line
    assert fault.annotation_id is not None or fault.image_id is not None or fault.text in line


def assert_trained(status: int, error: str, out: Path) -> None:
    """Every step had a loss, and boxes to learn."""
    assert status == 0, error
    (line,) = read_log(out)
    for key in ("train_loss", "train_loss_bbox", "train_loss_giou", "train_loss_ce", "test_loss_bbox"):
        assert math.isfinite(line[key]) and line[key] > 0, f"{key} is {line[key]}"


def test_the_clean_set_is_trained_on(
    clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run("--coco_path", clean.root, *TRAINING, "--output_dir", tmp_path / "run", *MASKS)
    assert_trained(status, capsys.readouterr().err, tmp_path / "run")
    assert "train_loss_mask" in read_log(tmp_path / "run")[0]


@pytest.mark.parametrize("name", SPOILED)
def test_boxes(name: str, clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = SPOILED[name]
    made = spoil(name, clean, tmp_path / "spoiled")
    flags = ["--num_classes", NUM_CLASSES] if fault.kind == "category_range" else []
    status = run("--coco_path", made.root, *TRAINING, "--output_dir", tmp_path / "run", *flags)
    captured = capsys.readouterr()
    if fault.kind in REFUSED:
        assert_refused(status, captured.err, fault)
        return
    assert_trained(status, captured.err, tmp_path / "run")


@pytest.mark.parametrize("name", SPOILED)
def test_boxes_unchecked(
    name: str, clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the doctor, too, training either runs or refuses in one line."""
    made = spoil(name, clean, tmp_path / "spoiled")
    flags = ["--num_classes", NUM_CLASSES] if SPOILED[name].kind == "category_range" else []
    flags += ["--check_data", "off", "--output_dir", tmp_path / "run", *TRAINING]
    status = run("--coco_path", made.root, *flags)
    error = capsys.readouterr().err
    if status == 2:
        (line,) = error.splitlines()
        assert line.startswith("error: ")
        return
    assert_trained(status, error, tmp_path / "run")


@pytest.mark.parametrize("name", sorted(WITH_MASKS))
def test_masks(name: str, clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = SPOILED[name]
    made = spoil(name, clean, tmp_path / "spoiled")
    status = run("--coco_path", made.root, *TRAINING, "--output_dir", tmp_path / "run", *MASKS)
    captured = capsys.readouterr()
    if fault.kind in NEEDED_BY_MASKS or name in WITHOUT_MASK:
        assert_refused(status, captured.err, fault)
        return
    assert_trained(status, captured.err, tmp_path / "run")
    assert read_log(tmp_path / "run")[0]["train_loss_mask"] > 0


@pytest.mark.parametrize("name", ["a clean set", *SPOILED_PANOPTIC])
def test_panoptic(
    name: str, clean_panoptic: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in SPOILED_PANOPTIC:
        made = spoil_panoptic(name, clean_panoptic, tmp_path / "spoiled")
    else:
        made = write_clean_panoptic(tmp_path / "spoiled")
    for folder in ("train2017", "panoptic_train2017"):
        shutil.copytree(clean_panoptic.root / folder, made.root / folder.replace("train", "val"))
    shutil.copy(clean_panoptic.root / PANOPTIC, made.root / PANOPTIC.replace("train", "val"))
    flags = ["--dataset_file", "coco_panoptic", "--coco_path", made.root, "--coco_panoptic_path", made.root]
    status = run(*flags, "--output_dir", tmp_path / "run", *TRAINING, "--batch_size", 3, *MASKS)
    captured = capsys.readouterr()
    if name in SPOILED_PANOPTIC:
        assert_refused(status, captured.err, SPOILED_PANOPTIC[name])
        return
    assert_trained(status, captured.err, tmp_path / "run")
    assert read_log(tmp_path / "run")[0]["train_loss_mask"] > 0
