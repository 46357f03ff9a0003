"""What COCO's instances and panoptic files have in common: images, categories, and how they are checked."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datasets import annotation_cache
from datasets.json_columns import integers
from datasets.parsed import held_parsed, parse
from util.errors import UserError


class AnnotationFile(ABC):
    """The images and categories of a COCO file, images in the order of their ids.

    Attributes:
        source: the file.
        categories: category id -> name, by id.
        image_ids: int64 [images], ascending.
        heights, widths: int32 [images], in pixels; 0 where the file does not say.

    Raises:
        UserError: a section or a value is missing, an id is no integer or occurs twice.
    """

    form: str  # what messages call the file

    def __init__(self, content: dict[str, Any], source: str | Path):
        self.source = Path(source)
        self._coco: Any = None
        for section in ("images", "annotations", "categories"):
            if not isinstance(content.get(section), list):
                raise self._fault(f"it has no list of {section}, as a COCO {self.form} file must")
        names = dict(zip(self._ids(content["categories"], "category"), content["categories"], strict=True))
        self.categories: dict[int, str] = {int(i): str(names[i].get("name", i)) for i in sorted(names)}
        self._pack_images(content["images"])

    @property
    def num_images(self) -> int:
        """Images that the file lists."""
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """The picture of the image at `index` (0 to num_images - 1), below the image folder."""
        return self._file_names[index].decode()

    @staticmethod
    def _first_outside(ids: np.ndarray, category_ids: np.ndarray, num_classes: int) -> tuple[int, int] | None:
        """(id, category id) of the first row whose category is not from 0 to num_classes - 1."""
        rows = np.flatnonzero((category_ids < 0) | (category_ids >= num_classes))
        return (int(ids[rows[0]]), int(category_ids[rows[0]])) if len(rows) else None

    @property
    def coco(self) -> Any:
        """The same file as published code sees it, read when it is first asked for."""
        if self._coco is None:
            self._coco = self._read_coco()
        return self._coco

    @abstractmethod
    def _read_coco(self) -> Any: ...

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coco": None}  # data workers do not need it, and it is large

    def packed(self) -> dict[str, Any]:
        """All that the file holds: arrays, numbers, and dicts with integer keys."""
        return {name: value for name, value in vars(self).items() if name not in ("source", "_coco")}

    @classmethod
    def unpacked(cls, values: dict[str, Any], source: str | Path) -> AnnotationFile:
        """The inverse of `packed`."""
        annotations = cls.__new__(cls)
        vars(annotations).update(values, source=Path(source), _coco=None)
        return annotations

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self.source}: {what}")

    def _column(self, records: list[Any], key: str, kind: str) -> list[Any]:
        try:
            return [record[key] for record in records]
        except (KeyError, TypeError):
            for place, record in enumerate(records):
                if not isinstance(record, dict):
                    raise self._fault(f"{kind} number {place} is no object but {record!r:.60}") from None
                if key not in record:
                    name = f"{kind} {record['id']}" if "id" in record else f"{kind} number {place}"
                    raise self._fault(f"{name} has no '{key}'") from None
            raise

    def _integers(self, records: list[Any], key: str, kind: str) -> np.ndarray:
        values = self._column(records, key, kind)
        numbers, valid = integers(values)
        for place in np.flatnonzero(~valid)[:1]:
            name = f"{kind} number {place}" if key == "id" else f"{kind} {records[place].get('id')}"
            wanted = "an integer of 64 bits" if type(values[place]) is int else "an integer"
            raise self._fault(f"{key} of {name} must be {wanted}, not {values[place]!r:.60}")
        return numbers

    def _ids(self, records: list[Any], kind: str, key: str = "id") -> list[int]:
        """A column of integers none of which occurs twice."""
        ids = self._integers(records, key, kind)
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise self._fault(f"{kind} {key} {values[counts > 1][0]} occurs {counts[counts > 1][0]} times")
        return ids.tolist()

    def _pack_images(self, images: list[dict[str, Any]]) -> None:
        ids = np.array(self._ids(images, "image"), dtype=np.int64)
        order = np.argsort(ids)
        self.image_ids = ids[order]
        names = [str(name).encode() for name in self._column(images, "file_name", "image")]
        self._file_names = np.array(names, dtype=np.bytes_)[order]
        sides = [[small_number(image.get(side)) for image in images] for side in ("height", "width")]
        self.heights, self.widths = np.array(sides, dtype=np.int32)[:, order]


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: the file is missing, is no JSON, or holds something other than one object.
    """
    try:
        content = parse(path)
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is no valid JSON: {error.msg} at {place}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no JSON text: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a COCO file is one JSON object, not a {type(content).__name__}")
    return content


def small_number(value: Any, below: float = 2**31) -> int:
    """A side or a flag as files give them; what is no such number counts as 0, as it does for the doctor."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < below else 0


F = TypeVar("F", bound=AnnotationFile)
_cache: dict[tuple[str, type], tuple[tuple[int, int], AnnotationFile]] = {}


def load_once(path: str | Path, form: type[F]) -> F:
    """A file as `form`; read once in a process as long as the file does not change.

    Raises:
        UserError: as read_json, or `form` refuses what the file holds.
    """
    key = os.path.realpath(path), form
    try:
        status = os.stat(key[0])
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror}") from error
    version = status.st_mtime_ns, status.st_size
    if key in _cache and _cache[key][0] == version:
        return _cache[key][1]  # type: ignore[return-value]  # form is part of the key
    annotations = _load(path, form)
    _cache[key] = version, annotations
    return annotations


def _load(path: str | Path, form: type[F]) -> F:
    """From the cache on disk, or from the file and into the cache."""
    try:
        entry = annotation_cache.entry_of(path, form)
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror}") from error
    if entry is None:
        return _pack(path, form)
    with annotation_cache.one_at_a_time(entry):
        values = annotation_cache.read_entry(entry)
        if values is not None:
            return form.unpacked(values, path)  # type: ignore[return-value]  # a classmethod of form
        annotations = _pack(path, form)
        annotation_cache.write_entry(entry, annotations.packed())
        return annotations


def _pack(path: str | Path, form: type[F]) -> F:
    with held_parsed():  # gives the records' memory back, which data workers would map, too
        return form(read_json(path), path)
