"""Converters: a COCO set written in another format comes back with its boxes, names and image ids."""

import json
import math
import sys

import numpy as np
import pytest

import main
from doctor.convert import run
from doctor.splits import draw
from tests.helpers import ROOT, write_pictures
from tests.spoiled import NAMES, TRAIN, VAL, write_clean
from util.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")


def load(root, name=TRAIN):
    return json.loads((root / name).read_text())


def objects(content):
    """Image id -> [(class name, box)], in the order of the file."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        found[one["image_id"]].append((names[one["category_id"]], one["bbox"]))
    return found


@pytest.fixture
def coco(tmp_path):
    """A clean set whose pictures are called by their ids, with boxes between pixels and one empty picture."""
    made = write_clean(tmp_path / "coco")
    draw = np.random.default_rng(3)
    for name, split in ((TRAIN, "train"), (VAL, "val")):
        content = made.files[name]
        for image in content["images"]:
            old, image["file_name"] = image["file_name"], f"{image['id']:012d}.jpg"
            (made.root / f"{split}2017" / old).rename(made.root / f"{split}2017" / image["file_name"])
        for one in content["annotations"]:
            one["bbox"] = [side + round(float(draw.uniform(0, 0.9)), 2) for side in one["bbox"]]
    empty = made.files[TRAIN]["images"][2]["id"]
    kept = [one for one in made.files[TRAIN]["annotations"] if one["image_id"] != empty]
    made.files[TRAIN]["annotations"] = kept
    return made


def per_picture(coco):
    """(split, picture file, entry, its objects) of every image."""
    for name, split in ((TRAIN, "train"), (VAL, "val")):
        content = coco.files[name]
        for image in content["images"]:
            yield split, coco.root / f"{split}2017" / image["file_name"], image, objects(content)[image["id"]]


def assert_same(root, coco, tolerance):
    for name in (TRAIN, VAL):
        back, before = load(root, name), coco.files[name]
        assert {c["id"]: c["name"] for c in back["categories"]} == dict(enumerate(NAMES, 1))
        keys = ("id", "file_name", "width", "height")
        assert [[i[k] for k in keys] for i in back["images"]] == [
            [i[k] for k in keys] for i in before["images"]
        ]
        expected, got = objects(before), objects(back)
        for image_id, pairs in expected.items():
            assert [pair[0] for pair in got[image_id]] == [pair[0] for pair in pairs]
            boxes = [[pair[1] for pair in one] for one in (got[image_id], pairs)]
            actual, expected = (np.reshape(one, (-1, 4)) for one in boxes)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def write_voc(coco, root, first=0, digits=2):
    """VOC with its folders and sets; coordinates count from `first`."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, picture, image, pairs in per_picture(coco):
        (root / "JPEGImages" / picture.name).write_bytes(picture.read_bytes())
        text = ""
        for name, (x, y, w, h) in pairs:
            corners = (x + first, y + first, x + w, y + h)
            sides = "".join(f"<{s}>{round(v, digits)}</{s}>" for s, v in zip(SIDES, corners, strict=True))
            text += f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        xml = f"<annotation><filename>{picture.name}</filename>{size}{text}</annotation>"
        (root / "Annotations" / f"{picture.stem}.xml").write_text(xml)
        with open(root / "ImageSets" / "Main" / f"{split}.txt", "a") as file:
            file.write(f"{picture.stem}\n")
    return root


def write_yolo(coco, root):
    """The layout with images/ and labels/; six decimals."""
    for split, picture, image, pairs in per_picture(coco):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        (root / "images" / split / picture.name).write_bytes(picture.read_bytes())
        lines = []
        for name, (x, y, w, h) in pairs:
            width, height = image["width"], image["height"]
            numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(NAMES.index(name)), *(f"{number:.6f}" for number in numbers)]))
        if lines:
            (root / "labels" / split / f"{picture.stem}.txt").write_text("\n".join(lines))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def write_via(coco, root):
    """Folders train/ and val/ with a file each, as version 2 saves projects."""
    entries: dict = {"train": {}, "val": {}}
    for split, picture, _, pairs in per_picture(coco):
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / split / picture.name).write_bytes(picture.read_bytes())
        regions = []
        for name, (x, y, w, h) in pairs:
            shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
            regions.append({"shape_attributes": shape, "region_attributes": {"label": name}})
        entries[split][f"{picture.name}123"] = {"filename": picture.name, "size": 123, "regions": regions}
    for split, content in entries.items():
        (root / split / "via_region_data.json").write_text(json.dumps({"_via_img_metadata": content}))
    return root


WRITERS = {"voc": write_voc, "yolo": write_yolo, "via": write_via}


@pytest.mark.parametrize("form, tolerance", [("voc", 0.011), ("yolo", 0.001), ("via", 1e-9)])
def test_there_and_back(form, tolerance, coco, tmp_path):
    source = WRITERS[form](coco, tmp_path / form)
    names = [] if form == "yolo" else ["--names", *NAMES]  # YOLO's are in classes.txt
    assert run([form, str(source), str(tmp_path / "out"), *names]) == 0
    assert_same(tmp_path / "out", coco, tolerance)


def test_voc_that_counts_from_one(coco, tmp_path):
    source = write_voc(coco, tmp_path / "voc", first=1, digits=0)
    assert run(["voc", str(source), str(tmp_path / "out"), "--names", *NAMES, "--one_based"]) == 0
    assert_same(tmp_path / "out", coco, 1.01)
    for sides in (corner for pairs in objects(load(tmp_path / "out")).values() for _, corner in pairs):
        assert all(side == int(side) for side in sides)


def test_the_next_command_and_the_checks(coco, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    source = write_via(coco, tmp_path / "via")
    assert run(["via", str(source), str(tmp_path / "clean")]) == 0
    next_step = capsys.readouterr().out.splitlines()[-1]
    assert next_step == (
        f"next: python main.py @recipes/finetune.args --coco_path {tmp_path / 'clean'} "
        "--output_dir outputs/clean --finetune https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth"
    )
    parser = main.RecipeParser("main.py", parents=[main.get_args_parser()])
    args = parser.parse_args(next_step.removeprefix("next: python main.py ").split())
    assert (args.output_dir, args.patience, args.backbone) == ("outputs/clean", 10, "resnet50")
    for text in (ROOT / "recipes" / "finetune.args", ROOT / "docs" / "own_data.md"):
        assert f"--finetune {args.finetune}" in text.read_text(), text
    data = json.loads((source / "train" / "via_region_data.json").read_text())
    first = next(iter(data["_via_img_metadata"].values()))
    first["regions"][0]["shape_attributes"]["width"] = 0
    (source / "train" / "via_region_data.json").write_text(json.dumps(data))
    assert run(["via", str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().out
    assert "a box without width or height (1)" in answer
    assert (
        f"next: python -m doctor {tmp_path / 'out'} --fix NEW_FOLDER, then python main.py "
        "@recipes/finetune.args --coco_path NEW_FOLDER --output_dir outputs/out --finetune https"
    ) in answer


def test_the_next_command_recommends_no_fix_that_does_not_help(coco, tmp_path, capsys):
    source = write_via(coco, tmp_path / "via")
    data = json.loads((source / "val" / "via_region_data.json").read_text())
    for one in data["_via_img_metadata"].values():
        one["regions"] = []
    (source / "val" / "via_region_data.json").write_text(json.dumps(data))
    assert run(["via", str(source), str(tmp_path / "out")]) == 2
    answer = capsys.readouterr().out.splitlines()[-1]
    assert answer == f"next: mend in {source} what is said above, and convert it to a new folder"


# ---- outlines


def test_outlines_of_yolo_and_via(tmp_path):
    folder = tmp_path / "source"
    write_pictures(folder, [(100, 80)], 7)
    (folder / "000000000007.txt").write_text("1 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75\n")
    out = tmp_path / "yolo"
    assert run(["yolo", str(folder), str(out), "--names", "a", "b", "--split", "1"]) == 0
    (one,) = load(out)["annotations"]
    assert one["bbox"] == [10, 20, 40, 40] and one["area"] == 1600 and one["category_id"] == 2
    assert one["segmentation"] == [[10, 20, 50, 20, 50, 60, 10, 60]]

    shapes = [
        {"name": "circle", "cx": 40, "cy": 30, "r": 20},
        {"name": "ellipse", "cx": 50, "cy": 40, "rx": 30, "ry": 10, "theta": math.pi / 2},
        {"name": "polygon", "all_points_x": [1, 21, 1], "all_points_y": [2, 2, 32]},
    ]
    regions = {str(i): {"shape_attributes": s, "region_attributes": {}} for i, s in enumerate(shapes)}
    project = {"x": {"filename": "000000000007.jpg", "regions": regions}}
    (folder / "p.json").write_text(json.dumps(project))
    out = tmp_path / "via"
    assert run(["via", str(folder / "p.json"), str(out), "--names", "pea", "--split", "1"]) == 0
    circle, ellipse, polygon = load(out)["annotations"]
    assert circle["bbox"] == [20, 10, 40, 40] and circle["area"] == pytest.approx(math.pi * 400, rel=0.01)
    assert ellipse["bbox"] == [40, 10, 20, 60]
    assert polygon["bbox"] == [1, 2, 20, 30] and polygon["area"] == 300


# ---- splits, ids and names


def test_splits_are_drawn_only_where_there_are_none():
    names = [f"{i}.jpg" for i in range(10)]
    splits, said = draw([""] * 10, names, None, 42)
    assert splits.count("train") == 8 and splits.count("val") == 2
    assert said == "drawn: 8 pictures for train, 2 for val (--split, --seed)"
    again, _ = draw([""] * 10, names[::-1], None, 42)
    assert again[::-1] == splits  # it depends on the names, not on their order
    assert draw([""] * 10, names, None, 1)[0] != splits
    assert draw(["val", "val"], ["a", "b"], None, 42) == (["val", "val"], "")
    assert draw(["val", "val"], ["a", "b"], 1.0, 42)[0] == ["train", "train"]
    kept = ["train", "test", "", "val"]
    assert draw(kept, list("abcd"), None, 42)[0][:2] == ["train", "test"]
    assert draw(kept, list("abcd"), 0.5, 42)[0][1] == "test"  # never drawn for training
    splits, said = draw(["train"] * 10 + ["test"], [*names, "t"], None, 42)
    assert splits.count("val") == 2 and splits[-1] == "test" and "2 for val" in said


def test_pictures_that_are_called_alike(tmp_path):
    for place, folder in enumerate(("one", "two")):
        write_pictures(tmp_path / "source" / folder, [(40 + place, 30)], 7)
        (tmp_path / "source" / folder / "000000000007.txt").write_text(f"{place} 0.5 0.5 0.4 0.4\n")
    assert (
        run(["yolo", str(tmp_path / "source"), str(tmp_path / "out"), "--names", "a", "b", "--split", "1"])
        == 0
    )
    content = load(tmp_path / "out")
    assert [(i["id"], i["file_name"], i["width"]) for i in content["images"]] == [
        (1, "000000000007.jpg", 40), (2, "000000000007_2.jpg", 41),
    ]  # fmt: skip
    assert objects(content) == {1: [("a", [12, 9, 16, 12])], 2: [("b", [12.3, 9, 16.4, 12])]}


@pytest.fixture
def with_yaml(coco, tmp_path):
    """A YOLO folder whose names are to be read from data.yaml."""
    source = write_yolo(coco, tmp_path / "yolo")
    (source / "classes.txt").unlink()
    return source


@pytest.mark.parametrize(
    "text",
    [
        "names:\n  0: bolt\n  1: nut\n  2: gear\n",
        "path: ..\ntrain: train/images\nval: valid/images\nnc: 3\nnames: ['bolt', 'nut', 'gear']\n",
    ],
)
def test_names_of_data_yaml(text, with_yaml, coco, tmp_path):
    pytest.importorskip("yaml", reason="needs PyYAML (requirements-extra.txt)")
    (with_yaml / "data.yaml").write_text(text)
    assert run(["yolo", str(with_yaml), str(tmp_path / "out")]) == 0
    assert_same(tmp_path / "out", coco, 0.001)


@pytest.mark.parametrize(
    "text, message",
    [
        ("names: [bolt, nut", "data.yaml is no valid YAML: .*line 1"),
        (
            "names: {x: bolt}",
            "data.yaml: names must be a list, or numbers from 0 with names, not {'x': 'bolt'}",
        ),
        ("names: {-1: bolt}", "data.yaml: names must be a list, or numbers from 0 with names, not {-1"),
        ("names: []", "data.yaml has no names of classes: pass --names"),
        ("names: [2020-99-99]", "data.yaml is no valid YAML: month must be in"),
        ("[" * 700, "data.yaml is no valid YAML: .*recursion"),
        ("names: 3", "no data.yaml with names"),
    ],
)
def test_a_faulty_data_yaml(text, message, with_yaml, tmp_path):
    pytest.importorskip("yaml", reason="needs PyYAML (requirements-extra.txt)")
    (with_yaml / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        run(["yolo", str(with_yaml), str(tmp_path / "out")])


def test_data_yaml_without_pyyaml(with_yaml, coco, tmp_path, monkeypatch):
    (with_yaml / "data.yaml").write_text("names: [bolt, nut, gear]")
    monkeypatch.setitem(sys.modules, "yaml", None)  # as where it is not installed
    with pytest.raises(UserError, match="data.yaml needs PyYAML: pip install pyyaml, or pass --names"):
        run(["yolo", str(with_yaml), str(tmp_path / "out")])
    assert run(["yolo", str(with_yaml), str(tmp_path / "out"), "--names", "bolt", "nut", "gear"]) == 0
    assert_same(tmp_path / "out", coco, 0.001)


# ---- mistakes


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def one_of(folder, pattern):
    return sorted(folder.rglob(pattern))[0]


@pytest.mark.parametrize(
    "form, damage, message",
    [
        ("voc", lambda s: replace(one_of(s, "*.xml"), "</size>", ""), r"11\.xml is no valid XML: .*line 1"),
        ("voc", lambda s: replace(one_of(s, "*.xml"), "<xmin>", "<xmin>x"), r"11\.xml: the bndbox .*'bolt'"),
        ("voc", lambda s: replace(one_of(s, "*.xml"), "<name>bolt", "<name>"), r"11\.xml: an object at"),
        ("voc", lambda s: one_of(s, "*.jpg").unlink(), r"11\.xml: its picture 0+11\.jpg is neither"),
        ("yolo", lambda s: replace(one_of(s, "*11.txt"), " 0.", " x."), r"11\.txt, line 1: "),
        ("yolo", lambda s: replace(one_of(s, "*11.txt"), "0 ", "8 "), "class 8 has no name.* 0 to 2"),
        ("yolo", lambda s: (s / "classes.txt").unlink(), "pass --names"),
        ("via", lambda s: replace(one_of(s, "*.json"), '"rect"', '"point"'), "region 0: a 'point' gives no"),
        ("via", lambda s: replace(one_of(s, "*.json"), '"label": "bolt"', ""), "0 has no class.*--names"),
        ("via", lambda s: one_of(s, "*.jpg").write_bytes(b""), r"cannot read the picture .*11\.jpg"),
    ],
)  # fmt: skip
def test_mistakes_are_named(form, damage, message, coco, tmp_path):
    source = WRITERS[form](coco, tmp_path / "source")
    damage(source)
    with pytest.raises(UserError, match=message):
        run([form, str(source), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("regions", None, r"p\.json: the regions of 000000000007\.jpg must be a list, .*, not None"),
        ("regions", 3, "must be a list, .*, not 3"),
        ("regions", [None], "7.jpg, region 0: it must be a JSON object, not None"),
        ("filename", None, "the filename of 'k' must be that of a picture, not None"),
        ("filename", "a\nb.jpg", "the filename of 'k' must be that of a picture, not 'a.nb.jpg'"),
        ("shape_attributes", None, "region 0 has no shape_attributes: draw it anew"),
        ("shape_attributes", "rect", "region 0: its shape_attributes must be a JSON object, not 'rect'"),
        ("region_attributes", None, "region 0 has no class in its attributes: pass --names"),
        ("region_attributes", "a", "region 0: its region_attributes must be a JSON object, not 'a'"),
        ("region_attributes", {"label": ["a"]}, "region 0 has no class in its attributes"),
        ("region_attributes", {"label": "\ud800"}, "'.ud800' is no UTF-8 text"),
    ],
)  # fmt: skip
def test_parts_of_via_that_are_null_or_of_another_type(part, value, message, tmp_path):
    assert_refused(part, value, message, tmp_path)


def assert_refused(part, value, message, tmp_path):
    """A VIA project of one picture and one region, a part of which has this value."""
    write_pictures(tmp_path / "source", [(40, 30)], 7)
    shape = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
    region = {"shape_attributes": shape, "region_attributes": {"label": "a"}}
    entry = {"filename": "000000000007.jpg", "regions": [region]}
    (region if part in region else entry)[part] = value
    (tmp_path / "source" / "p.json").write_text(json.dumps({"k": entry}))
    with pytest.raises(UserError, match=message):
        run(["via", str(tmp_path / "source"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"name": "rect", "x": math.nan, "y": 2, "width": 3, "height": 4}, "'rect' .*must be numbers of at"),
        ({"name": "rect", "x": 10**400, "y": 2, "width": 3, "height": 4}, "'rect' .*OverflowError"),
        ({"name": "polygon", "all_points_x": [1, None, 3], "all_points_y": [1, 2, 3]}, "'polygon' gives no"),
        ({"name": "polygon", "all_points_x": [], "all_points_y": []}, "'polygon' .*list of points"),
        ({"name": "circle", "cx": 1, "cy": 2, "r": [1] * 32}, "'circle' .*not 'list'"),
        ({"name": "ellipse", "cx": 1, "cy": 2, "rx": 3, "ry": 4, "theta": math.inf}, "'ellipse' .*at most"),
        ({"name": None}, "a None gives no object"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_absurd_shapes_of_via(shape, message, tmp_path):
    assert_refused("shape_attributes", shape, f"7.jpg, region 0: .*{message}", tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "p.json: no pictures there"),
        ("[" * 100_000, "p.json is no valid JSON: Lists or objects nested too deeply"),
        (f'{{"k": {"9" * 6000}}}', "p.json is no valid JSON: A number of thousands of digits"),
    ],
)
def test_faulty_files_of_via(text, message, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=message):
        run(["via", str(tmp_path / "p.json"), str(tmp_path / "out")])


def write_one_voc(folder, width="40", xmin="1"):
    write_pictures(folder, [(40, 30)], 7)
    sides = f"<xmin>{xmin}</xmin><ymin>2</ymin><xmax>20</xmax><ymax>25</ymax>"
    size = f"<size><width>{width}</width><height>30</height></size>"
    text = f"<annotation>{size}<object><name>a</name><bndbox>{sides}</bndbox></object></annotation>"
    (folder / "000000000007.xml").write_text(text)


@pytest.mark.parametrize(
    "message, key, value",
    [("width and height must be numbers of pixels", "width", width)
     for width in ("abc", "nan", "-40", "1e300")]
    + [("the bndbox of an object 'a' must be four numbers of pixels", "xmin", corner)
       for corner in ("", "a", "nan", "1e400")],
)  # fmt: skip
def test_numbers_of_voc_that_are_no_numbers_of_pixels(message, key, value, tmp_path):
    write_one_voc(tmp_path / "source", **{key: value})
    with pytest.raises(UserError, match=rf"7\.xml: {message}.*{value}"):
        run(["voc", str(tmp_path / "source"), str(tmp_path / "out")])


@pytest.mark.parametrize("width", ["", " ", "0", "40.0"])
def test_a_size_that_voc_leaves_out_is_read_off_the_picture(width, tmp_path):
    write_one_voc(tmp_path / "source", width=width)
    assert run(["voc", str(tmp_path / "source"), str(tmp_path / "out"), "--split", "1"]) == 0
    (image,) = load(tmp_path / "out")["images"]
    assert (image["width"], image["height"]) == (40, 30)


@pytest.mark.parametrize(
    "line",
    ["0 nan .5 .2 .2", "0 .5 inf .2 .2", "0 .5 .5 1e400 .2", "0 1e308 1e308 1e308 1e308", "0 1 nan 0 1 0 0"],
)
@pytest.mark.filterwarnings("error")
def test_coordinates_of_yolo_that_are_absurd(line, tmp_path):
    write_pictures(tmp_path / "source", [(40, 30)], 7)
    (tmp_path / "source" / "000000000007.txt").write_text(line)
    with pytest.raises(UserError, match=r"7\.txt, line 1: .*: coordinates must be numbers of at most"):
        run(["yolo", str(tmp_path / "source"), str(tmp_path / "out"), "--names", "a"])


def test_files_of_yolo_that_are_odd(tmp_path):
    source, label = tmp_path / "source", tmp_path / "source" / "000000000007.txt"
    write_pictures(source, [(40, 30)], 7)
    (source / "classes.txt").write_text("")
    with pytest.raises(UserError, match="classes.txt has no names of classes: pass --names"):
        run(["yolo", str(source), str(tmp_path / "out")])
    (source / "classes.txt").write_text("\ufeffa\n")  # some editors begin with that
    label.write_text("\ufeff0 0.5 0.5 0.2 0.2\n")
    assert run(["yolo", str(source), str(tmp_path / "out"), "--split", "1"]) == 0
    assert objects(load(tmp_path / "out"))[7][0][0] == "a"
    label.unlink()
    label.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*7\.txt: .*directory"):
        run(["yolo", str(source), str(tmp_path / "other")])
    label.rmdir()
    with pytest.raises(UserError, match="out.udce4' is no UTF-8 text: rename"):
        run(["yolo", str(source), str(tmp_path / "out\udce4")])


def test_nothing_is_written_over(coco, tmp_path):
    source = write_voc(coco, tmp_path / "source")
    with pytest.raises(UserError, match="holds something already"):
        run(["voc", str(source), str(coco.root)])
    with pytest.raises(UserError, match="no XML files there"):
        run(["voc", str(coco.root), str(tmp_path / "out")])
    with pytest.raises(UserError, match="no such file or folder"):
        run(["yolo", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    with pytest.raises(UserError, match="--split 80"):
        run(["voc", str(source), str(tmp_path / "out"), "--split", "80"])
