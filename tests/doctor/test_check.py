"""The data set doctor: every spoiled set is found out with its ids, and mended; clean sets pass."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest

from datasets.coco import CocoDetection
from datasets.coco_panoptic import CocoPanoptic
from doctor.__main__ import run
from doctor.boxes import find_convention, to_corners
from doctor.check import check_dataset, find_sources
from doctor.columns import RawFile
from doctor.fix import MENDED, write_corrected
from doctor.kinds import KINDS, Level
from doctor.masks import Extents, measure, run_lengths_of
from doctor.report import Finding, Report
from doctor.sources import Source
from tests.helpers import files
from tests.spoiled import NUM_CLASSES, SPOILED, TRAIN, VAL, CleanSet, put, spoil, write_clean, write_files
from tests.spoiled_panoptic import PANOPTIC, SPOILED_PANOPTIC, spoil_panoptic, write_clean_panoptic
from util.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")


def checked(path, images=None, num_classes=None):
    """The checks of one annotation file that open no picture."""
    return check_dataset({"": Source(path, images)}, num_classes, decode=False)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_clean(tmp_path_factory.mktemp("clean") / "set")


def check(root, num_classes=NUM_CLASSES):
    return check_dataset(find_sources(root), num_classes)


def found(report, name):
    return [finding for group in report.groups if group.name == name for finding in group.findings()]


def test_a_clean_set_passes(clean):
    report = check(clean.root)
    assert (report.faults, report.notes, report.status) == ([], [], 0)
    assert "6 images, 18 objects of 3 classes" in report.summary[0] and len(report.summary) == 2


@pytest.fixture(scope="module")
def clean_panoptic(tmp_path_factory):
    return write_clean_panoptic(tmp_path_factory.mktemp("clean") / "set")


def test_a_clean_panoptic_set_passes(clean_panoptic):
    report = check(clean_panoptic.root, num_classes=6)
    assert report.faults == [] and [group.name for group in report.notes] == ["id_gaps"]
    assert "3 images, 9 objects of 3 classes" in report.summary[0]


def find_out_and_mend(made, expected, num_classes, out):
    """The report on a spoiled set, as expected, and what --fix said, which must not touch it."""
    before = files(made.root)
    report = check(made.root, num_classes)
    assert {group.name for group in report.faults} == {expected.kind, *expected.also}, report.lines()
    first = found(report, expected.kind)[0]
    assert (first.annotation_id, first.image_id) == (expected.annotation_id, expected.image_id)
    assert expected.text in first.value and report.status == expected.status
    lines = write_corrected(find_sources(made.root), out, num_classes, drop=True)
    assert files(made.root) == before
    assert not any("unexplained" in line for line in lines)
    if expected.kind in MENDED:
        assert check(out, num_classes).faults == [], lines
        assert lines[-1].endswith("passes the checks")
    return report, lines


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_set_is_found_out_and_mended(name, clean, tmp_path):
    kind = SPOILED[name].kind
    made = spoil(name, clean, tmp_path / "spoiled")
    report, lines = find_out_and_mend(made, SPOILED[name], NUM_CLASSES, tmp_path / "fixed")
    if report.status == 2:
        assert any("cannot be corrected" in line for line in lines)
    elif kind in MENDED:
        assert kind not in str(lines)
        assert report.faults[0].kind.title in (tmp_path / "fixed" / "CHANGES.txt").read_text()
    else:
        assert lines[-1].startswith(f"the corrected copy in {tmp_path / 'fixed'} still has 1 fault of 1 kind")
        assert f", which --fix cannot mend: {report.faults[0].kind.title} (1), first " in lines[-1]
        assert {group.name for group in check(tmp_path / "fixed").faults} == {kind}


@pytest.mark.parametrize("name", SPOILED_PANOPTIC)
def test_a_spoiled_panoptic_set_is_found_out_and_mended(name, clean_panoptic, tmp_path):
    made = spoil_panoptic(name, clean_panoptic, tmp_path / "spoiled")
    find_out_and_mend(made, SPOILED_PANOPTIC[name], 6, tmp_path / "fixed")
    places = (tmp_path / "fixed" / name for name in ("train2017", "panoptic_train2017", PANOPTIC))
    dataset = CocoPanoptic(*places)
    assert all(len(dataset[i][1]["labels"]) for i in range(len(dataset)))


# ---- what corrections keep


def mend(made, tmp_path):
    """The contents of train's file, corrected."""
    write_files(made)
    write_corrected(find_sources(made.root), tmp_path / "fixed", NUM_CLASSES, drop=True)
    return json.loads((tmp_path / "fixed" / TRAIN).read_text())


def corrected(name, clean, tmp_path):
    """(the clean objects, the corrected ones) by id."""
    mended = mend(spoil(name, clean, tmp_path / "spoiled"), tmp_path)
    return [{one["id"]: one for one in part} for part in (clean.objects, mended["annotations"])]


@pytest.mark.parametrize(
    "name",
    ["boxes x1 y1 x2 y2", "boxes centred", "boxes centred, with polygons", "boxes as YOLO's", "box negative",
     "bbox missing", "bbox with text", "boxes in the other frame of EXIF", "image ids as text",
     "box of no size", "box of corners, area of the mask", "box of shares", "box beside its image"],
)  # fmt: skip
def test_corrections_give_the_boxes_back(name, clean, tmp_path):
    before, after = corrected(name, clean, tmp_path)
    assert before.keys() == after.keys()
    for number, one in before.items():
        np.testing.assert_allclose(after[number]["bbox"], one["bbox"], atol=2e-3)
        assert after[number]["image_id"] == one["image_id"]


def test_a_resized_picture_takes_its_objects_along(clean, tmp_path):
    before, after = corrected("picture resized", clean, tmp_path)
    assert after[105]["bbox"] == [side / 2 for side in before[105]["bbox"]]
    assert after[105]["area"] == before[105]["area"] / 4 and after[101] == before[101]
    polygons = [np.array(one[105]["segmentation"]) for one in (before, after)]
    np.testing.assert_allclose(polygons[1], polygons[0] / 2)


@pytest.mark.parametrize(
    "area, taken",
    [(650, True), (600, True), (500, False), (62 * 52, False), (math.nan, False)],
)
def test_the_box_is_replaced_only_where_the_area_is_the_masks(area, taken, clean, tmp_path):
    """Its mask has 650 square pixels, 700 as a box; the box, written as corners, has 3224 and fits."""
    made = spoil("box of corners, area of the mask", clean, tmp_path / "spoiled")
    put(4, area=area)(made)
    one = mend(made, tmp_path)["annotations"][4]
    assert one["bbox"] == ([34, 27, 28, 25] if taken else [34, 27, 62, 52])
    assert one["segmentation"] == clean.objects[4]["segmentation"]


def test_a_mask_that_is_no_better_replaces_no_box(clean, tmp_path):
    """It leaves the image, or is less than a pixel wide, or its run lengths are all that there is."""
    made = spoil("box of no size", clean, tmp_path / "spoiled")
    put(4, bbox=[0.4, 0.5, 0.2, 0.3], segmentation=[[0.4, 0.5, 0.9, 0.9, 0.6, 0.8]])(made)
    put(5, bbox=[80, 30, 60, 30], segmentation=[[-30, 10, -3, 10, -3, 40, -30, 40]])(made)
    mask = np.zeros((76, 104), dtype=np.uint8, order="F")
    mask[10:30, 20:60] = 1
    runs = {"size": [76, 104], "counts": pycocotools.mask.encode(mask)["counts"].decode()}
    put(6, bbox=[0.2, 0.2, 0.3, 0.3], segmentation=runs)(made)
    put(7, bbox=[10, 10, 0, 5], segmentation=[[30, 10, 30, 20, 30, 30]])(made)
    boxes = {one["id"]: one["bbox"] for one in mend(made, tmp_path)["annotations"]}
    assert boxes[105] == [0.4, 0.5, 0.2, 0.3] and boxes[106] == [80, 30, 20, 30]
    assert boxes[107] == [20, 10, 40, 20] and 108 not in boxes


@pytest.mark.parametrize("more", [[], [[40, 30, 50, 40, 45, 50]]])
@pytest.mark.parametrize("polygon", [[1, 2, 3], [1, 2, math.nan, 4, 5, 6], [1, 2, 3, 4, -5e8, 6]])
def test_what_is_corrected_for_masks_can_be_trained_with_masks(polygon, more, clean, tmp_path, capsys):
    made = spoil("polygon of two points", clean, tmp_path / "spoiled")
    put(4, bbox=[38, 28, 14, 24], area=80, segmentation=[polygon, *more])(made)
    write_files(made)
    assert run([str(made.root), "--masks", "--drop", "--fix", str(tmp_path / "fixed")]) == 1
    text = capsys.readouterr().out
    assert text.endswith(f"the corrected copy in {tmp_path / 'fixed'} passes the checks\n")
    assert run([str(tmp_path / "fixed"), "--masks"]) == 0
    objects = json.loads((tmp_path / "fixed" / TRAIN).read_text())["annotations"]
    changes = (tmp_path / "fixed" / "CHANGES.txt").read_text()
    assert [one["id"] for one in objects] == [n for n in range(101, 119) if more or n != 105]
    assert ("objects without a mask: dropped (1)\n    annotation id 105" in changes) == (not more)
    assert not more or objects[4]["segmentation"] == more
    dataset = CocoDetection(tmp_path / "fixed" / "train2017", tmp_path / "fixed" / TRAIN, None, True)
    assert [len(dataset[i][1]["masks"]) for i in range(2)] == [3, 3 if more else 2]


def test_without_masks_an_object_keeps_its_box(clean, tmp_path):
    before, after = corrected("polygon with NaN", clean, tmp_path)
    assert after[105] == {**before[105], "segmentation": []}


def test_boxes_only_cannot_be_corrected_for_masks(clean, tmp_path, capsys):
    made = spoil("box of no size", clean, tmp_path / "spoiled")
    for one in made.objects:
        one["segmentation"] = []
    write_files(made)
    assert run([str(made.root), "--masks", "--drop", "--fix", str(tmp_path / "fixed")]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "still has 1 fault of 1 kind, which --fix cannot mend: boxes only" in last
    assert "17 objects, none with a mask. --masks cannot be trained on these data" in last
    assert run([str(tmp_path / "fixed"), "--masks"]) == 1 and run([str(tmp_path / "fixed")]) == 0


def test_crowds_need_masks_where_they_are_scored(clean, tmp_path):
    made = spoil("box of no size", clean, tmp_path / "spoiled")
    put(4, bbox=[34, 27, 28, 25], iscrowd=1, segmentation=[])(made)
    made.files[VAL]["annotations"][4].update(iscrowd=1, segmentation=[])
    write_files(made)
    report = check_dataset(find_sources(made.root), NUM_CLASSES, masks=True)
    assert [(group.name, group.file, group.count) for group in report.faults] == [
        ("no_segmentation", made.root / VAL, 1)
    ]
    assert check(made.root).faults == []


def test_a_set_is_never_emptied(clean, tmp_path):
    made = spoil("box of no size", clean, tmp_path / "spoiled")
    made.train["annotations"] = [{**made.objects[4], "segmentation": []}]
    write_files(made)
    for drop in (False, True):
        with pytest.raises(UserError, match=r"nothing of .* would be left \(a box without width or height"):
            write_corrected(find_sources(made.root), tmp_path / "fixed", NUM_CLASSES, drop=drop)
    assert not (tmp_path / "fixed").exists()


def test_more_than_a_tenth_is_dropped_only_when_asked_for(clean, tmp_path):
    made = spoil("picture missing", clean, tmp_path / "spoiled")
    message = (
        r"train would lose 1 of 6 pictures, 3 of 18 objects \(a picture that is not there: "
        r"1 picture, 3 objects \(bolt 1, gear 1, nut 1\)\): nothing was written; .*--drop"
    )
    with pytest.raises(UserError, match=message):
        write_corrected(find_sources(made.root), tmp_path / "fixed", NUM_CLASSES)
    assert not (tmp_path / "fixed").exists()
    lines = write_corrected(find_sources(made.root), tmp_path / "fixed", NUM_CLASSES, drop=True)
    text = "\n".join(lines)
    assert "train: 6 pictures, 18 objects (bolt 6, gear 6, nut 6) before; 5 pictures, 15 objects" in text
    assert "    dropped: 1 picture, 3 objects (bolt 1, gear 1, nut 1): a picture that is not there" in text


def test_a_size_that_only_the_picture_tells_is_left_where_none_is_opened(clean, tmp_path):
    made = spoil("image without size", clean, tmp_path / "spoiled")
    lines = write_corrected(find_sources(made.root), tmp_path / "fixed", NUM_CLASSES, decode=False)
    assert "still has 1 fault of 1 kind" in lines[-1]


def test_a_resized_picture_may_have_odd_polygons(clean, tmp_path):
    made = spoil("picture resized", clean, tmp_path / "spoiled")
    put(3, segmentation=[[1, 2, 3], [20, 20, 30, 30, 20, 40]])(made)
    assert mend(made, tmp_path)["annotations"][3]["segmentation"] == [[10, 10, 15, 15, 10, 20]]


def test_what_a_kind_says_of_fix_is_true():
    assert {name for name, kind in KINDS.items() if "--fix" in kind.advice} == MENDED


def test_areas_are_computed_from_masks(clean, tmp_path):
    before, after = corrected("area missing", clean, tmp_path)
    assert after[105]["area"] == pytest.approx(before[105]["area"], rel=0.06)
    assert "licenses" not in after[105]


def test_several_faults_at_once(clean, tmp_path):
    names = ["image ids as text", "annotation id twice", "bbox with NaN", "area wrong", "picture missing",
             "names differ between splits", "polygon of two points"]  # fmt: skip
    shutil.copytree(clean.root, tmp_path / "spoiled")
    made = CleanSet(tmp_path / "spoiled", copy.deepcopy(clean.files))
    for name in names:
        SPOILED[name].spoiler(made)
    write_files(made)
    report = check(made.root)
    kinds = {SPOILED[name].kind for name in names} - {"area_wrong"}  # of the box that is no number
    assert kinds <= {group.name for group in report.faults}
    assert [group.level for group in report.faults] == sorted(group.level for group in report.faults)
    content = mend(made, tmp_path)
    assert check(tmp_path / "fixed").faults == []
    assert len(content["images"]) == 5 and content["info"] == {"year": 2020}


# ---- notes


def test_notes_leave_the_status_at_zero(clean, tmp_path):
    made = spoil("category beyond num_classes", clean, tmp_path / "set")
    for content in made.files.values():
        for one in (*content["annotations"], *content["categories"]):
            key = "category_id" if "bbox" in one else "id"
            one[key] = 0 if one[key] == 1 else one[key]
        content["categories"].append({"id": 5, "name": "spring"})
    val = made.files[VAL]
    val["annotations"] = [one for one in val["annotations"] if one["category_id"] != 2]
    made.train["annotations"] = made.objects[:-3]
    write_files(made)
    report = check_dataset(find_sources(made.root), 91, 2)
    assert report.status == 0
    notes = {group.name for group in report.notes}
    assert notes == {
        "id_gaps", "ids_from_zero", "empty_classes", "one_split_only", "more_than_queries",
        "images_without_objects",
    }  # fmt: skip
    assert found(report, "id_gaps")[0].value == "unused: 1, 3…4, 6…89; highest id 90"
    assert [f.value for f in found(report, "empty_classes")] == ["spring", "nut", "spring"]
    assert found(report, "more_than_queries")[0] == (None, 11, "3 objects, 2 queries")
    assert [f.image_id for f in found(report, "images_without_objects")] == [16]


def test_what_is_as_rare_as_in_coco_is_a_note():
    report = Report()
    for among in (19_999, 20_000):
        report.add("bbox_no_size", Path("x.json"), [3], lambda row: Finding(row, 1, ""), among)
    report.add("bbox_not_finite", Path("x.json"), [3], lambda row: Finding(row, 1, ""), 10**6)
    assert [group.level for group in report.groups] == [Level.WARNING, Level.NOTE, Level.ERROR]


# ---- the parts that are easily wrong


def test_run_lengths_agree_with_pycocotools():
    draw = np.random.default_rng(5)
    for density in (0.02, 0.3, 0.5, 0.97):
        mask = np.asfortranarray(draw.random((37, 300)) < density, dtype=np.uint8)
        encoded = pycocotools.mask.encode(mask)
        runs = run_lengths_of(encoded["counts"].decode())
        edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0))
        expected = np.diff(np.concatenate([[0], edges, [mask.size]]))
        assert runs.tolist() == expected.tolist()


def test_extents_of_masks_agree_with_pycocotools(tmp_path):
    draw = np.random.default_rng(6)
    height, width, masks = 30, 40, []
    for i in range(60):
        mask = np.zeros((height, width), dtype=np.uint8, order="F")
        top, left = draw.integers(0, height), draw.integers(0, width)
        mask[top : top + 1 + i % 7, left : left + 1 + i % 5] = 1
        mask[draw.integers(0, height), draw.integers(0, width)] = 1
        masks.append(pycocotools.mask.encode(mask))
    annotations = [
        {"segmentation": {**one, "counts": one["counts"].decode()}, "image_id": 1} for one in masks
    ]
    images = [{"id": 1, "width": width, "height": height}]
    raw = RawFile(tmp_path, {"images": images, "annotations": annotations, "categories": []})
    extents, faults = measure(raw)
    x, y, w, h = pycocotools.mask.toBbox(masks).T
    np.testing.assert_array_equal(extents.boxes, np.stack([x, y, x + w, y + h], axis=1))
    assert not any(column.any() for column in faults.values())


def test_the_convention_of_honest_boxes_is_not_doubted():
    draw = np.random.default_rng(7)
    limits = np.tile([640.0, 480.0], (500, 1))
    low = draw.uniform(0, 0.9, (500, 2)) * limits
    boxes = np.concatenate([low, draw.uniform(1, limits - low)], axis=1)
    nothing = Extents(np.full((500, 4), np.nan), np.zeros(500, dtype=bool))
    usable = np.ones(500, dtype=bool)
    assert find_convention(boxes, limits, usable, nothing) == ("xywh", "pixels")
    assert find_convention(to_corners(boxes, "xywh"), limits, usable, nothing) == ("xyxy", "pixels")
    centred = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    assert find_convention(centred, limits, usable, nothing) == ("centred", "pixels")
    for name, written in (("centred", centred), ("xywh", boxes), ("xyxy", to_corners(boxes, "xywh"))):
        normalised = written / np.tile(limits, 2)
        assert find_convention(normalised, limits, usable, nothing) == (name, "normalised")
    near = np.concatenate([low, low + 9], axis=1) / 2  # fit as x y width height as well: areas tell
    assert find_convention(near, limits, usable, nothing, np.full(500, 4.5**2))[0] == "xyxy"
    assert find_convention(near, limits, usable, nothing, np.prod(near[:, 2:], axis=1))[0] == "xywh"
    whole = np.concatenate([np.zeros((500, 2)), limits], axis=1)  # as large as their images
    assert find_convention(whole, limits, usable, nothing) == ("xywh", "pixels")
    beyond = boxes + [0, 0, 30, 0]  # many of them leave their images, and no convention suits
    assert find_convention(beyond, limits, usable, nothing) == ("xywh", "pixels")


# ---- the command


def test_the_command(clean, tmp_path, capsys):
    made = spoil("box of no size", clean, tmp_path / "set")
    for one in made.objects[:15]:
        del one["iscrowd"]
    write_files(made)
    out = tmp_path / "report.json"
    assert run([str(made.root), "--json", str(out), "--fix", str(tmp_path / "fixed")]) == 1
    text = capsys.readouterr().out
    assert text.index("a box without width or height (1)") < text.index("without iscrowd (15)")
    assert "annotation id 105, image id 12: bbox [40, 30, 0, 9]" in text and "… and 5 more" in text
    assert "16 faults of 2 kinds, 0 notes" in text and "passes the checks" in text
    groups = {group["kind"]: group for group in json.loads(out.read_text())["groups"]}
    assert len(groups["iscrowd_missing"]["findings"]) == 15
    first = {"annotation_id": 105, "image_id": 12, "value": "bbox [40, 30, 0, 9]"}
    assert groups["bbox_no_size"]["findings"] == [first]
    assert run([str(tmp_path / "fixed"), "--no_decode"]) == 0
    assert "no faults" not in capsys.readouterr().out.splitlines()[0]
    with pytest.raises(UserError, match="name a new folder"):
        run([str(made.root), "--fix", str(tmp_path / "fixed")])
    with pytest.raises(UserError, match="no such file or folder"):
        run([str(tmp_path / "nowhere")])


def test_a_file_by_itself(clean, tmp_path):
    report = checked(clean.root / TRAIN)
    assert (report.status, report.faults) == (0, [])
    report = checked(clean.root / TRAIN, clean.root / "val2017", num_classes=3)
    assert [group.name for group in report.fatal] == ["category_range", "image_missing"]
    assert report.one_line().startswith(
        f"{clean.root / TRAIN}: a category id that the model has no class for"
    )
    assert (
        "category id 3 ('gear'); --num_classes 3, given or of the model, holds 0 to 2; --num_classes 4 holds "
        "all (and 6 faults more). Pass --num_classes" in report.one_line()
    )
    nothing = checked(tmp_path / "none.json")
    assert nothing.status == 2 and "no annotation file" in nothing.one_line()


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("", "unreadable_json", "line 1, column 1"),
        ('{"images": [\n  {"id": 1,}\n]}', "unreadable_json", "line 2, column 1"),
        ("null", "not_coco", "NoneType"),
        ("[]", "not_coco", "list"),
        ('{"images": {}, "annotations": [1], "categories": [1]}', "not_coco", "'images' is no list"),
        ('{"images": [1], "annotations": [2], "categories": [3]}', "broken_record", "entry 0 of images is 1"),
    ],
)
def test_files_that_are_no_coco_files(text, kind, value, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    report = checked(path)
    assert value in found(report, kind)[0].value
    path.write_bytes(b"\xff\xfe\x00")
    assert found(checked(path), "unreadable_json")


# ---- real photographs


@needs_shared
@pytest.mark.parametrize("name", ["bccd", "balloon", "coco_panoptic", "panopticapi_samples"])
def test_real_sets_pass(name):
    report = check_dataset(find_sources(SHARED / name), 201)
    assert report.faults == [], report.lines()


@needs_shared
def test_the_known_defects_of_real_sets_are_found(tmp_path):
    annotations = SHARED / "bccd" / "annotations" / "raw_instances_train2017.json"
    report = checked(annotations)
    content = json.loads(annotations.read_text())
    names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    defects = json.loads((SHARED / "bccd" / "defects.json").read_text())["defects"]
    expected = {one["image"] for one in defects if one["kind"] == "zero-area-box"}
    assert [group.name for group in report.faults] == ["bbox_no_size"]
    assert {names[finding.image_id] for finding in found(report, "bbox_no_size")} == expected

    origin = SHARED / "panopticapi_samples" / "origin" / "panoptic_coco_detection_format.json"
    report = checked(origin)
    assert [group.name for group in report.faults] == ["annotation_id_zero"]
    write_corrected({"": Source(origin)}, tmp_path / "fixed", decode=False)
    assert checked(tmp_path / "fixed" / TRAIN).faults == []
