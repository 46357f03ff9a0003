"""The layouts that are read as they are, and the message for others."""

import json
from pathlib import Path

import pytest

from datasets import build_dataset
from datasets.coco import find_coco_files
from datasets.labels import read_categories
from doctor.check import find_sources
from tests.datasets.test_coco import arguments as coco_arguments
from tests.spoiled import TRAIN, VAL, write_clean
from util.errors import UserError

PLACES = {
    "coco": {"train": ("train2017", TRAIN), "val": ("val2017", VAL)},
    "custom": {
        "train": ("train2017", "annotations/custom_train.json"),
        "val": ("val2017", "annotations/custom_val.json"),
    },
    "roboflow": {
        "train": ("train", "train/_annotations.coco.json"),
        "val": ("valid", "valid/_annotations.coco.json"),
    },
}


@pytest.fixture
def clean(tmp_path):
    return write_clean(tmp_path / "set")


def move(root, name):
    """A set of COCO's layout, in another one."""
    for split, (folder, file) in PLACES["coco"].items():
        new_folder, new_file = PLACES[name][split]
        (root / folder).rename(root / new_folder)
        (root / file).rename(root / new_file)
    return root


def arguments(root, dataset_file="coco"):
    return coco_arguments(root, dataset_file=dataset_file, scales=[48], eval_scale=48, max_size=96)


@pytest.mark.parametrize("name", PLACES)
def test_each_layout_is_read(name, clean):
    move(clean.root, name)
    for split, (folder, file) in PLACES[name].items():
        assert find_coco_files(clean.root, split) == (clean.root / folder, clean.root / file)
    assert len(build_dataset("train", arguments(clean.root))) == 6
    assert build_dataset("val", arguments(clean.root))[0][1]["labels"].tolist() == [1, 2, 3]
    assert read_categories(arguments(clean.root)) == {1: "bolt", 2: "nut", 3: "gear"}
    assert {split: source.annotations for split, source in find_sources(clean.root).items()} == {
        split: clean.root / file for split, (_, file) in PLACES[name].items()
    }


def test_the_flag_chooses_where_a_folder_follows_two_layouts(clean):
    smaller = {**clean.train, "images": clean.train["images"][:2]}
    for split in ("train", "val"):
        (clean.root / "annotations" / f"custom_{split}.json").write_text(json.dumps(smaller))
    assert len(build_dataset("train", arguments(clean.root))) == 6
    assert len(build_dataset("train", arguments(clean.root, "custom"))) == 2
    assert len(build_dataset("train", arguments(clean.root, "shapes"))) == 6


def test_a_test_split_is_checked_too(clean):
    move(clean.root, "roboflow")
    (clean.root / "test").mkdir()
    (clean.root / "valid" / "_annotations.coco.json").rename(clean.root / "test" / "_annotations.coco.json")
    assert list(find_sources(clean.root)) == ["train", "test"]
    with pytest.raises(UserError, match=r"no valid/_annotations\.coco\.json there; the folder holds"):
        find_coco_files(clean.root, "val")


def test_an_unknown_layout_shows_the_known_ones(clean, tmp_path):
    for damaged in (clean.root, tmp_path / "other"):
        damaged.mkdir(exist_ok=True)
    (clean.root / "annotations").rename(clean.root / "labels")
    for ask in (lambda: find_coco_files(clean.root, "train"), lambda: find_sources(clean.root)):
        with pytest.raises(UserError) as error:
            ask()
        shown = [TRAIN, "custom_train.json", "train/_annotations.coco.json", "labels, train2017", "convert"]
        assert all(part in str(error.value) for part in shown)
    with pytest.raises(UserError, match="no train2017 and no annotations/instances_train2017.json"):
        find_coco_files(tmp_path / "other", "train")


def test_pictures_are_missing_as_a_whole(clean):
    (clean.root / "val2017").rename(clean.root / "val")
    with pytest.raises(UserError, match="no val2017 there; the folder holds annotations, train2017, val"):
        find_coco_files(Path(clean.root), "val")
