"""The comparison of fine-tuning with training from scratch: how it deals out a data set, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import finetune
from doctor.check import check_dataset, find_sources
from tests.helpers import CUSTOM_CATEGORIES, write_coco
from util.errors import UserError

CARRIED = {"bolt": (1, 6), "nut": (2, 4)}  # name -> id in the first data set, in the second
RAREST = "gear", 2  # its id in the second


def content(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One gear fewer than bolts and nuts."""
    root = write_coco(tmp_path_factory.mktemp("whole") / "data")
    train = content(root, "train")
    train["annotations"] = [one for one in train["annotations"] if one["id"] != 9]
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(train))
    return root


def test_two_data_sets_share_names_and_no_picture(whole: Path, tmp_path: Path) -> None:
    first, second = finetune.deal_out(whole, tmp_path)
    for root in (first, second):
        assert check_dataset(find_sources(root)).status == 0
    for split in ("train", "val"):
        parts = [content(root, split) for root in (first, second)]
        ids = [{image["id"] for image in part["images"]} for part in parts]
        assert not ids[0] & ids[1]
        assert ids[0] | ids[1] == {image["id"] for image in content(whole, split)["images"]}
        names = [{one["id"]: one["name"] for one in part["categories"]} for part in parts]
        assert names[0] == {old: name for name, (old, _) in CARRIED.items()}
        new = {number: name for name, (_, number) in CARRIED.items()}
        assert names[1] == {**new, RAREST[1]: RAREST[0]}


def test_objects_keep_their_class_and_box(whole: Path, tmp_path: Path) -> None:
    parts = finetune.deal_out(whole, tmp_path)
    for split in ("train", "val"):
        names = [{one["id"]: one["name"] for one in content(root, split)["categories"]} for root in parts]
        dealt = {
            (one["id"], known[one["category_id"]], *one["bbox"])
            for root, known in zip(parts, names, strict=True)
            for one in content(root, split)["annotations"]
        }
        first = {image["id"] for image in content(parts[0], split)["images"]}
        expected = {
            (one["id"], CUSTOM_CATEGORIES[one["category_id"]], *one["bbox"])
            for one in content(whole, split)["annotations"]
            if not (one["image_id"] in first and CUSTOM_CATEGORIES[one["category_id"]] == RAREST[0])
        }
        assert dealt == expected


def test_one_class_is_too_few(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", {1: "bolt"})
    with pytest.raises(UserError, match="two categories are needed"):
        finetune.deal_out(root, tmp_path / "out")


def test_the_table_takes_the_same_epochs_of_all_runs(tmp_path: Path) -> None:
    for name, factor in (("one", 0.01), ("two", 0.02)):
        (tmp_path / name).mkdir()
        lines = [{"test_coco_eval_bbox": [factor * epoch, 2 * factor * epoch]} for epoch in range(1, 9)]
        (tmp_path / name / "log.txt").write_text("\n".join(map(json.dumps, lines)))
    assert finetune.table([tmp_path / "one", tmp_path / "two"]).splitlines() == [
        "| AP / AP50 after | 2 epochs | 4 epochs | 8 epochs |",
        "|---|---|---|---|",
        "| one | 2.0 / 4.0 | 4.0 / 8.0 | 8.0 / 16.0 |",
        "| two | 4.0 / 8.0 | 8.0 / 16.0 | 16.0 / 32.0 |",
    ]


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run: ended with status 2; see .*output\.txt"):
        finetune.train(tmp_path / "run", tmp_path / "no data", ["--device", "cpu"])
    assert "no such folder" in (tmp_path / "run" / "output.txt").read_text()
