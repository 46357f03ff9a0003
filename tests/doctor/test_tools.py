"""Data as tools write them: nothing is lost, nothing lies elsewhere, nothing happens without a word."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import sys
import unicodedata
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from datasets.coco import CocoDetection, find_coco_files
from doctor.__main__ import run
from doctor.check import check_dataset, find_sources
from doctor.convert import run as convert
from doctor.new_folder import NewFolder
from doctor.numbering import Numbering
from inference.pictures import View, listed_views, read_picture
from tests.doctor.red_rectangles import (
    SIZE,
    SPECIAL,
    box_of,
    coco_of,
    hashes,
    landed,
    save_picture,
    save_special,
    write_coco,
    write_json,
)
from tests.helpers import ROOT
from util.errors import UserError

FAULTS = ROOT.parent / "shared" / "faults"


def said(command: Callable[[list[str]], int], *words: Any) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = command(list(map(str, words)))
    assert "unexplained" not in out.getvalue()
    return status, out.getvalue()


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# ---- the kinds that others have collected


@pytest.mark.skipif(not FAULTS.is_dir(), reason=f"no {FAULTS}")
def test_collected_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAULTS))
    spec = importlib.util.spec_from_file_location("make", FAULTS / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    sys.modules.pop("mk", None)
    for kind, (write, _) in make.KINDS.items():
        source = tmp_path / kind
        source.mkdir()
        write(source)
        before = hashes(source)
        root = source / "data" if kind.startswith("names") else source
        if kind.startswith("yolo") or kind == "one_json":
            root = tmp_path / f"{kind}_converted"
            said(convert, "yolo" if kind.startswith("yolo") else "coco", source, root)
        said(run, root, "--fix", tmp_path / f"{kind}_fixed")
        assert hashes(source) == before, kind
        if kind not in ("grey16", "all_crowd"):  # nothing red, and red that is no object
            assert landed(tmp_path / f"{kind}_fixed")[0] >= 0.9, kind


# ---- pictures turned by EXIF


@pytest.mark.parametrize("size", [SIZE, (80, 80)])
@pytest.mark.parametrize("form", ["yolo", "outline", "via", "coco"])
def test_photographs_of_any_orientation(form: str, size: tuple[int, int], tmp_path: Path) -> None:
    source, count = tmp_path / "source", 10
    regions: dict[str, Any] = {}
    for number in range(count):
        split, orientation = "train" if number < 8 else "val", 1 + number % 8
        if form == "coco" and (size == (80, 80) or orientation in (2, 3, 4)):
            orientation = 1  # it states the size as shown; of two frames that have it, the one as stored
        save_picture(source / "images" / split / f"{number}.png", number, size, orientation)
        x, y, w, h = box_of(number)
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        numbers = [x + w / 2, y + h / 2, w, h] if form == "yolo" else corners
        text = " ".join(str(value / size[i % 2]) for i, value in enumerate(numbers))
        label = source / "labels" / split / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"0 {text}\n")
        shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
        region = {"shape_attributes": shape, "region_attributes": {"name": "thing"}}
        regions[str(number)] = {"filename": f"images/{split}/{number}.png", "regions": [region]}
    (source / "classes.txt").write_text("thing\n")
    content = coco_of(count)
    for image in content["images"]:
        image.update(width=size[0], height=size[1])
    write_json(source / "project.json", content if form == "coco" else regions)
    place = source if form in ("yolo", "outline") else source / "project.json"
    said(convert, {"outline": "yolo"}.get(form, form), place, tmp_path / "out")
    said(run, tmp_path / "out", "--fix", tmp_path / "fixed")
    for made in ("out", "fixed"):
        worst, objects = landed(tmp_path / made)
        assert worst > 0.99 and objects == count


# ---- nothing outside the new folder is written


@pytest.mark.parametrize("name", ["/{}/other/{}.png", "../../../other/{}.png", "a/../../../../other/{}.png"])
def test_names_that_leave_the_folder(name: str, tmp_path: Path) -> None:
    for number in range(15):
        save_picture(tmp_path / "other" / f"{number}.png", number)

    def leave(content: dict[str, Any]) -> None:
        for image in content["images"]:
            number = image["file_name"].removesuffix(".png")
            image["file_name"] = name.format(*[str(tmp_path).lstrip("/"), number][-name.count("{}") :])
            image.pop("width")

    root = write_coco(tmp_path / "set" / "data", leave)
    (root / "train2017" / "a").mkdir()
    (root / "val2017" / "a").mkdir()
    before = hashes(tmp_path)
    said(run, root, "--fix", root / "fixed")
    after = hashes(tmp_path)
    assert {path: digest for path, digest in after.items() if path in before} == before
    assert all(path.startswith(str(root / "fixed")) for path in after.keys() - before.keys())
    assert landed(root / "fixed") == (1.0, 15)


def test_the_new_folder_refuses_what_leads_out_of_it(tmp_path: Path) -> None:
    folder = NewFolder(tmp_path / "new")
    folder.write("a/b.txt", "b")
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "new" / "way").symlink_to(tmp_path)
    (tmp_path / "new" / "link.txt").symlink_to(tmp_path / "own.txt")
    for name in ("../own.txt", "a/../../own.txt", str(tmp_path / "own.txt"), "way/own.txt", "..", ""):
        with pytest.raises(UserError, match="leads out of the new folder"):
            folder.write(name, "yours")
    folder.write("link.txt", "new")  # replaces the link, and does not write through it
    folder.link(tmp_path / "own.txt", "a/b.txt")
    assert (tmp_path / "own.txt").read_text() == "mine" == (tmp_path / "new" / "a" / "b.txt").read_text()
    with pytest.raises(UserError, match="holds something already"):
        NewFolder(tmp_path / "new")


# ---- ids of any type


def _uuids(content: dict[str, Any]) -> None:
    names = {m["id"]: str(uuid.uuid5(uuid.NAMESPACE_URL, str(m["id"]))) for m in content["images"]}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for one in content["annotations"]:
        one.update(id=f"{one['id']:#x}", image_id=names[one["image_id"]])


def _names(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one.update(image_id=f"{one['image_id'] - 1}.png", category_id="thing")


def _half_text(content: dict[str, Any]) -> None:
    for place, image in enumerate(content["images"]):
        image["id"] = [image["id"], str(image["id"]), float(image["id"])][place % 3]
    for place, one in enumerate(content["annotations"]):
        one["image_id"] = [str(one["image_id"]), float(one["image_id"]), one["image_id"]][place % 3]
        one["category_id"] = "1.0"
    content["categories"][0]["id"] = "1"


def _long_numbers(content: dict[str, Any]) -> None:
    for place, image in enumerate(content["images"]):  # 128 bits, as a UUID's integer has
        image["id"] = content["annotations"][place]["image_id"] = 10**36 + image["id"]


def _same_number(content: dict[str, Any]) -> None:
    """'7' and 7 are different images here, and so are 'a' and what it would be numbered."""
    images, objects = content["images"], content["annotations"]
    numbers = [images[1]["id"], str(images[1]["id"]), "a", "1"]
    for place, number in zip((1, 2, 3, 4), numbers, strict=True):
        images[place]["id"] = objects[place]["image_id"] = number


@pytest.mark.parametrize("change", [_uuids, _names, _half_text, _long_numbers, _same_number])
def test_ids_of_any_type(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", change)
    said(run, root, "--fix", tmp_path / "fixed")
    assert landed(tmp_path / "fixed") == (1.0, 15)
    said(convert, "coco", root, tmp_path / "converted")
    assert landed(tmp_path / "converted") == (1.0, 15)


def test_a_numbering() -> None:
    numbering = Numbering([5, "7", 7, "x", None, None, 2.0, "x"], [1, "7"], [["five"], ["seven"], ["seven"]])
    five, text, seven, x, none, other, two, same = numbering.numbers
    assert (five, seven, two, same) == (5, 7, 2, x) and len({*numbering.numbers}) == 7
    assert 1 not in numbering.numbers  # something refers to it that is not listed
    assert (numbering("7"), numbering(7), numbering("x"), numbering("five")) == (text, 7, x, 5)
    assert numbering("seven") is numbering("y") is numbering(None) is None


# ---- splits


def _write_yolo(root: Path, folder: str = "images/{}", label: str = "{}.txt") -> Path:
    for number in range(9):
        split = ("train", "valid", "test")[number // 3]
        path = root / folder.format(split) / f"{number}.png"
        save_picture(path, number)
        place = Path(str(path.parent).replace("images", "labels")) / label.format(path.stem)
        place.parent.mkdir(parents=True, exist_ok=True)
        x, y, w, h = box_of(number)
        place.write_text(f"0 {(x + w / 2) / 120} {(y + h / 2) / 80} {w / 120} {h / 80}\n")
    (root / "classes.txt").write_text("thing\n")
    return root


def _splits(root: Path) -> dict[str, set[str]]:
    files = root.glob("annotations/instances_*.json")
    named = {file.stem.removeprefix("instances_").removesuffix("2017"): load(file) for file in files}
    return {split: {image["file_name"] for image in one["images"]} for split, one in named.items()}


EXPECTED = {
    split: {f"{n}.png" for n in range(first, first + 3)}
    for split, first in (("train", 0), ("val", 3), ("test", 6))
}


VOC_LISTS = {"voc": "{}", "voc of a class": "{}.png -1", "voc with blanks": "my {}"}  # their lines


@pytest.mark.parametrize(
    "form", ["folders", "lists", "yaml", "yaml of lists", *VOC_LISTS, "voc folders", "via"]
)
def test_splits_are_kept(form: str, tmp_path: Path) -> None:
    source = _write_yolo(tmp_path / "source", "{}/images" if form in ("folders", "yaml") else "images")
    if "list" in form:
        for split, names in EXPECTED.items():
            (source / f"{split}.txt").write_text("".join(f"./images/{name}\n" for name in sorted(names)))
    if form.startswith("yaml"):
        pytest.importorskip("yaml")
        places = ("../{}/images", "{}.txt")[form != "yaml"]
        lines = [f"{s}: {places.format('valid' if s == 'val' and form == 'yaml' else s)}" for s in EXPECTED]
        (source / "data.yaml").write_text("\n".join([*lines, "names: [thing]"]))
    if form.startswith("v"):
        source = tmp_path / form
        for split, names in EXPECTED.items():
            _write_others(source, form, {"val": "valid"}.get(split, split), sorted(names))
    status, text = said(convert, form.split()[0] if form[0] == "v" else "yolo", source, tmp_path / "out")
    splits = _splits(tmp_path / "out").items()
    assert {split: {name.removeprefix("my ") for name in names} for split, names in splits} == EXPECTED
    assert "drawn" not in text
    assert landed(tmp_path / "out", ("train", "val", "test")) == (1.0, 9)


def test_lists_split_a_project_of_via_too(tmp_path: Path) -> None:
    for split, names in EXPECTED.items():
        _write_others(tmp_path, "via", split, sorted(names))
    files = {split: tmp_path / split / "via.json" for split in EXPECTED}
    entries = {
        f"{split}/{one['filename']}": one for split, file in files.items() for one in load(file).values()
    }
    write_json(tmp_path / "all.json", {name: {**one, "filename": name} for name, one in entries.items()})
    for split, names in EXPECTED.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{split}/{name}" for name in names))
    said(convert, "via", tmp_path / "all.json", tmp_path / "out")
    assert _splits(tmp_path / "out") == EXPECTED


def _write_others(source: Path, form: str, split: str, names: list[str]) -> None:
    entries: dict[str, Any] = {}
    places = ("data", "labels") if form == "voc with blanks" else ("JPEGImages", "Annotations")
    for name in names:
        x, y, w, h = box_of(int(name[0]))
        folder, stem = source / (places[0] if form in VOC_LISTS else split), name[0]
        if form == "voc with blanks":
            stem = f"my {stem}"
        save_picture(folder / f"{stem}.png", int(name[0]))
        sides = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        xml = f"<annotation><object><name>thing</name><bndbox>{sides}</bndbox></object></annotation>"
        if form.startswith("voc"):
            place = (source / places[1] if form in VOC_LISTS else folder) / f"{stem}.xml"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(xml)
        shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
        region = {"shape_attributes": shape, "region_attributes": {"name": "thing"}}
        entries[name] = {"filename": name, "regions": [region]}
    if form in VOC_LISTS:
        word = "val" if split == "valid" else split
        file = source / "ImageSets" / "Main" / f"{'thing_' if 'class' in form else ''}{word}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(VOC_LISTS[form].format(name[0]) for name in names))
    if form == "via":
        write_json(source / split / "via.json", entries)


# ---- YOLO's labels


@pytest.mark.parametrize("shape, more", [((2, 3), "0.2 0.3 2 0 0 0"), ((3, 2), "0.2 0.3 0 0 0.1 0.2")])
def test_poses(shape: tuple[int, int], more: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    source = _write_yolo(tmp_path / "source")
    for label in (source / "labels").rglob("*.txt"):
        label.write_text(f"{label.read_text().strip()} {more}\n")
    (source / "data.yaml").write_text(f"kpt_shape: {list(shape)}\nnames: [thing]\n")
    said(convert, "yolo", source, tmp_path / "out")
    assert landed(tmp_path / "out") == (1.0, 6)
    one = load(tmp_path / "out" / "annotations" / "instances_train2017.json")["annotations"][0]
    assert one["keypoints"][:3] == [24, 24, 2] and one["keypoints"][5] == 0
    assert len(one["keypoints"]) == 3 * shape[0]
    (source / "data.yaml").write_text("kpt_shape: 5\nnames: [thing]\n")
    with pytest.raises(UserError, match=r"kpt_shape must be \[number of keypoints, 2 or 3\], not 5"):
        said(convert, "yolo", source, tmp_path / "other")


@pytest.mark.parametrize("label", ["{}.png.txt", "{}.TXT", "%3{}.txt"])
def test_label_files_that_are_called_otherwise(label: str, tmp_path: Path) -> None:
    source = _write_yolo(tmp_path / "source", label=label)
    if label.startswith("%"):  # %30.txt is the label of 0.png
        assert (source / "labels" / "train" / "%30.txt").is_file()
    said(convert, "yolo", source, tmp_path / "out")
    assert landed(tmp_path / "out", ("train", "val", "test")) == (1.0, 9)


def test_label_files_of_another_normal_form_and_of_no_picture(tmp_path: Path) -> None:
    source = _write_yolo(tmp_path / "source", "images")
    for old, new in (("1", "é"), ("2", "ü 2")):
        (source / "images" / f"{old}.png").rename(source / "images" / f"{new}.png")
        name = unicodedata.normalize("NFD", new)
        (source / "labels" / f"{old}.txt").rename(source / "labels" / f"{name}.txt")
    (source / "labels" / "3.txt").rename(source / "labels" / "lost.txt")
    _, text = said(convert, "yolo", source, tmp_path / "out")
    lost = "left out: 0 pictures, 1 object (thing 1): label files that match no picture: labels/lost.txt"
    assert lost in text and "drawn: 7 pictures for train, 2 for val" in text
    assert landed(tmp_path / "out")[1] == 8


# ---- names of pictures

SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "backslashes": lambda folder, name: f"images\\{name}",
    "a drive": lambda folder, name: f"C:\\Users\\me\\{folder}\\{name}",
    "a double slash": lambda folder, name: f"{folder}//{name}",
    "blanks": lambda folder, name: f" {name} ",
    "percent": lambda folder, name: quote(f"./{name}").replace("p", "%70"),
    "a URL": lambda folder, name: f"https://example.org/{folder}/{name}?size=large",
    "Label Studio": lambda folder, name: f"/data/local-files/?d={folder}/{name}",
    "upper case": lambda folder, name: name.upper(),
    "another machine's path": lambda folder, name: f"/home/other/{folder}/{name}",
}


def test_names_as_tools_write_them(tmp_path: Path) -> None:
    spell = itertools.cycle(SPELLINGS.values())

    def rename(content: dict[str, Any]) -> None:
        folder = "train2017" if len(content["images"]) == 10 else "val2017"
        for image in content["images"]:
            image["file_name"] = next(spell)(folder, image["file_name"])

    root = write_coco(tmp_path / "set", rename)
    assert landed(root) == (1.0, 15)
    assert said(run, root, "--fix", tmp_path / "fixed")[0] == 0
    assert landed(tmp_path / "fixed") == (1.0, 15)


@pytest.mark.parametrize("key", ["coco_url", "flickr_url"])
def test_urls_in_place_of_file_names(key: str, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image[key] = f"http://images.example.org/{image.pop('file_name')}"
        for one in content["annotations"]:
            del one["iscrowd"]

    root = write_coco(tmp_path / "set", rename)
    assert landed(root) == (1.0, 15)
    said(run, root, "--fix", tmp_path / "fixed")
    assert landed(tmp_path / "fixed") == (1.0, 15)


def test_what_lies_there_instead(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "nowhere.png"
        content["images"][1]["file_name"] = content["images"][1]["file_name"].replace("png", "jpg")
        content["images"][2]["file_name"] = "\ud800.png"

    _, text = said(run, write_coco(tmp_path / "set", rename))
    assert "nowhere.png; the folder holds 0.png, 1.png, 2.png, 3.png, 4.png and 5 more" in text
    assert "1.jpg; there is 1.png" in text


# ---- COCO of other tools

LAYOUTS = {
    "CVAT": ("annotations/instances_default.json", "images/default/{}"),
    "FiftyOne": ("labels.json", "data/{}"),
    "Label Studio": ("result.json", "images/{}"),
    "beside": ("all.json", "{}"),
    "deep": ("annotations/all.json", "some/where/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_json_comes_in(layout: str, tmp_path: Path) -> None:
    file, pictures = LAYOUTS[layout]
    for number in range(10):
        save_picture(tmp_path / "set" / pictures.format(f"{number}.png"), number)
    content = coco_of(10, name=lambda n: f"images\\{n}.png" if layout == "Label Studio" else f"{n}.png")
    for place, one in enumerate(content["annotations"]):
        x, y, w, h = one["bbox"]
        boxes = [one["bbox"], f"[{x}, {y}, {w}, {h}]", {"x": x, "y": y, "width": w, "height": h}]
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]  # as VIA writes it, and as COCO does
        one.update(iscrowd=False, bbox=boxes[place % 3], segmentation=[polygon, [polygon]][place % 2])
    write_json(tmp_path / "set" / file, content)
    (tmp_path / "set" / file).write_bytes(b"\xef\xbb\xbf" + (tmp_path / "set" / file).read_bytes())
    status, text = said(convert, "coco", tmp_path / "set", tmp_path / "out")
    assert status == 0 and "drawn: 8 pictures for train, 2 for val" in text
    assert landed(tmp_path / "out") == (1.0, 10)
    made = load(tmp_path / "out" / "annotations" / "instances_val2017.json")["annotations"]
    assert all(len(one["segmentation"][0]) == 8 for one in made)
    assert said(convert, "coco", tmp_path / "set" / file, tmp_path / "half", "--split", 0.5)[0] == 0
    assert [len(names) for names in _splits(tmp_path / "half").values()] == [5, 5]


def test_several_files(tmp_path: Path) -> None:
    for number in range(9):
        save_picture(tmp_path / "pictures" / f"{number}.png", number)
    parts = [coco_of(4), coco_of(4, 2), coco_of(3, 6)]
    parts[1]["categories"] = [{"id": 1, "name": "other"}, {"id": 2, "name": "thing"}]
    for number, part in enumerate(parts):
        write_json(tmp_path / f"{number}.json", part)
    files = [tmp_path / f"{number}.json" for number in range(3)]
    words = ["--val", files[2], "--images", tmp_path / "pictures"]
    _, text = said(convert, "coco", files[0], files[1], tmp_path / "out", *words)
    train = load(tmp_path / "out" / "annotations" / "instances_train2017.json")
    assert len(train["images"]) == 6 and len(train["annotations"]) == 8
    assert [one["name"] for one in train["categories"]] == ["thing", "other"]
    assert "train: 6 pictures, 8 objects (other 4, thing 4) before; 6 pictures, 8 objects" in text
    assert landed(tmp_path / "out") == (1.0, 11)
    with pytest.raises(UserError, match="none of its pictures was found.*--images FOLDER"):
        said(convert, "coco", files[0], tmp_path / "none", "--images", tmp_path / "out" / "annotations")


def test_pictures_of_a_test_file_are_never_drawn_for_training(tmp_path: Path) -> None:
    for number in range(6):
        save_picture(tmp_path / "images" / f"{number}.png", number)
    for number in range(2):
        write_json(tmp_path / f"{number}.json", coco_of(3, 3 * number))
    words = ["--test", tmp_path / "1.json", "--split", 1]
    said(convert, "coco", tmp_path / "0.json", tmp_path / "out", *words)
    assert _splits(tmp_path / "out") == {
        "train": {"0.png", "1.png", "2.png"},
        "test": {"3.png", "4.png", "5.png"},
    }


def test_sizes_that_a_json_leaves_out(tmp_path: Path) -> None:
    """They are the picture's, in the frame of EXIF that boxes fit; where both fit, the doctor says so."""
    content = coco_of(10)
    for number, (image, one) in enumerate(zip(content["images"], content["annotations"], strict=True)):
        del image["width"], image["height"]
        save_picture(tmp_path / "set" / f"{number}.png", number, orientation=6 if number in (3, 4) else 1)
        if number == 3:
            one["bbox"] = [0, 0, SIZE[0], SIZE[1]]
    write_json(tmp_path / "set" / "a.json", content)
    _, text = said(convert, "coco", tmp_path / "set", tmp_path / "out")
    files = (tmp_path / "out" / "annotations").iterdir()
    sizes = {image["file_name"]: image.get("width") for file in files for image in load(file)["images"]}
    assert sizes.pop("4.png") is None and set(sizes.values()) == {SIZE[0]}
    assert "an EXIF rotation that its size does not tell" in text and "image id 5" in text


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_new_folder_below_the_source_does_not_come_in_itself(form: str, tmp_path: Path) -> None:
    source = _write_yolo(tmp_path / "source", "images")
    if form == "coco":
        write_json(source / "a.json", coco_of(9))
    for out in ("one", "two"):
        assert said(convert, form, source, source / out)[0] == 0
        assert landed(source / out) == (1.0, 9)


def test_coco_2014s_layout_keeps_its_splits(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 4)):
        for number in range(first, first + 4):
            save_picture(tmp_path / "set" / f"{split}2014" / f"{number}.png", number)
        write_json(tmp_path / "set" / "annotations" / f"instances_{split}2014.json", coco_of(4, first))
        write_json(tmp_path / "set" / "annotations" / f"captions_{split}2014.json", {})
    _, text = said(convert, "coco", tmp_path / "set", tmp_path / "out")
    assert landed(tmp_path / "out") == (1.0, 8) and "drawn" not in text
    assert {split: len(names) for split, names in _splits(tmp_path / "out").items()} == {"train": 4, "val": 4}
    assert "not read, since they hold no instances: captions_train2014.json, captions_val2014.json" in text


# ---- LabelMe and OpenImages


@pytest.mark.parametrize("shape_type", ["rectangle", "polygon", "mask"])
def test_labelme(shape_type: str, tmp_path: Path) -> None:
    for number in range(10):
        save_picture(tmp_path / "set" / "images" / f"{number}.png", number, orientation=1 + number % 8)
        x, y, w, h = box_of(number)
        corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        points = corners if shape_type == "polygon" else corners[::2]
        shape = {"label": "thing", "shape_type": shape_type, "points": points}
        content = {"shapes": [shape], "imagePath": f"..\\images\\{number}.png", "imageData": None}
        write_json(tmp_path / "set" / "labels" / f"{number}.json", content)
    assert said(convert, "labelme", tmp_path / "set", tmp_path / "out")[0] == 1  # names those of EXIF alone
    assert landed(tmp_path / "out") == (1.0, 10)
    content["shapes"] = [{**shape, "shape_type": "line"}]
    write_json(tmp_path / "set" / "labels" / "0.json", content)
    with pytest.raises(UserError, match=r"0\.json: shape 0 gives no object"):
        said(convert, "labelme", tmp_path / "set" / "labels" / "0.json", tmp_path / "other")


def test_openimages(tmp_path: Path) -> None:
    head = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
    for split, first in (("train", 0), ("validation", 4), ("test", 8)):
        lines = [head, *(["gone,/m/1,0,1,0,1,0"] if split == "test" else [])]
        for number in range(first, first + 4):
            save_picture(tmp_path / "set" / split / f"{number}.png", number)
            x, y, w, h = box_of(number)
            lines.append(
                f"{number},/m/1,{x / 120},{(x + w) / 120},{y / 80},{(y + h) / 80},{int(number == 3)}"
            )
        (tmp_path / "set" / f"{split}-annotations-bbox.csv").write_text("\n".join(lines))
    (tmp_path / "set" / "class-descriptions-boxable.csv").write_text("/m/1,Tortoise\n")
    _, text = said(convert, "openimages", tmp_path / "set", tmp_path / "out")
    assert "train: 4 pictures, 4 objects (Tortoise 3, Tortoise (crowd) 1) before" in text
    assert "left out: 1 picture, 1 object (Tortoise 1): pictures that are not there" in text
    assert landed(tmp_path / "out", ("val", "test")) == (1.0, 8)


# ---- pictures of other kinds


@pytest.mark.parametrize("kind", SPECIAL)
def test_training_and_prediction_see_the_same(kind: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set")
    for path in list(root.rglob("*.png")):
        pixels = np.asarray(Image.open(path))
        path.unlink()
        save_special(pixels, path, kind)
    for file in (root / "annotations").iterdir():
        content = load(file)
        for image in content["images"]:
            image["file_name"] = str(Path(image["file_name"]).with_suffix(SPECIAL[kind]))
        write_json(file, content)
    img_folder, file = find_coco_files(root, "val")
    dataset = CocoDetection(img_folder, file, None, False)
    paths = [dataset.image_path(place) for place in range(len(dataset))]
    views = listed_views(file, paths)
    for place, path in enumerate(paths):
        trained = np.asarray(dataset[place][0])
        for view in (View(), View(as_shown=False), views[path][1]):
            assert (read_picture(path, view).permute(1, 2, 0).numpy() == trained).all()
        assert views[path][0] == dataset.ids[place] and trained.std() > 5
    report = check_dataset(find_sources(root))
    found = {group.name for group in report.groups}
    assert report.status == 0
    assert ("image_deep" in found) == (kind in ("16 bits", "32 bits", "floats"))
    assert ("image_transparent" in found) == (kind in ("grey and alpha", "palette"))


def test_deep_pictures_that_use_little_of_their_range(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set")
    for path in root.rglob("*.png"):
        grey = np.asarray(Image.open(path))[..., 0].astype(np.uint16)
        Image.fromarray(grey * 16).save(path)
    status, text = said(run, root)
    assert status == 1 and "use less than an eighth of their range" in text and "--white_level" in text
    dataset = CocoDetection(*find_coco_files(root, "val"), None, False, white_level=255 * 16)
    assert np.asarray(dataset[0][0]).max() == 220


def test_ground_truth_that_does_not_list_a_picture(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set")
    with pytest.raises(UserError, match=r"0\.png: --gt .*val2017\.json does not list it"):
        listed_views(root / "annotations" / "instances_val2017.json", [root / "train2017" / "0.png"])


# ---- what used to vanish


@pytest.mark.parametrize("flag", [1, True, "1", "true"])
def test_crowds_are_counted_and_a_class_of_crowds_alone_is_named(flag: Any, tmp_path: Path) -> None:
    def crowd(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": "brushed"})
        for one in content["annotations"][::2]:
            one.update(iscrowd=flag, category_id=2)

    status, text = said(run, write_coco(tmp_path / "set", crowd), "--fix", tmp_path / "fixed")
    assert status == 1 and "a class of crowds alone (1)" in text and "brushed 5" in text
    assert "train: 10 pictures, 10 objects (brushed (crowd) 5, thing 5) before" in text


@pytest.mark.parametrize("size", [(3000, 2), (2, 700)])
def test_thin_pictures_are_named_and_trained_on(size: tuple[int, int], tmp_path: Path) -> None:
    from datasets.coco import make_coco_transforms

    def thin(content: dict[str, Any]) -> None:
        content["images"][1].update(width=size[0], height=size[1])
        content["annotations"][1].update(bbox=[0, 0, *size], area=size[0] * size[1])

    root = write_coco(tmp_path / "set", thin)
    for place in ("train2017/1.png", "val2017/11.png"):
        Image.new("RGB", size, (220, 20, 20)).save(root / place)
    _, text = said(run, root)
    assert "a picture with one side over 100 times the other (1)" in text
    transforms = make_coco_transforms("val", eval_scale=128, max_size=160)
    image, target = CocoDetection(*find_coco_files(root, "train"), transforms, False)[1]
    assert min(image.shape[1:]) == 1 and len(target["boxes"]) == 1


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"", "an empty file"),
    ],
)
def test_other_files_in_place_of_pictures(data: bytes, reason: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set")
    (root / "train2017" / "0.png").write_bytes(data)
    assert reason in said(run, root)[1]
    with pytest.raises(UserError, match=f"0.png .image id 1.: cannot be read .*{reason}"):
        CocoDetection(*find_coco_files(root, "train"), None, False)[0]
    (root / "annotations" / "instances_train2017.json").write_bytes(data)
    status, text = said(run, root)
    assert status == 2 and "no valid JSON" in text and reason in text


def test_what_is_listed_nowhere_is_counted_and_an_empty_test_split_is_no_fault(tmp_path: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        content["images"].pop()
        content["annotations"].pop()

    root = write_coco(tmp_path / "set", forget)
    write_json(root / "annotations" / "instances_test2017.json", {**coco_of(1), "annotations": []})
    save_picture(root / "test2017" / "0.png", 20)
    status, text = said(run, root)
    assert status == 0 and "9.png" in text
    assert "pictures in the folder that the file does not list (1)" in text
    said(run, root, "--fix", tmp_path / "fixed")
    assert _splits(tmp_path / "fixed")["test"] == {"0.png"}


def test_more_pixels_than_pillow_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_coco(tmp_path / "set")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "a picture of more pixels than Pillow reads (10)" in said(run, root)[1]
