"""A COCO instances file packed in NumPy arrays.

COCO's training set has 860,000 objects; as Python dicts they take gigabytes, and every data worker that
touches them copies them page by page, because counting references writes to them. Arrays are read without
being written, so that all workers share one copy.
"""

from __future__ import annotations

import array
import contextlib
import io
import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotation_file import AnnotationFile, load_once, small_number
from datasets.json_columns import are_polygons, floats, quads

# How an annotation's segmentation is kept.
_ABSENT, _EMPTY, _POLYGONS, _OTHER = range(4)
_NO_CROWD_FLAG = -1
_PACKED_KEYS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}
_USUAL_KEYS = _PACKED_KEYS | {"segmentation"}
_MISSING = object()
_BLOCK = 50_000  # annotations whose segmentations are looked at together


class CocoAnnotations(AnnotationFile):
    """The images, objects and categories of a COCO instances file.

    Images are in the order of their ids; the annotations of an image in the file's order, as pycocotools
    gives them. Annotations whose image the file does not list belong to no image; `dangling` has their ids.

    Attributes:
        source: the file.
        categories: category id -> name, by id.
        image_ids: int64 [images], ascending.
        heights, widths: int32 [images], in pixels; 0 where the file does not say.

    Raises:
        UserError: a section or a value is missing, an id is no integer or occurs twice, a box has not four
            numbers.
    """

    form = "instances"

    def __init__(self, content: dict[str, Any], source: str | Path):
        super().__init__(content, source)
        self._pack_annotations(content["annotations"])

    # ---- what the file holds

    @property
    def num_annotations(self) -> int:
        """Annotations in the file, crowds and dangling ones included."""
        return len(self._annotation_ids)

    @property
    def dangling(self) -> list[int]:
        """Ids of the annotations whose image the file does not list."""
        return self._annotation_ids[self._starts[-1] :].tolist()

    @property
    def highest_category_id(self) -> int:
        """Over the categories listed and those that annotations use; 0 where there are none."""
        return max([0, *self.categories, *np.unique(self._category_ids).tolist()])

    def objects_per_category(self) -> dict[int, int]:
        """Category id -> number of its objects in listed images, crowds not counted; 0 where it has none."""
        rows = slice(0, self._starts[-1])
        used = self._category_ids[rows][self._crowds[rows] != 1]
        counts = dict(zip(*(values.tolist() for values in np.unique(used, return_counts=True)), strict=True))
        return {category: counts.get(category, 0) for category in sorted({*self.categories, *counts})}

    def first_outside(self, num_classes: int) -> tuple[int, int] | None:
        """(annotation id, category id) of the first with a category not from 0 to num_classes - 1."""
        return self._first_outside(self._annotation_ids, self._category_ids, num_classes)

    def most_objects(self) -> int:
        """The most objects in one image, crowds not counted."""
        objects = np.concatenate([[0], np.cumsum(self._crowds != 1)])
        return int(np.diff(objects[self._starts]).max(initial=0))

    def annotations_of(self, image_id: int, segmentation: bool = True) -> list[dict[str, Any]]:
        """The annotations of an image, equal to pycocotools' view of them; a new list of new dicts.

        Args:
            image_id: of an image that the file lists.
            segmentation: False leaves out that key, which costs most.

        Raises:
            KeyError: the file has no such image.
        """
        index = int(np.searchsorted(self.image_ids, image_id))
        if index == self.num_images or self.image_ids[index] != image_id:
            raise KeyError(image_id)
        rows = range(self._starts[index], self._starts[index + 1])
        return [self._annotation(row, segmentation) for row in rows]

    def _read_coco(self) -> Any:
        """The file as pycocotools' COCO."""
        from pycocotools.coco import COCO

        with contextlib.redirect_stdout(io.StringIO()):  # it reports each of its steps
            return COCO(str(self.source))

    # ---- packing

    def _numbers(self, records: list[Any], key: str) -> np.ndarray:
        """A number of each annotation, float64 [annotations]; four of a bbox, [annotations, 4]."""
        values = self._column(records, key, "annotation")
        numbers, valid = quads(values) if key == "bbox" else floats(values)
        for place in np.flatnonzero(~valid)[:1]:
            wanted = "4 numbers" if key == "bbox" else "a number"
            what = f"{key} of annotation {records[place]['id']}"
            raise self._fault(f"{what} must be {wanted}, not {values[place]!r:.60}")
        return numbers

    def _pack_annotations(self, records: list[dict[str, Any]]) -> None:
        ids = np.array(self._ids(records, "annotation"), dtype=np.int64)
        image_ids = self._integers(records, "image_id", "annotation")
        index = np.searchsorted(self.image_ids, image_ids)  # of the image; num_images where it is not listed
        index[~np.isin(image_ids, self.image_ids)] = self.num_images
        order = np.argsort(index, kind="stable")
        self._starts = np.searchsorted(index[order], np.arange(self.num_images + 1))  # rows of each image
        self._annotation_ids, self._annotation_image_ids = ids[order], image_ids[order]
        self._category_ids = self._integers(records, "category_id", "annotation")[order]
        self._boxes = self._numbers(records, "bbox")[order]
        self._areas = self._numbers(records, "area")[order]
        crowds = [
            small_number(record["iscrowd"], 128) if "iscrowd" in record else _NO_CROWD_FLAG
            for record in records
        ]
        self._crowds = np.array(crowds, dtype=np.int8)[order]
        self._pack_segmentations([records[row] for row in order])

    def _pack_segmentations(self, records: list[dict[str, Any]]) -> None:
        """Polygons as numbers; everything else that arrays do not suit (RLE, further keys) as JSON text."""
        segmentations = [record.get("segmentation", _MISSING) for record in records]
        kinds = _kinds(segmentations)
        lists = [segmentations[row] for row in np.flatnonzero(kinds == _POLYGONS).tolist()]
        polygons = list(chain.from_iterable(lists))
        counts = np.zeros(len(records), dtype=np.int64)
        counts[kinds == _POLYGONS] = list(map(len, lists))
        texts = {
            row: _text(record, with_segmentation=kinds[row] == _OTHER)
            for row, record in enumerate(records)
            if kinds[row] == _OTHER or not record.keys() <= _USUAL_KEYS
        }
        text_lengths = np.zeros(len(records), dtype=np.int64)
        text_lengths[list(texts)] = [len(text) for text in texts.values()]
        self._segmentation_kinds = kinds
        coordinates = array.array("d", chain.from_iterable(polygons))
        self._coordinates, self._unit = _pack_coordinates(np.array(coordinates))
        self._polygon_ends = _ends(list(map(len, polygons)))
        self._polygon_starts = _ends(counts)  # [annotations + 1], into _polygon_ends
        self._text_ends = _ends(text_lengths)
        self._texts = np.frombuffer(b"".join(texts.values()), dtype=np.uint8)

    # ---- unpacking

    def _annotation(self, row: int, segmentation: bool) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": int(self._annotation_ids[row]),
            "image_id": int(self._annotation_image_ids[row]),
            "category_id": int(self._category_ids[row]),
            "bbox": self._boxes[row].tolist(),
            "area": float(self._areas[row]),
        }
        if self._crowds[row] != _NO_CROWD_FLAG:
            record["iscrowd"] = int(self._crowds[row])
        if self._text_ends[row] < self._text_ends[row + 1]:
            record.update(json.loads(self._texts[self._text_ends[row] : self._text_ends[row + 1]].tobytes()))
        kind = self._segmentation_kinds[row]
        if not segmentation:
            record.pop("segmentation", None)
        elif kind == _EMPTY:
            record["segmentation"] = []
        elif kind == _POLYGONS:
            record["segmentation"] = self._polygons(row)
        return record

    def _polygons(self, row: int) -> list[list[float]]:
        ends = self._polygon_ends[self._polygon_starts[row] : self._polygon_starts[row + 1] + 1]
        numbers = (self._coordinates[ends[0] : ends[-1]] / self._unit).tolist()
        ends = (ends - ends[0]).tolist()
        return [numbers[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def _kinds(segmentations: list[Any]) -> np.ndarray:
    """How each is kept, int8 [annotations]."""
    kinds = np.full(len(segmentations), _OTHER, dtype=np.int8)
    for start in range(0, len(segmentations), _BLOCK):
        block = segmentations[start : start + _BLOCK]
        lists = [row for row, value in enumerate(block, start) if type(value) is list]
        if are_polygons([segmentations[row] for row in lists]):
            kinds[lists] = _POLYGONS
        else:
            kinds[[row for row in lists if are_polygons([segmentations[row]])]] = _POLYGONS
        kinds[[row for row in lists if not segmentations[row]]] = _EMPTY
        kinds[[row for row, value in enumerate(block, start) if value is _MISSING]] = _ABSENT
    return kinds


def _text(record: dict[str, Any], with_segmentation: bool) -> bytes:
    """What is not kept in arrays of an annotation."""
    left_out = _PACKED_KEYS if with_segmentation else _USUAL_KEYS
    return json.dumps({key: value for key, value in record.items() if key not in left_out}).encode()


def _ends(lengths: Any) -> np.ndarray:
    """Where pieces of these lengths [N] end, one behind the other, int64 [N + 1]; the first number is 0."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])


def _pack_coordinates(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Numbers as (packed, unit) with packed / unit equal to them, bit for bit.

    COCO writes hundredths of pixels, and its pictures have at most 640: two bytes instead of eight.
    """
    hundredths = np.rint(values * 100)
    if np.array_equal(hundredths / 100, values):
        for dtype in (np.uint16, np.int32):
            limits = np.iinfo(dtype)
            if values.size == 0 or (hundredths.min() >= limits.min and hundredths.max() <= limits.max):
                return hundredths.astype(dtype), 100.0
    return values, 1.0


def load_annotations(path: str | Path) -> CocoAnnotations:
    """The packed annotations of a file; read once in a process as long as the file does not change.

    Raises:
        UserError: the file is missing, is no JSON, or CocoAnnotations refuses what it holds.
    """
    return load_once(path, CocoAnnotations)
