"""The doctor at the start of a training: what it refuses, and what it only tells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import main
from doctor import at_start
from doctor.at_start import check_at_start, training_sources
from tests.helpers import TINY
from tests.spoiled import SPOILED, TRAIN, CleanSet, put, spoil, write_clean, write_files
from tests.spoiled_panoptic import PANOPTIC, spoil_panoptic, write_clean_panoptic
from util.errors import UserError


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> CleanSet:
    return write_clean(tmp_path_factory.mktemp("clean") / "set")


def test_a_clean_set_says_nothing(clean: CleanSet, capsys: pytest.CaptureFixture[str]) -> None:
    for mode in at_start.MODES:
        check_at_start(mode, "coco", clean.root, num_classes=4, masks=True)
    check_at_start("warn", "shapes", None)  # made here, and not looked at
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_fault_that_training_survives(
    clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spoil("box of no size", clean, tmp_path / "set")
    check_at_start("warn", "coco", made.root)
    told, hint = capsys.readouterr().err.splitlines()
    assert told.startswith(f"warning: {made.root / TRAIN}: a box without width or height (1), first ")
    assert "annotation id 105, image id 12: bbox [40, 30, 0, 9]. Training drops the object" in told
    assert f"python -m doctor {made.root}" in hint and "--fix" in hint
    with pytest.raises(UserError, match=r"--check_data error: .*annotation id 105, image id 12.* --fix "):
        check_at_start("error", "coco", made.root)
    check_at_start("off", "coco", made.root)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_what_makes_training_wrong_is_always_refused(mode: str, clean: CleanSet, tmp_path: Path) -> None:
    made = spoil("boxes x1 y1 x2 y2", clean, tmp_path / "set")
    message = r"look like x1 y1 x2 y2.*annotation id 101.*python -m doctor"
    with pytest.raises(UserError, match=message) as error:
        check_at_start(mode, "coco", made.root)
    assert "\n" not in error.value.one_line()
    check_at_start("off", "coco", made.root)


def test_the_worst_fault_is_the_one_that_is_refused(clean: CleanSet, tmp_path: Path) -> None:
    made = spoil("box of no size", clean, tmp_path / "set")
    put(7, bbox=[1, 2, 3])(made)
    write_files(made)
    with pytest.raises(UserError, match=r"annotation id 108.*\(and 1 fault more\)"):
        check_at_start("warn", "coco", made.root)


def test_many_kinds_are_cut(clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(clean.root, tmp_path / "set")
    made = CleanSet(tmp_path / "set", json.loads(json.dumps(clean.files)))
    names = ["annotation id 0", "area wrong", "iscrowd missing", "polygon of two points", "object twice"]
    for name in [*names, "image without size"]:
        SPOILED[name].spoiler(made)
    put(8, bbox=[300, 10, 20, 20], segmentation=[])(made)
    write_files(made)
    check_at_start("warn", "coco", made.root)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and "more kinds of faults" in lines[5]


def test_objects_without_masks_matter_where_masks_are_trained(clean: CleanSet, tmp_path: Path) -> None:
    made = spoil("box over the edge", clean, tmp_path / "set")  # its segmentation is empty
    check_at_start("warn", "coco", made.root)
    with pytest.raises(UserError, match=r"objects without a mask: annotation id 105.*without --masks"):
        check_at_start("warn", "coco", made.root, masks=True)
    for one in made.objects:
        one.update(segmentation=[])
    write_files(made)
    with pytest.raises(UserError, match=r"boxes only: .*: 18 objects, none with a mask \(and 1 fault more"):
        check_at_start("warn", "coco", made.root, masks=True)
    for one in made.objects:
        one.update(iscrowd=1)  # crowds are not trained on
    write_files(made)
    check_at_start("warn", "coco", made.root, masks=True)


def test_the_command_that_is_hinted_at_sees_what_training_saw(clean: CleanSet, tmp_path: Path) -> None:
    made = spoil("polygon of two points", clean, tmp_path / "a set")
    command = f"python -m doctor '{made.root}' --num_classes 4 --masks shows all"
    with pytest.raises(UserError) as error:
        check_at_start("warn", "coco", made.root, num_classes=4, masks=True)
    assert str(error.value).endswith(f"({command}, and with --fix NEW_FOLDER writes a corrected copy)")


def test_fix_is_recommended_only_where_it_helps(
    clean: CleanSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spoil("mask elsewhere", clean, tmp_path / "set")
    check_at_start("warn", "coco", made.root)
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint == f"warning: python -m doctor {made.root} shows all"
    put(7, area=70000)(made)
    write_files(made)
    check_at_start("warn", "coco", made.root)  # of two faults, one can be mended
    assert "with --fix NEW_FOLDER" in capsys.readouterr().err.splitlines()[-1]
    for one in made.objects:
        one.update(segmentation=[])
    write_files(made)
    with pytest.raises(UserError, match=r"\(python -m doctor \S+ --masks shows all\)$"):
        check_at_start("warn", "coco", made.root, masks=True)
    made.files[TRAIN] = "{"
    write_files(made)
    with pytest.raises(UserError, match=r"no valid JSON.*shows all\)$"):
        check_at_start("warn", "coco", made.root)


def test_headers_are_read_of_large_sets_those_of_a_sample(
    clean: CleanSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spoil("picture resized", clean, tmp_path / "set")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(UserError, match=r"of another size.*image id 12.*50 x 39"):
        check_at_start("warn", "coco", made.root)
    monkeypatch.setattr(at_start, "HEADERS", 2)  # the first and the last; the resized one is the second
    check_at_start("warn", "coco", made.root)
    assert "the headers of 2 of its 6 pictures were read" in capsys.readouterr().out


def test_panoptic_sets(tmp_path: Path) -> None:
    clean = write_clean_panoptic(tmp_path / "clean")
    made = spoil_panoptic("segment id twice", clean, tmp_path / "set")
    for root in (clean.root, made.root):
        for name in ("train2017", "panoptic_train2017"):
            shutil.copytree(root / name, root / name.replace("train", "val"))
        shutil.copy(clean.root / PANOPTIC, root / PANOPTIC.replace("train", "val"))
    check_at_start("error", "coco_panoptic", clean.root, clean.root, num_classes=250, masks=True)
    with pytest.raises(UserError, match=rf"annotation id 312, image id 22.*python -m doctor {made.root}"):
        check_at_start("warn", "coco_panoptic", clean.root, made.root)
    with pytest.raises(UserError, match="--coco_panoptic_path"):
        check_at_start("warn", "coco_panoptic", clean.root, tmp_path / "none")


def test_missing_files_are_named_by_their_flag(clean: CleanSet, tmp_path: Path) -> None:
    assert set(training_sources("coco", clean.root)) == {"train", "val"}
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="--coco_path"):
            training_sources("coco", root)


def test_of_several_processes_one_looks_and_the_others_wait(
    clean: CleanSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spoil("bbox of three", clean, tmp_path / "set")
    args = main.get_args_parser().parse_args([*TINY.split(), "--coco_path", str(made.root)])
    waiting: list[bool] = []
    monkeypatch.setattr(main, "barrier", lambda: waiting.append(True))
    monkeypatch.setattr(main, "is_main_process", lambda: False)
    main.check_data(args)
    assert waiting
    monkeypatch.setattr(main, "is_main_process", lambda: True)
    with pytest.raises(UserError, match="annotation id 105, image id 12"):
        main.check_data(args)
