"""Data sets with one fault each, made from a clean one, for the tests of the doctor and of training.

A spoiler gets the clean set and edits the contents of its files or the files themselves. SPOILED says which
kind of finding it must lead to, and on which annotation and image.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

TRAIN = "annotations/instances_train2017.json"
VAL = "annotations/instances_val2017.json"
NUM_CLASSES = 4
IMAGES = {"train": 6, "val": 3}
FIRST_IMAGE = {"train": 11, "val": 51}
NAMES = ("bolt", "nut", "gear")  # ids 1, 2, 3


@dataclass
class CleanSet:
    """A data set in a folder, and the contents of its files, by name below the folder."""

    root: Path
    files: dict[str, Any]

    @property
    def train(self) -> dict[str, Any]:
        """The contents of train's annotation file."""
        return self.files[TRAIN]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Train's annotations: ids 101…118, three an image."""
        return self.train["annotations"]

    def picture(self, place: int) -> Path:
        """Train's picture at a place in the list of images."""
        return self.root / "train2017" / self.train["images"][place]["file_name"]


def clean_contents(root: Path) -> dict[str, Any]:
    """Write the pictures; return the contents of the annotation files."""
    draw = np.random.default_rng(1)
    files = {}
    for split, count in IMAGES.items():
        (root / f"{split}2017").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for place in range(count):
            image_id, width, height = FIRST_IMAGE[split] + place, 96 + 4 * place, 80 - 2 * place
            name = f"{split}_{image_id}.jpg"
            small = Image.fromarray(draw.integers(0, 255, (4, 5, 3)).astype(np.uint8))
            small.resize((width, height), Image.Resampling.BICUBIC).save(root / f"{split}2017" / name)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for number in range(3):
                box = [4 + 29 * number + place, 40 - 13 * number, 28, 24 + number]
                objects.append(make_object(101 + len(objects), image_id, number + 1, box))
        categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
        content = {"info": {"year": 2020}, "images": images, "annotations": objects, "categories": categories}
        files[f"annotations/instances_{split}2017.json"] = content
    return files


def make_object(number: int, image_id: int, category: int, box: list[int]) -> dict[str, Any]:
    """An object with a polygon of eight corners within its box."""
    x, y, w, h = box
    polygon = [x + 5, y, x + w - 5, y, x + w, y + 5, x + w, y + h - 5,
               x + w - 5, y + h, x + 5, y + h, x, y + h - 5, x, y + 5]  # fmt: skip
    return {
        "id": number, "image_id": image_id, "category_id": category, "bbox": box, "area": w * h - 50.0,
        "iscrowd": 0, "segmentation": [polygon],
    }  # fmt: skip


def write_clean(root: Path) -> CleanSet:
    """Write the clean set to a new folder."""
    made = CleanSet(root, clean_contents(root))
    write_files(made)
    return made


def write_files(made: CleanSet) -> None:
    """Write the annotation files as they are now."""
    (made.root / "annotations").mkdir(exist_ok=True)
    for name, content in made.files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (made.root / name).write_text(text)


def spoil(name: str, clean: CleanSet, root: Path) -> CleanSet:
    """A copy of the clean set in a new folder, with the fault `name` of SPOILED."""
    shutil.copytree(clean.root, root)
    made = CleanSet(root, copy.deepcopy(clean.files))
    SPOILED[name].spoiler(made)
    write_files(made)
    return made


class Spoiled(NamedTuple):
    """A fault.

    Attributes:
        spoiler: plants it.
        kind: of the finding.
        annotation_id, image_id: of the finding, None where it has none.
        text: a part of its value.
        status: exit status of the doctor.
        also: kinds of findings that follow from it.
    """

    spoiler: Callable[[CleanSet], Any]
    kind: str
    annotation_id: Any = None
    image_id: Any = None
    text: str = ""
    status: int = 1
    also: Set[str] = frozenset()


def put(place: int, **values: Any) -> Callable[[CleanSet], None]:
    """Sets keys of an annotation of train."""
    return lambda made: made.objects[place].update(values)


def put_image(place: int, **values: Any) -> Callable[[CleanSet], None]:
    """Sets keys of an image of train."""
    return lambda made: made.train["images"][place].update(values)


def remove(place: int, key: str) -> Callable[[CleanSet], None]:
    """Removes a key of an annotation of train."""
    return lambda made: made.objects[place].pop(key)


def add(section: str, place: int, **values: Any) -> Callable[[CleanSet], None]:
    """Appends a copy of an entry of train, with other values."""
    return lambda made: made.train[section].append({**made.train[section][place], **values})


def _string_image_ids(made: CleanSet) -> None:
    for image in made.train["images"]:
        image["id"] = str(image["id"])


def _high_category(made: CleanSet) -> None:
    for content in made.files.values():
        content["categories"][2]["id"] = 90
        for one in content["annotations"]:
            one["category_id"] = {3: 90}.get(one["category_id"], one["category_id"])


def _swap_names(made: CleanSet) -> None:
    categories = made.files[VAL]["categories"]
    categories[0]["name"], categories[1]["name"] = "nut", "bolt"


def _rewrite_boxes(change: Callable[[list[float], dict], list[float]]) -> Callable[[CleanSet], None]:
    def spoiler(made: CleanSet) -> None:
        images = {image["id"]: image for image in made.train["images"]}
        for one in made.objects:
            one["bbox"] = change(one["bbox"], images[one["image_id"]])
            one["segmentation"] = []  # the boxes alone have to give it away

    return spoiler


def _centred(box: list[float], image: dict) -> list[float]:
    x, y, w, h = box
    return [x + w / 2, y + h / 2, w, h]


def _yolo(box: list[float], image: dict) -> list[float]:
    x, y, w, h = _centred(box, image)
    return [x / image["width"], y / image["height"], w / image["width"], h / image["height"]]


def _centred_with_polygons(made: CleanSet) -> None:
    for one in made.objects:
        one["bbox"] = _centred(one["bbox"], {})


def _damage(change: Callable[[bytes], bytes | None]) -> Callable[[CleanSet], None]:
    """Changes the bytes of train's picture 1, image 12; None: removes it."""

    def spoiler(made: CleanSet) -> None:
        path = made.picture(1)
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)

    return spoiler


def _half_size(made: CleanSet) -> None:
    with Image.open(made.picture(1)) as image:
        image.resize((image.width // 2, image.height // 2)).save(made.picture(1))


def _tag(made: CleanSet, orientation: int) -> None:
    """Turns train's picture 1 so that its EXIF tag turns it back; its entry keeps the size as viewed."""
    with Image.open(made.picture(1)) as image:
        exif = image.getexif()
        exif[0x0112] = {6: 8}.get(orientation, orientation)
        image.save(made.picture(1), exif=exif)
        with Image.open(made.picture(1)) as tagged:
            stored = ImageOps.exif_transpose(tagged)
    exif[0x0112] = orientation
    stored.save(made.picture(1), exif=exif)


def _other_frame(made: CleanSet) -> None:
    """Boxes lie in the picture as shown, and the entry states the picture as stored."""
    _tag(made, 6)
    image = made.train["images"][1]
    image.update(width=image["height"], height=image["width"])
    for one in made.objects[3:6]:
        one["segmentation"] = []


def _leak(made: CleanSet) -> None:
    val = made.files[VAL]["images"][1]
    shutil.copy(made.root / "val2017" / val["file_name"], made.picture(1))
    made.train["images"][1].update(width=val["width"], height=val["height"])


_NAN, _INFINITE = math.nan, math.inf
SPOILED: dict[str, Spoiled] = {
    "JSON cut off": Spoiled(
        lambda made: made.files.update({TRAIN: json.dumps(made.train, indent=1)[:-60]}),
        "unreadable_json", text="line ", status=2),
    "no categories": Spoiled(
        lambda made: made.train.pop("categories"), "not_coco", text="'categories'", status=2),
    "no objects": Spoiled(
        lambda made: made.objects.clear(), "empty_section", text="'annotations' is empty", status=2),
    "an entry that is no object": Spoiled(
        lambda made: made.objects.insert(3, 7), "broken_record", text="entry 3 of annotations is 7"),  # type: ignore
    "image ids as text": Spoiled(_string_image_ids, "id_type", None, "11", "'11'"),
    "an object's image_id as text": Spoiled(put(4, image_id="12"), "id_type", 105, "12", "image_id '12'"),
    "annotation id missing": Spoiled(remove(4, "id"), "id_type", None, 12, "annotations[4]"),
    "category_id as text": Spoiled(put(4, category_id="2"), "id_type", 105, 12, "category_id '2'"),
    "image id twice": Spoiled(add("images", 2), "duplicate_image_id", None, 13),
    "image id of another picture": Spoiled(put_image(2, id=12), "duplicate_image_id", None, 12, "train_13",
                                           also={"dangling_image_id"}),
    "annotation id twice": Spoiled(put(4, id=103), "duplicate_annotation_id", 103, 12),
    "category id twice": Spoiled(
        add("categories", 1, name="screw"), "duplicate_category_id", text="screw"),
    "annotation id 0": Spoiled(put(4, id=0), "annotation_id_zero", 0, 12),
    "image not listed": Spoiled(put(4, image_id=999), "dangling_image_id", 105, 999, "999"),
    "category not listed": Spoiled(put(4, category_id=17), "dangling_category_id", 105, 12, "17"),
    "category beyond num_classes": Spoiled(
        _high_category, "category_range", 103, 11, "category id 90 ('gear')"),
    "names differ between splits": Spoiled(_swap_names, "categories_differ", text="category 1 is 'bolt'"),
    "bbox missing": Spoiled(remove(4, "bbox"), "bbox_missing", 105, 12),
    "bbox no list": Spoiled(put(4, bbox={"x": 3}), "bbox_malformed", 105, 12, "{'x': 3}"),
    "bbox of three": Spoiled(put(4, bbox=[1, 2, 3]), "bbox_malformed", 105, 12, "[1, 2, 3]"),
    "bbox with text": Spoiled(put(4, bbox=["34", "27", "28", "25"]), "bbox_malformed", 105, 12, "'34'"),
    "bbox with NaN": Spoiled(put(4, bbox=[1, _NAN, 3, 4]), "bbox_not_finite", 105, 12, "nan"),
    "bbox infinite": Spoiled(put(4, bbox=[1, 2, _INFINITE, 4]), "bbox_not_finite", 105, 12, "inf"),
    "box of no size": Spoiled(put(4, bbox=[40, 30, 0, 9]), "bbox_no_size", 105, 12, "[40, 30, 0, 9]"),
    "box negative": Spoiled(put(4, bbox=[62, 52, -28, -25]), "bbox_negative", 105, 12, "-28"),
    "box outside": Spoiled(
        put(4, bbox=[300, 10, 20, 20], segmentation=[], area=350.0), "bbox_outside", 105, 12, "100 x 78"),
    "box over the edge": Spoiled(
        put(4, bbox=[80, 30, 40, 20], segmentation=[]), "bbox_over_edge", 105, 12, "[80, 30, 40, 20]"),
    "boxes x1 y1 x2 y2": Spoiled(
        _rewrite_boxes(lambda box, _: [*box[:2], box[0] + box[2], box[1] + box[3]]),
        "looks_xyxy", 101, 11, "[4, 40, 32, 64]"),
    "boxes centred": Spoiled(_rewrite_boxes(_centred), "looks_centred", 101, 11, "[18.0, 52.0, 28, 24]"),
    "boxes centred, with polygons": Spoiled(_centred_with_polygons, "looks_centred", 101, 11),
    "boxes as YOLO's": Spoiled(_rewrite_boxes(_yolo), "looks_normalised", 101, 11, "0.1875"),
    "area missing": Spoiled(remove(4, "area"), "area_malformed", 105, 12, "is missing"),
    "area wrong": Spoiled(put(4, area=70000), "area_wrong", 105, 12, "70000"),
    "iscrowd missing": Spoiled(remove(4, "iscrowd"), "iscrowd_missing", 105, 12),
    "iscrowd as text": Spoiled(put(4, iscrowd="0"), "iscrowd_malformed", 105, 12, "'0'"),
    "polygon of two points": Spoiled(put(4, segmentation=[[40, 30, 50, 40]]), "polygon_points", 105, 12),
    "polygon with NaN": Spoiled(
        put(4, segmentation=[[1.0, 2.0, 3.0, _NAN, 5.0, 6.0]]), "polygon_not_finite", 105, 12, "nan"),
    "polygon infinite": Spoiled(
        put(4, segmentation=[[40, 30, 50, 40, -_INFINITE, 6]]), "polygon_not_finite", 105, 12, "-inf"),
    "polygon far away": Spoiled(
        put(4, segmentation=[[40, 30, 50, 40, 1e8, 6]]), "polygon_far", 105, 12, "100000000.0"),
    "polygon outside": Spoiled(
        put(4, bbox=[70, 30, 30, 25], segmentation=[[70, 30, 106, 30, 106, 55]]),
        "polygon_outside", 105, 12, "106"),
    "segmentation flat": Spoiled(
        put(4, segmentation=[34, 27, 60, 27, 62, 52]), "segmentation_malformed", 105, 12),
    "run lengths of another size": Spoiled(
        put(4, segmentation={"size": [50, 50], "counts": [100, 20, 2380]}, iscrowd=1), "rle_misfit", 105, 12),
    "run lengths that do not add up": Spoiled(
        put(4, segmentation={"size": [78, 100], "counts": [100, 20, 2]}, iscrowd=1), "rle_misfit", 105, 12),
    "mask elsewhere": Spoiled(
        put(4, segmentation=[[1, 1, 20, 1, 20, 20, 1, 20]]), "mask_box_disagree", 105, 12, "[1.0, 1.0, 19.0"),
    "box of corners, area of the mask": Spoiled(
        put(4, bbox=[34, 27, 62, 52]), "bbox_wrong_by_mask", 105, 12, "mask's is [34.0, 27.0, 28.0, 25.0]"),
    "box of shares": Spoiled(
        put(4, bbox=[0.48, 0.5, 0.28, 0.32], area=0.09), "bbox_wrong_by_mask", 105, 12, "[0.48, 0.5, 0.28"),
    "box beside its image": Spoiled(
        put(4, bbox=[134, 27, 28, 25]), "bbox_wrong_by_mask", 105, 12, also={"bbox_outside"}),
    "object twice": Spoiled(add("annotations", 4, id=500), "duplicate_object", 500, 12),
    "image without file_name": Spoiled(
        lambda made: made.train["images"][1].pop("file_name"), "file_name_missing", None, 12),
    "image without size": Spoiled(
        lambda made: made.train["images"][1].pop("width"), "image_size_missing", None, 12),
    "picture missing": Spoiled(_damage(lambda data: None), "image_missing", None, 12, "train_12.jpg"),
    "picture of another ending": Spoiled(
        lambda made: made.picture(1).rename(made.picture(1).with_suffix(".jpeg")),
        "image_missing", None, 12, "there is train_12.jpeg"),
    "no picture": Spoiled(_damage(lambda data: b"<html>404</html>"), "image_unreadable", None, 12),
    "picture truncated": Spoiled(
        _damage(lambda data: data[: len(data) * 3 // 4]), "image_truncated", None, 12),
    "picture resized": Spoiled(_half_size, "image_size", None, 12, "50 x 39"),
    "boxes in the other frame of EXIF": Spoiled(
        _other_frame, "exif_other_frame", None, 12, "orientation 6", also={"bbox_over_edge"}),
    "picture upside down by EXIF": Spoiled(
        lambda made: _tag(made, 3), "exif_ambiguous", None, 12, "orientation 3"),
    "picture listed twice": Spoiled(add("images", 1, id=70), "image_twice", None, 70, "train_12.jpg"),
    "picture in train and val": Spoiled(_leak, "image_in_both_splits", None, 12, "val_52.jpg"),
}  # fmt: skip
"""Name -> fault, in a set of instances."""
