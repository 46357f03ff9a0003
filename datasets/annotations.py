"""COCO's annotation files: checked when they are read, and kept packed, image by image."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.images import picture_name
from datasets.layouts import is_integer, read_json
from util.collector import paused_collector
from util.errors import UserError


class PackedRecords(Sequence):
    """A list whose entries lie pickled in one tensor, as detectron2 keeps a data set's.

    COCO's training set has 860,000 objects. As Python dicts they take gigabytes, and every data worker that
    touches them copies them page by page, because counting references writes to them. A tensor is read
    without being written, so forked workers share it, and torch hands it to spawned ones in shared memory.

    Args:
        records: what pickle takes; each is packed when it comes.
    """

    def __init__(self, records: Iterable[Any]):
        buffer, ends = bytearray(), [0]
        for record in records:
            buffer += pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
        self._buffer = torch.frombuffer(buffer or bytearray(1), dtype=torch.uint8)
        self._ends = torch.from_numpy(np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        """A new copy of one record."""
        index = range(len(self))[index]
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(self._buffer[start:end].numpy().data)

    @property
    def nbytes(self) -> int:
        """Memory that the buffer takes."""
        return self._buffer.nbytes + self._ends.nbytes


def is_number(value: Any) -> bool:
    """Whether JSON gave a number."""
    return type(value) in (int, float)


def is_box(value: Any) -> bool:
    """Whether JSON gave a list of four numbers."""
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether an annotation is a crowd; a flag that is no number says that it is none."""
    flag = annotation.get("iscrowd", 0)
    return isinstance(flag, (int, float)) and flag > 0


class AnnotationFile:
    """What COCO's instances and panoptic files have in common.

    Attributes:
        source: the file.
        categories: category id -> name, by id.
        image_ids: int64 [images], ascending.
        images: the records of the images, in the order of their ids.
        objects_per_category: category id -> number of objects that are trained on, 0 where there is none.
        first_ids: category id -> id of the first object that has it, of those that objects use.
        most_objects: the most objects in one image.

    Raises:
        UserError: a section or a value is missing, an id is no integer or occurs twice.
    """

    form: str  # what messages call the file

    def __init__(self, content: dict[str, Any], source: str | Path):
        self.source = Path(source)
        for section in ("images", "annotations", "categories"):
            if not isinstance(content.get(section), list):
                raise self._fault(f"it has no list of {section}, as a COCO {self.form} file must")
        self._check_ids(content["categories"], "category")
        named = sorted(content["categories"], key=lambda category: category["id"])
        self.categories: dict[int, str] = {c["id"]: str(c.get("name", c["id"])) for c in named}
        self._check_ids(content["images"], "image")
        for place, image in enumerate(content["images"]):
            if not isinstance(picture_name(image), str):
                raise self._fault(f"image {image['id']} has no 'file_name', number {place} of the images")
        images = sorted(content["images"], key=lambda image: image["id"])
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self.images = PackedRecords(images)

    def _count(self, objects: Iterable[list[dict[str, Any]]]) -> None:
        """Fill what is counted from the objects of each image."""
        self.first_ids: dict[int, int] = {}
        self.most_objects, counts = 0, Counter[int]()
        for of_image in objects:
            self.most_objects = max(self.most_objects, len(of_image))
            for one in of_image:
                counts[one["category_id"]] += 1
                self.first_ids.setdefault(one["category_id"], one["id"])
        self.objects_per_category = {c: counts[c] for c in sorted({*self.categories, *counts})}

    def index_of(self, image_id: int) -> int:
        """The place of an image in `images`.

        Raises:
            KeyError: the file has no such image.
        """
        index = int(np.searchsorted(self.image_ids, image_id))
        if index == len(self.image_ids) or self.image_ids[index] != image_id:
            raise KeyError(image_id)
        return index

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self.source}: {what}")

    def _check(
        self, records: list[Any], kind: str, key: str, fits: Callable[[Any], bool], wanted: str
    ) -> None:
        """Every record must have a value that fits."""
        for place, record in enumerate(records):
            if type(record) is not dict:
                raise self._fault(f"{kind} number {place} is no object but {record!r:.60}")
            if key in record and fits(record[key]):
                continue
            name = f"{kind} {record['id']}" if "id" in record and key != "id" else f"{kind} number {place}"
            if key not in record:
                raise self._fault(f"{name} has no '{key}'")
            raise self._fault(f"{key} of {name} must be {wanted}, not {record[key]!r:.60}")

    def _check_ids(self, records: list[Any], kind: str, key: str = "id") -> None:
        self._check(records, kind, key, is_integer, "an integer")
        for number, count in Counter(record[key] for record in records).most_common(1):
            if count > 1:
                raise self._fault(f"{kind} {key} {number} occurs {count} times")


class CocoAnnotations(AnnotationFile):
    """A COCO instances file.

    The annotations of an image are in the file's order, as pycocotools gives them. Those whose image the file
    does not list belong to no image. Crowds are not counted.

    Raises:
        UserError: as AnnotationFile, or a box has not four numbers.
    """

    form = "instances"

    def __init__(self, content: dict[str, Any], source: str | Path):
        super().__init__(content, source)
        records = content["annotations"]
        self._check_ids(records, "annotation")
        for key, fits, wanted in (
            ("image_id", is_integer, "an integer"),
            ("category_id", is_integer, "an integer"),
            ("bbox", is_box, "4 numbers"),
            ("area", is_number, "a number"),
        ):
            self._check(records, "annotation", key, fits, wanted)
        of_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in self.image_ids.tolist()}
        for record in records:
            of_image.get(record["image_id"], []).append(record)
        self._count([r for r in of if not is_crowd(r)] for of in of_image.values())
        self._segmentations = PackedRecords([r.get("segmentation") for r in of] for of in of_image.values())
        # In the objects None holds its place.
        self._objects = PackedRecords(
            [{**r, "segmentation": None} if "segmentation" in r else r for r in of]
            for of in of_image.values()
        )

    def annotations_of(self, image_id: int) -> list[dict[str, Any]]:
        """The annotations of an image, equal to pycocotools' view of them; new ones each time.

        Raises:
            KeyError: the file has no such image.
        """
        index = self.index_of(image_id)
        annotations = self._objects[index]
        for annotation, segmentation in zip(annotations, self._segmentations[index], strict=True):
            if "segmentation" in annotation:
                annotation["segmentation"] = segmentation
        return annotations


def load_annotations(path: str | Path, form: Callable[..., Any] = CocoAnnotations) -> Any:
    """The packed annotations of a file; read once in a process as long as the file does not change.

    Args:
        form: CocoAnnotations, or the panoptic counterpart.

    Raises:
        UserError: the file is missing, is no JSON, or `form` refuses what it holds.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror}") from error
    return _load(str(path), form, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _load(path: str, form: Callable[..., Any], modified: int, size: int) -> Any:
    with paused_collector():
        return form(read_json(path), path)


def read_coco(ann_file: str | Path) -> Any:
    """A COCO file as pycocotools' COCO.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    return index_coco(read_json(ann_file))


def index_coco(content: dict[str, Any]) -> Any:
    """The contents of a COCO file as pycocotools' COCO; nothing is copied."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it reports what it does
        coco.createIndex()
    return coco
