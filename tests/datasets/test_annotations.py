"""The packed annotation file against pycocotools' view of the same file."""

import json
import math
import os
import pickle

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.annotations import CocoAnnotations, load_annotations
from util.errors import UserError

IMAGES = [(12, "b.jpg"), (3, "sub/ü.png"), (700000000001, "c.jpg"), (5, "empty.jpg")]


def annotation(ann_id, image_id, **more):
    polygon = [[1.5, 2, 30.25, 4.07, 20, 18.99]]
    record = {"id": ann_id, "image_id": image_id, "category_id": 7, "bbox": [1, 2, 29.5, 17], "area": 201.375}
    return {**record, "iscrowd": 0, "segmentation": polygon, **more}


def content(annotations):
    images = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in IMAGES]
    categories = [{"id": 7, "name": "seven"}, {"id": 2, "name": "two", "supercategory": "s"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def every_kind():
    """Annotations of all kinds that COCO files hold, in no order of ids or images."""
    second = [[0, 0, 10, 0, 10, 10.5], [20, 20, 25, 20, 25, 25, 20, 25]]
    keypoints = {"keypoints": [4, 5, 2, 0, 0, 0, 7, 8, 1], "num_keypoints": 2}
    records = [
        annotation(90, 12),
        annotation(8, 3, segmentation=second, category_id=2),
        annotation(7, 12, iscrowd=1, segmentation={"size": [40, 60], "counts": [100, 300, 2000]}),
        annotation(6, 12, segmentation={"size": [40, 60], "counts": "PPYo0"}),
        annotation(5, 700000000001, segmentation=[]),
        annotation(4, 3, **keypoints),
        annotation(3, 3, attributes={"occluded": True}, caption="näher", score=0.1),
        annotation(0, 12, category_id=99, bbox=[0.1, 1 / 3, 5, 6]),
    ]
    records.append({key: value for key, value in annotation(1, 3).items() if key != "segmentation"})
    records.append({key: value for key, value in annotation(2, 12).items() if key != "iscrowd"})
    return records


def write(path, what):
    path.write_text(what if isinstance(what, str) else json.dumps(what), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "further, dtype",
    [
        ([], np.uint16),
        ([900.5, 1, 2, 3, 4, 5], np.int32),
        ([-1, 1, 2, 3, 4, 5], np.int32),
        ([1 / 3] * 6, np.float64),
    ],
)
def test_every_annotation_equals_pycocotools(tmp_path, capsys, further, dtype):
    records = every_kind() + ([annotation(1000, 5, segmentation=[further])] if further else [])
    path = write(tmp_path / "a.json", content(records))
    ours = load_annotations(path)
    theirs = ours.coco
    assert isinstance(theirs, COCO) and capsys.readouterr().out == ""
    assert ours._coordinates.dtype == dtype
    assert ours.image_ids.tolist() == sorted(theirs.imgs)
    assert ours.num_images == 4 and ours.num_annotations == len(records) and ours.dangling == []
    for index, image_id in enumerate(ours.image_ids.tolist()):
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=image_id))
        assert ours.annotations_of(image_id) == expected
        assert ours.file_name(index) == theirs.imgs[image_id]["file_name"]
        without = [{k: v for k, v in a.items() if k != "segmentation"} for a in expected]
        assert ours.annotations_of(image_id, segmentation=False) == without
    assert (ours.heights == 40).all() and (ours.widths == 60).all()


def test_odd_segmentations_stay_as_they_are_beside_polygons(tmp_path):
    """A block of polygons is looked at as a whole; what does not fit in falls back one by one."""
    odd = [[[True, 1, 2, 3, 4, 5]], [1, 2, 3], [[1, 2], 3], [["a"]], [[[1, 2]]], None, "text", {}, [[]], []]
    records = [annotation(2 * i, 3, segmentation=value) for i, value in enumerate(odd)]
    records += [annotation(2 * i + 1, 12) for i in range(len(odd))]
    ours = load_annotations(write(tmp_path / "a.json", content(records)))
    assert json.dumps([a["segmentation"] for a in ours.annotations_of(3)]) == json.dumps(odd)
    assert [a["segmentation"] for a in ours.annotations_of(12)] == [records[-1]["segmentation"]] * len(odd)


def test_workers_get_an_equal_copy(tmp_path):
    ours = load_annotations(write(tmp_path / "a.json", content(every_kind())))
    assert ours.coco is ours.coco
    copy = pickle.loads(pickle.dumps(ours))
    assert copy._coco is None
    assert copy.annotations_of(12) == ours.annotations_of(12)


def test_categories_and_counts(tmp_path):
    ours = load_annotations(write(tmp_path / "a.json", content([*every_kind(), annotation(50, 4444)])))
    assert list(ours.categories.items()) == [(2, "two"), (7, "seven")]
    assert ours.objects_per_category() == {2: 1, 7: 7, 99: 1}  # neither the crowd nor the dangling one
    assert ours.highest_category_id == 99
    assert ours.dangling == [50]


def test_a_file_without_annotations(tmp_path):
    ours = load_annotations(write(tmp_path / "a.json", content([])))
    assert ours.annotations_of(3) == []
    assert ours.objects_per_category() == {2: 0, 7: 0}
    assert ours.highest_category_id == 7
    with pytest.raises(KeyError):
        ours.annotations_of(4)


def test_a_file_is_read_once_until_it_changes(tmp_path):
    path = write(tmp_path / "a.json", content(every_kind()))
    (tmp_path / "link.json").symlink_to(path)
    first = load_annotations(path)
    assert load_annotations(tmp_path / "link.json") is first
    write(path, content(every_kind()[:3]))
    assert load_annotations(path).num_annotations == 3
    os.utime(path, ns=(1, 1))
    assert load_annotations(path) is not first


@pytest.mark.parametrize(
    "what, message",
    [
        ('{"images": [],\n "annotations": oops}', "line 2, column 17"),
        ("[]", "not a list"),
        ({"images": [], "annotations": []}, "categories"),
        ({"images": {}, "annotations": [], "categories": []}, "images"),
        (content([annotation("1", 3)]), "id of annotation number 0 must be an integer, not '1'"),
        (
            content([annotation(1 << 70, 3)]),
            "id of annotation number 0 must be an integer of 64 bits, not 118059",
        ),
        (content([annotation(1, "3")]), "image_id of annotation 1 must be an integer"),
        (content([annotation(1, 3, category_id=None)]), "category_id of annotation 1"),
        (content([annotation(1, 3), annotation(2, 3), annotation(1, 12)]), "annotation id 1 occurs 2 times"),
        (content([annotation(1, 3, bbox=[1, 2, 3])]), "bbox of annotation 1 must be 4 numbers"),
        (content([annotation(1, 3, bbox=[1, 2, 3, "4"])]), "bbox of annotation 1 must be 4 numbers"),
        (content([annotation(1, 3, area=None)]), "area of annotation 1 must be a number"),
        (content([{k: v for k, v in annotation(1, 3).items() if k != "area"}]), "annotation 1 has no 'area'"),
        (content([annotation(1, 3), "x"]), "annotation number 1 is no object"),
    ],
)
def test_faulty_files_are_named_with_what_is_wrong(tmp_path, what, message):
    path = write(tmp_path / "bad.json", what)
    with pytest.raises(UserError) as error:
        load_annotations(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("value", [None, "x", "", math.nan, -3, [1]])
def test_sides_and_flags_that_are_no_numbers_count_as_0(tmp_path, value):
    what = content([annotation(1, 3, iscrowd=value)])
    what["images"][0].update(width=value, height=value)
    ours = load_annotations(write(tmp_path / "odd.json", what))
    assert 0 in ours.widths and 0 in ours.heights
    assert [one["iscrowd"] for one in ours.annotations_of(3)] == [0]


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        load_annotations(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"binary\.json"):
        load_annotations(tmp_path / "binary.json")


def test_the_packed_file_is_small(tmp_path):
    polygon = np.round(np.random.default_rng(0).uniform(0, 640, (200, 60)), 2).tolist()
    records = [annotation(i + 1, 12, segmentation=[one]) for i, one in enumerate(polygon)]
    packed = CocoAnnotations(content(records), tmp_path / "a.json")
    size = sum(value.nbytes for value in vars(packed).values() if isinstance(value, np.ndarray))
    assert size < len(records) * (60 * 2 + 120) + 1000  # two bytes a coordinate, 120 for all the rest
