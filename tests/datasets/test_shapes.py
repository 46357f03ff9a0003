"""The built-in data set: drawing against brute force, files against pycocotools, writing all or nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import shapes
from datasets.panoptic_png import read_ids
from datasets.shapes import read_settings, write_shapes
from datasets.shapes_drawing import (
    MAX_HIDDEN,
    STUFF,
    THINGS,
    Shape,
    cut_polygon,
    draw_picture,
    place_shapes,
)
from tests.helpers import ROOT, files, python
from util.errors import UserError

SMALL: dict[str, Any] = {"train": 60, "val": 20}  # more than one task, so that two workers share the work


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", **SMALL, workers=1)


@pytest.fixture(scope="module")
def coco(root):
    from pycocotools.coco import COCO

    return {split: COCO(root / f"annotations/instances_{split}2017.json") for split in ("train", "val")}


def panoptic(root: Path, split: str) -> dict:
    return json.loads((root / f"annotations/panoptic_{split}2017.json").read_text())


# Drawing


def random_shape(rng: np.random.Generator) -> Shape:
    return Shape(
        category=int(rng.integers(1, 4)),
        centre=rng.uniform(35, 65, 2),
        radius=rng.uniform(10, 25),
        angle=rng.uniform(0, 2 * np.pi),
        colour=np.zeros(3),
    )


def test_outline_and_distance_describe_the_same_shape():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 100, 501)
    for _ in range(30):
        shape = random_shape(rng)
        inside = shape.distance(x, x[:, None]) > 0
        assert np.count_nonzero(inside) * 0.04 == pytest.approx(area(shape.outline()), rel=0.01)
        tolerance = 0.1 if shape.category == 1 else 1e-9  # a circle is annotated as an inscribed polygon
        edges = (shape.outline() + np.roll(shape.outline(), -1, axis=0)) / 2
        assert np.abs(shape.distance(*edges.T)).max() < tolerance


def test_cut_polygon_leaves_strangers_and_refuses_two_pieces():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], dtype=float)
    assert cut_polygon(square, square + 20) is square
    bar = np.array([[4, -5], [6, -5], [6, 15], [4, 15]], dtype=float)
    assert cut_polygon(square, bar) is None
    corner = cut_polygon(square, square + 6)
    assert corner is not None and area(corner) == pytest.approx(100 - 16)
    bite = cut_polygon(square, bar - (0, 12))
    assert bite is not None and area(bite) == pytest.approx(100 - 2 * 3)


def test_shapes_stay_inside_and_mostly_visible():
    covered = 0
    for index in range(100):
        placed, visible = place_shapes(np.random.default_rng(index), 80, 120, [np.full(3, 128.0)])
        assert 1 <= len(placed) <= 4
        labels = np.full((400, 600), -1)
        y, x = np.ogrid[0.1:80:0.2, 0.1:120:0.2]
        for number, shape in enumerate(placed):
            assert shape.outline().min() > 0 and (shape.outline() < (120, 80)).all()
            labels[shape.distance(x, y) > 0] = number
        for number, (shape, polygon) in enumerate(zip(placed, visible, strict=True)):
            whole = area(shape.outline())
            seen = np.count_nonzero(labels == number) * 0.04
            assert seen == pytest.approx(area(polygon), abs=0.02 * whole)
            assert seen > (1 - MAX_HIDDEN - 0.02) * whole
            covered += int(seen < 0.98 * whole)
    assert covered > 15  # overlaps are wanted, too


def test_classes_and_counts_are_even_and_colours_stand_out():
    pictures = [draw_picture(3, "train", index) for index in range(300)]
    counts = np.bincount([len(picture.annotations) for picture in pictures], minlength=5)
    assert counts[0] == 0 and len(counts) == 5 and counts[1:].min() > 45
    classes = np.bincount([row["category_id"] for picture in pictures for row in picture.annotations])
    assert classes[1:].min() > 0.27 * classes.sum()
    for picture in pictures:
        colours: dict[bool, list] = {True: [], False: []}  # thing or not: mean colours
        for row in picture.segments:
            colour = picture.image[picture.segment_ids == row["id"]].mean(axis=0)
            colours[row["category_id"] in THINGS].append(colour)
        contrast = np.array(colours[True])[:, None] - np.array(colours[False])
        assert np.linalg.norm(contrast, axis=-1).min() > 60


def test_pictures_depend_on_seed_split_and_index_alone():
    first = draw_picture(0, "train", 5)
    assert (first.image == draw_picture(0, "train", 5).image).all()
    for other in (draw_picture(1, "train", 5), draw_picture(0, "val", 5), draw_picture(0, "train", 6)):
        assert (first.image != other.image).any()


# Files


def test_same_bytes_for_any_number_of_workers(root, tmp_path):
    assert files(write_shapes(tmp_path / "two", **SMALL, workers=2)) == files(root)


def test_pictures_do_not_depend_on_how_many_there_are(root, tmp_path):
    fewer = files(write_shapes(tmp_path / "fewer", train=3, val=20, workers=1))
    for name, value in files(root).items():
        if name in fewer and name != "shapes.json" and "train2017.json" not in name:
            assert fewer[name] == value, name
    other = files(write_shapes(tmp_path / "other", train=3, val=20, seed=1, workers=1))
    same = {name for name, value in other.items() if fewer[name] == value}
    assert other.keys() == fewer.keys() and not same


@pytest.mark.parametrize("split", ["train", "val"])
def test_instances_load_with_pycocotools(root, coco, split):
    api = coco[split]
    assert {row["id"]: row["name"] for row in api.loadCats(api.getCatIds())} == THINGS
    assert list(api.imgs) == sorted(api.imgs)
    assert len(api.imgs) == len(list((root / f"{split}2017").iterdir())) == SMALL[split]
    assert len(api.anns) == len(api.dataset["annotations"]) and min(api.anns) > 0
    for image_id, row in api.imgs.items():
        with Image.open(root / f"{split}2017" / row["file_name"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (row["width"], row["height"]))
        assert 1 <= len(api.imgToAnns[image_id]) <= 4
    for annotation in api.anns.values():
        polygon = np.reshape(annotation["segmentation"][0], (-1, 2))
        assert annotation["iscrowd"] == 0
        assert annotation["area"] == pytest.approx(area(polygon), abs=0.01)
        corners = np.concatenate([polygon.min(axis=0), polygon.max(axis=0) - polygon.min(axis=0)])
        assert annotation["bbox"] == pytest.approx(corners, abs=0.011)
        assert polygon.min() >= 0 and polygon.max() <= 96


def test_no_id_is_shared_by_the_splits(coco):
    assert not coco["train"].imgs.keys() & coco["val"].imgs.keys()
    assert not coco["train"].anns.keys() & coco["val"].anns.keys()


@pytest.mark.parametrize("split", ["train", "val"])
def test_polygon_bbox_area_and_panoptic_segment_agree(root, coco, split):
    api = coco[split]
    for row in panoptic(root, split)["annotations"]:
        ids = read_ids(root / f"panoptic_{split}2017" / row["file_name"])
        annotations = api.imgToAnns[row["image_id"]]
        things = [segment for segment in row["segments_info"] if segment["category_id"] in THINGS]
        for annotation, segment in zip(annotations, things, strict=True):
            assert annotation["category_id"] == segment["category_id"]
            mask = api.annToMask(annotation).astype(bool)
            seen = ids == segment["id"]
            assert (mask & seen).sum() / (mask | seen).sum() > 0.9
            assert annotation["area"] == pytest.approx(segment["area"], rel=0.05, abs=8)
            for pixels in (mask, seen):
                y, x = np.nonzero(pixels)
                left, top, width, height = annotation["bbox"]
                edges = np.array([x.min() - left, y.min() - top, x.max() + 1 - left - width, 0])
                edges[3] = y.max() + 1 - top - height
                assert np.abs(edges).max() < 1.5  # a pointed corner ends up to a pixel before its tip


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_files_are_exact(root, split):
    content = panoptic(root, split)
    isthing = {row["id"]: row["isthing"] for row in content["categories"]}
    assert isthing == {**dict.fromkeys(THINGS, 1), **dict.fromkeys(STUFF, 0)}
    assert {row["id"]: row["name"] for row in content["categories"]} == {**THINGS, **STUFF}
    assert all(len(row["color"]) == 3 and row["supercategory"] for row in content["categories"])
    assert [row["image_id"] for row in content["annotations"]] == [row["id"] for row in content["images"]]
    for row in content["annotations"]:
        ids = read_ids(root / f"panoptic_{split}2017" / row["file_name"])
        values, counts = np.unique(ids, return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert found == {segment["id"]: segment["area"] for segment in row["segments_info"]}
        assert len(found) == len(row["segments_info"]) and 0 not in found
        categories = [segment["category_id"] for segment in row["segments_info"]]
        stuff = [category for category in categories if category in STUFF]
        assert len(stuff) == len(set(stuff)) >= 1
        for segment in row["segments_info"]:
            y, x = np.nonzero(ids == segment["id"])
            assert segment["iscrowd"] == 0
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert segment["bbox"] == box


def test_sizes_vary_on_request(tmp_path):
    root = write_shapes(tmp_path / "data", train=1, val=60, vary_size=True, workers=1)
    content = panoptic(root, "val")
    sizes = [(row["width"], row["height"]) for row in content["images"]]
    assert set(sizes) == {(96, 96), (96, 112), (112, 96)}
    assert 0.65 < sizes.count((96, 96)) / len(sizes) < 0.95, "four of five are square"
    for size, row in zip(sizes, content["images"], strict=True):
        assert Image.open(root / "val2017" / row["file_name"]).size == size
        assert Image.open(root / "panoptic_val2017" / f"{row['id']:012d}.png").size == size


# Whole or not at all


def test_a_complete_set_is_left_alone(tmp_path, monkeypatch):
    root = write_shapes(tmp_path / "data", train=2, val=1, workers=1)
    assert read_settings(root) == {
        "train": 2, "val": 1, "size": 96, "seed": 0, "vary_size": False, "version": shapes.VERSION,
    }  # fmt: skip
    monkeypatch.setattr(shapes, "_write_all", lambda *_: pytest.fail("drawn again"))
    assert write_shapes(root, train=2, val=1) == root
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("change", [{"train": 3}, {"seed": 1}, {"vary_size": True}, {"size": 64}])
def test_other_settings_are_refused(tmp_path, change):
    root = write_shapes(tmp_path / "data", train=2, val=1, workers=1)
    before = files(root)
    (name, value), *_ = change.items()
    with pytest.raises(UserError, match=rf"data holds .*{name}=.*{name}={value} .*--coco_path"):
        write_shapes(root, **{"train": 2, "val": 1, "workers": 1, **change})
    assert files(root) == before and os.listdir(tmp_path) == ["data"]


def test_a_foreign_or_damaged_folder_is_refused(tmp_path):
    foreign = tmp_path / "photographs"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"dear to someone")
    with pytest.raises(UserError, match=r"photographs holds something other .*--coco_path"):
        write_shapes(foreign, train=2, val=1, workers=1)
    assert (foreign / "holiday.jpg").read_bytes() == b"dear to someone"
    with pytest.raises(UserError, match=r"holiday.jpg holds something other"):
        write_shapes(foreign / "holiday.jpg", train=2, val=1, workers=1)

    root = write_shapes(tmp_path / "data", train=2, val=1, workers=1)
    next((root / "panoptic_train2017").iterdir()).unlink()
    assert read_settings(root) is None
    with pytest.raises(UserError, match="data holds something other"):
        write_shapes(root, train=2, val=1, workers=1)


def test_empty_folders_and_links_are_filled(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    write_shapes(tmp_path / "link", train=2, val=1, workers=1)
    assert (tmp_path / "link").is_symlink() and read_settings(tmp_path / "elsewhere") is not None


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 10**7}, {"size": 8}, {"seed": -1}, {"workers": 0}])
def test_settings_out_of_range(tmp_path, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is -?\\d+, but must be at"):
        write_shapes(tmp_path / "data", **{"train": 2, "val": 1, **wrong})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("where", [(shapes, "_write_json"), (os, "rename")])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch, where, error):
    def stop(*_args):
        raise error

    monkeypatch.setattr(*where, stop)
    full = isinstance(error, OSError)
    with pytest.raises(UserError if full else KeyboardInterrupt, match="data: No space" if full else None):
        write_shapes(tmp_path / "data", train=2, val=1, workers=1)
    assert not os.listdir(tmp_path)


def test_a_killed_call_is_not_mistaken_for_a_data_set(tmp_path):
    """That its workers end with it, test_workers.py says."""
    code = f"from datasets.shapes import write_shapes; write_shapes({str(tmp_path / 'data')!r}, workers=1)"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not list(tmp_path.glob(".data.partial-*/train2017/*.jpg")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "data").exists()
    assert read_settings(write_shapes(tmp_path / "data", train=2, val=1, workers=1)) is not None


def test_leftovers_of_killed_calls_are_removed_when_they_are_old(tmp_path):
    for name, age in (("old", 2 * shapes.STALE_SECONDS), ("new", 0)):
        folder = tmp_path / f".data.partial-{name}" / "train2017"
        folder.mkdir(parents=True)
        for path in (folder, folder.parent):
            os.utime(path, (time.time() - age, time.time() - age))
    write_shapes(tmp_path / "data", train=2, val=1, workers=1)
    assert sorted(os.listdir(tmp_path)) == [".data.partial-new", "data"]


def test_losing_a_race_is_no_error(tmp_path, monkeypatch):
    """Another process finishes between this call's look at the folder and its rename."""
    write_all = shapes._write_all

    def race(folder: Path, settings: dict, workers: int) -> None:
        write_all(folder, settings, workers)
        monkeypatch.setattr(shapes, "_write_all", write_all)
        write_shapes(tmp_path / "data", train=2, val=1, workers=1)

    monkeypatch.setattr(shapes, "_write_all", race)
    write_shapes(tmp_path / "data", train=2, val=1, workers=1)
    assert os.listdir(tmp_path) == ["data"]


def test_command_line(tmp_path, capsys):
    options = ["--out", str(tmp_path / "data"), "--train", "2", "--val", "1", "--workers", "1"]
    assert shapes.main(options) == 0
    assert str(tmp_path / "data" / "annotations") in capsys.readouterr().out
    assert shapes.main([*options, "--seed", "7"]) == 2
    message = capsys.readouterr().err
    assert "seed=7" in message and message.count("\n") == 1


def test_module_needs_no_torch():
    code = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('shapes', 'datasets/shapes.py'); "
        "spec.loader.exec_module(importlib.util.module_from_spec(spec)); "
        "sys.exit('torch' in sys.modules)"
    )
    assert python("-c", code).returncode == 0
