"""The packed panoptic file: what it holds, in which order, and what it refuses."""

import copy
import json
import pickle
from typing import Any

import pytest

from datasets.annotations import load_annotations
from datasets.panoptic_annotations import PanopticAnnotations
from util.errors import UserError

LARGE = 700000000001


def segment(number, category=9, area=5, **more):
    return {"id": number, "category_id": category, "area": area, "iscrowd": 0, "bbox": [1, 2, 3, 4], **more}


def entry(image_id, *segments):
    return {"image_id": image_id, "file_name": f"sub/ü{image_id}.png", "segments_info": list(segments)}


CONTENT: dict[str, list] = {
    "images": [
        {"id": LARGE, "file_name": "c.jpg", "height": 4, "width": 6},
        {"id": 30, "file_name": "b.jpg"},
        {"id": 7, "file_name": "a.png", "height": 40, "width": 60},
    ],
    "annotations": [
        entry(30, segment(77), segment((1 << 24) - 1, category=2, area=0.5)),
        entry(LARGE),
        entry(7, segment(9, iscrowd=1), segment(77, category=2), {"id": 0, "category_id": 2, "area": 1}),
    ],
    "categories": [
        {"id": 9, "name": "nine", "isthing": 1},
        {"id": 2, "name": "two", "isthing": 0},
        {"id": 200, "isthing": 0},
    ],
}


def test_images_follow_their_ids():
    packed = PanopticAnnotations(CONTENT, "a.json")
    assert packed.image_ids.tolist() == [7, 30, LARGE]
    assert list(packed.images) == CONTENT["images"][::-1]
    order = [CONTENT["annotations"][place] for place in (2, 0, 1)]
    assert list(packed.annotations) == order


def test_categories_and_counts():
    packed = PanopticAnnotations(CONTENT, "a.json")
    assert list(packed.categories.items()) == [(2, "two"), (9, "nine"), (200, "200")]
    assert list(packed.is_thing.items()) == [(2, False), (9, True), (200, False)]
    assert packed.objects_per_category == {2: 3, 9: 2, 200: 0}  # a crowd is trained on
    assert packed.first_ids == {9: 9, 2: 77} and packed.most_objects == 3


def test_the_file_is_read_once(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    packed = load_annotations(path, PanopticAnnotations)
    assert load_annotations(path, PanopticAnnotations) is packed
    assert list(pickle.loads(pickle.dumps(packed)).annotations) == list(packed.annotations)
    path.write_text(json.dumps({**CONTENT, "images": []}))
    with pytest.raises(UserError, match="a.json: an annotation belongs to image 7"):
        load_annotations(path, PanopticAnnotations)


def first_segment(**more):
    return lambda content: content["annotations"][0]["segments_info"][0].update(more)


FAULTS: dict[str, tuple[Any, str]] = {
    "annotation without image": (lambda content: content["images"].pop(0),
        f"an annotation belongs to image {LARGE}, which the file does not list"),
    "image without annotation": (
        lambda content: content["annotations"].pop(0), "image 30 has no annotation: add one"),
    "two annotations": (lambda content: content["annotations"].append(content["annotations"][0]),
        "annotation image_id 30 occurs 2 times"),
    "two images": (
        lambda content: content["images"].append(content["images"][0]), f"image id {LARGE} occurs 2 times"),
    "category": (first_segment(category_id=77),
        "category_id of image 30, segment 77 must be a category that the file lists, not 77"),
    "type of id": (
        first_segment(id="7"), "id of image 30, segment number 0 must be an integer from 0 to .*, not '7'"),
    "range of id": (first_segment(id=1 << 24),
        "id of image 30, segment number 0 must be an integer from 0 to .*, not 16777216"),
    "area": (first_segment(area=None), "area of image 30, segment 77 must be a number, not None"),
    "same id": (first_segment(id=(1 << 24) - 1), "image 30, segment id 16777215 occurs 2 times"),
    "no object": (lambda content: content["annotations"][0].update(segments_info=[3]),
        "image 30, segment number 0 is no object but 3"),
    "no list": (lambda content: content["annotations"][0].update(segments_info=None),
        "image 30: segments_info must be a list, not None"),
    "instances": (lambda content: content["categories"][1].pop("isthing"), "category 2 has no 'isthing'"),
    "no PNG": (lambda content: content["annotations"][0].pop("file_name"), "number 0 has no 'file_name'"),
    "no images": (lambda content: content.pop("images"), "no list of images, as a COCO panoptic file must"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused(fault):
    change, message = FAULTS[fault]
    content = copy.deepcopy(CONTENT)
    change(content)
    with pytest.raises(UserError, match=f"^a.json: .*{message}"):
        PanopticAnnotations(content, "a.json")
