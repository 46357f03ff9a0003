"""The packed annotation file against pycocotools' view of the same file."""

import gc
import json
import math
import os
import pickle

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.annotations import CocoAnnotations, PackedRecords, is_crowd, load_annotations, read_coco
from datasets.layouts import parse
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


def test_every_annotation_equals_pycocotools(tmp_path, capsys):
    path = write(tmp_path / "a.json", content(every_kind()))
    ours, theirs = load_annotations(path), read_coco(path)
    assert isinstance(theirs, COCO) and capsys.readouterr().out == ""
    assert ours.image_ids.tolist() == sorted(theirs.imgs) and len(ours.images) == 4
    for index, image_id in enumerate(ours.image_ids.tolist()):
        assert ours.annotations_of(image_id) == theirs.loadAnns(theirs.getAnnIds(imgIds=image_id))
        assert ours.images[index] == theirs.imgs[image_id]
        assert ours.annotations_of(image_id) is not ours.annotations_of(image_id)


def test_odd_segmentations_stay_as_they_are_beside_polygons(tmp_path):
    odd = [[[True, 1, 2, 3, 4, 5]], [1, 2, 3], [[1, 2], 3], [["a"]], [[[1, 2]]], None, "text", {}, [[]], []]
    records = [annotation(2 * i, 3, segmentation=value) for i, value in enumerate(odd)]
    records += [annotation(2 * i + 1, 12) for i in range(len(odd))]
    ours = load_annotations(write(tmp_path / "a.json", content(records)))
    assert json.dumps([a["segmentation"] for a in ours.annotations_of(3)]) == json.dumps(odd)
    assert [a["segmentation"] for a in ours.annotations_of(12)] == [records[-1]["segmentation"]] * len(odd)


def test_workers_get_an_equal_copy(tmp_path):
    ours = load_annotations(write(tmp_path / "a.json", content(every_kind())))
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.annotations_of(12) == ours.annotations_of(12)


def test_categories_and_counts(tmp_path):
    ours = load_annotations(write(tmp_path / "a.json", content([*every_kind(), annotation(50, 4444)])))
    assert list(ours.categories.items()) == [(2, "two"), (7, "seven")]
    assert ours.objects_per_category == {2: 1, 7: 7, 99: 1}  # neither the crowd nor the one without image
    assert ours.first_ids == {2: 8, 7: 4, 99: 0}  # by image, then as in the file
    assert ours.most_objects == 4


def test_a_file_without_annotations(tmp_path):
    ours = load_annotations(write(tmp_path / "a.json", content([])))
    assert ours.annotations_of(3) == []
    assert ours.objects_per_category == {2: 0, 7: 0}
    assert ours.first_ids == {} and ours.most_objects == 0
    with pytest.raises(KeyError):
        ours.annotations_of(4)


def test_a_file_is_read_once_until_it_changes(tmp_path):
    path = write(tmp_path / "a.json", content(every_kind()))
    first = load_annotations(path)
    assert load_annotations(str(path)) is first
    write(path, content(every_kind()[:1]))
    assert load_annotations(path).most_objects == 1
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
        (content([annotation(1 << 70, 3)]), "id of annotation number 0 must be an integer, not 1.18059"),
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


@pytest.mark.parametrize("value", [None, "x", "", math.nan, -3, [1], 0, False])
def test_flags_that_say_nothing_say_that_an_object_is_no_crowd(tmp_path, value):
    ours = load_annotations(write(tmp_path / "odd.json", content([annotation(1, 3, iscrowd=value)])))
    assert ours.most_objects == 1
    assert not is_crowd(ours.annotations_of(3)[0])
    assert is_crowd({"iscrowd": 1}) and is_crowd({"iscrowd": True})


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
    assert packed._segmentations.nbytes < len(records) * (60 * 9 + 20) + 1000  # nine bytes a coordinate
    assert packed._objects.nbytes < len(records) * 100 + 1000


def test_packed_records():
    records = [{"a": [1.5, None]}, "text", [], 7]
    packed = PackedRecords(iter(records))
    assert list(packed) == records and packed[-1] == 7 and len(packed) == 4
    assert packed[0] is not packed[0]
    assert list(PackedRecords([])) == []
    with pytest.raises(IndexError):
        packed[4]


# ---- JSON


def test_what_pythons_parser_takes_is_taken(tmp_path):
    text = '{"a": [NaN, Infinity, 1e400, 0.1, 1152921504606846976], "b": "\\ud83d\\ude00 \\ud800"}'
    path = write(tmp_path / "a.json", text)
    assert json.dumps(parse(path)) == json.dumps(json.loads(text))
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert parse(path) == [1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 200_000, "nested too deeply"),
        ("[" + "1" * 9000 + ", NaN]", "thousands of digits"),
        ("", "an empty file"),
    ],
)
def test_odd_texts_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(json.JSONDecodeError, match=message):
        parse(write(tmp_path / "a.json", text))
    assert gc.isenabled()
