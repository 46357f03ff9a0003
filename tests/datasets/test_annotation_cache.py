"""Packed annotation files on disk: equal to what the file says, never out of date, never in the way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets import annotation_cache
from datasets.annotation_file import AnnotationFile, _cache
from datasets.annotations import CocoAnnotations, load_annotations
from datasets.panoptic_annotations import load_panoptic_annotations
from tests.helpers import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own that takes small files, too."""
    monkeypatch.setenv("DETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_cache, "LEAST_BYTES", 0)
    return tmp_path / "cache"


def instances(path: Path, **changes: object) -> Path:
    """An instances file with polygons, run lengths, a crowd and a name beyond ASCII."""
    rle = {"size": [6, 8], "counts": [0, 4, 44]}
    content = {
        "images": [{"id": i, "file_name": f"bild_{i}_é.jpg", "height": 6, "width": 8} for i in (7, 3)],
        "categories": [{"id": 5, "name": "Käfer"}, {"id": 2, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2, "bbox": [0, 0, 4, 4], "area": 8.5, "iscrowd": 0}
            | {"segmentation": [[0, 0, 4, 0, 4, 4.25]]},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [1, 1, 4, 2], "area": 4, "iscrowd": 1}
            | {"segmentation": rle, "keypoints": [1, 2, 2]},
        ],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def forget() -> None:
    """What a new process would not know."""
    _cache.clear()


def assert_same(first: AnnotationFile, second: AnnotationFile) -> None:
    ours, theirs = first.packed(), second.packed()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert type(value) is type(theirs[name]), name
        if isinstance(value, np.ndarray):
            assert value.dtype == theirs[name].dtype, name
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
        else:
            assert value == theirs[name], name


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nobody may read a JSON file."""

    def refuse(path: object) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("datasets.annotation_file.read_json", refuse)


def test_an_instances_file_is_read_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = instances(tmp_path / "instances.json")
    fresh = load_annotations(path)
    forget()
    unread(monkeypatch)
    again = load_annotations(path)
    assert again is not fresh
    assert_same(fresh, again)
    for image_id in (3, 7):
        assert again.annotations_of(image_id) == fresh.annotations_of(image_id)
    assert again.categories == {2: "ant", 5: "Käfer"} and list(again.categories) == [2, 5]
    assert again.file_name(0) == "bild_3_é.jpg" and again.source == path
    assert again.coco.anns[1]["area"] == 8.5, "published code's view is read from the file itself"


def test_a_panoptic_file_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "panoptic.json"
    segments = [
        {"id": i, "category_id": c, "area": 4.5 * i, "iscrowd": i % 2} for i, c in ((9, 5), (70000, 2))
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in (7, 3)],
        "categories": [{"id": 5, "name": "sky", "isthing": 0}, {"id": 2, "name": "ant", "isthing": 1}],
        "annotations": [
            {"image_id": 7, "file_name": "7.png", "segments_info": segments},
            {"image_id": 3, "file_name": "3.png", "segments_info": []},
        ],
    }
    path.write_text(json.dumps(content))
    fresh = load_panoptic_annotations(path)
    forget()
    unread(monkeypatch)
    again = load_panoptic_annotations(path)
    assert_same(fresh, again)
    assert again.is_thing == fresh.is_thing
    for ours, theirs in zip(again.segments_of(1), fresh.segments_of(1), strict=True):
        assert len(ours) == 2
        np.testing.assert_array_equal(ours, theirs)


def test_another_content_is_packed_anew(folder: Path, tmp_path: Path) -> None:
    """Also where size and time of the file stay the same: the content counts."""
    path = instances(tmp_path / "instances.json")
    times = path.stat()
    load_annotations(path)
    path.write_text(path.read_text().replace("ant", "bee"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    forget()
    assert load_annotations(path).categories[2] == "bee"
    assert len(list(folder.glob("*.npz"))) == 2


def test_another_packing_is_not_taken_for_this_one(folder: Path, tmp_path: Path) -> None:
    path = instances(tmp_path / "instances.json")
    before = annotation_cache.entry_of(path, CocoAnnotations)
    source = tmp_path / "annotations.py"
    source.write_text(Path(sys.modules[CocoAnnotations.__module__].__file__ or "").read_text() + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[CocoAnnotations.__module__], "__file__", str(source))
        assert annotation_cache.entry_of(path, CocoAnnotations) != before
    assert annotation_cache.entry_of(path, CocoAnnotations) == before


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no archive" * 50]
)
def test_a_damaged_entry_is_made_anew(folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = instances(tmp_path / "instances.json")
    fresh = load_annotations(path)
    (entry,) = folder.glob("*.npz")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    forget()
    assert_same(fresh, load_annotations(path))
    assert len(entry.read_bytes()) == len(whole)


def test_a_pickle_in_an_entry_is_not_opened(folder: Path, tmp_path: Path) -> None:
    entry = tmp_path / "entry.npz"
    np.savez(entry, state=np.array([{"a": 1}], dtype=object))
    assert annotation_cache.read_entry(entry) is None


def test_without_a_place_to_write_files_are_read_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = instances(tmp_path / "instances.json")
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("DETR_CACHE", str(blocked / "cache"))
    assert load_annotations(path).num_images == 2


def test_small_files_and_an_empty_name_leave_no_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = instances(tmp_path / "instances.json")
    monkeypatch.setattr(annotation_cache, "LEAST_BYTES", path.stat().st_size + 1)
    load_annotations(path)
    monkeypatch.setattr(annotation_cache, "LEAST_BYTES", 0)
    monkeypatch.setenv("DETR_CACHE", "")
    forget()
    load_annotations(path)
    assert not folder.exists()


def test_a_faulty_file_leaves_no_entry(folder: Path, tmp_path: Path) -> None:
    from util.errors import UserError

    path = instances(tmp_path / "instances.json", images=3)
    for _ in range(2):
        with pytest.raises(UserError, match="no list of images"):
            load_annotations(path)
    assert not list(folder.glob("*.npz")) and not list(folder.glob("*.part"))


def test_the_least_used_entries_go(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_cache, "KEPT", 2)
    paths = [
        instances(tmp_path / f"{name}.json", categories=[{"id": 2, "name": name}, {"id": 5, "name": "x"}])
        for name in "abc"
    ]
    for age, path in zip((300, 200), paths, strict=False):
        load_annotations(path)
        entry = annotation_cache.entry_of(path, CocoAnnotations)
        assert entry is not None
        os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - age))
    forget()
    load_annotations(paths[0])  # used again: now the second is the least used
    load_annotations(paths[2])
    left = {path for path in paths if (annotation_cache.entry_of(path, CocoAnnotations) or path).exists()}
    assert left == {paths[0], paths[2]}


def test_an_entry_is_for_its_user_alone(folder: Path, tmp_path: Path) -> None:
    load_annotations(instances(tmp_path / "instances.json"))
    (entry,) = folder.glob("*.npz")
    assert stat.S_IMODE(entry.stat().st_mode) & 0o077 == 0


def test_several_processes_at_once(folder: Path, tmp_path: Path) -> None:
    """Ranks that start together: each gets the file, and one entry is left."""
    path = instances(tmp_path / "instances.json")
    code = (
        "import sys; from datasets import annotation_cache; annotation_cache.LEAST_BYTES = 0\n"
        "from datasets.annotations import load_annotations; print(load_annotations(sys.argv[1]).num_images)"
    )
    command = [sys.executable, "-c", code, str(path)]
    ranks = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [rank.communicate(timeout=300)[0].split() for rank in ranks] == [["2"]] * 4
    assert sorted(entry.suffix for entry in folder.iterdir()) == ["", ".npz"], "the lock and the entry"
