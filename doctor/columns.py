"""A COCO file as NumPy columns, whatever is wrong with it: what is no number is marked, not refused.

The readers that training uses (datasets.annotations, datasets.coco_panoptic) stop at the first fault; the
checks read the file through this module instead and see all of them. In files of COCO's size a loop over the
values takes seconds; `set(map(type, values))` runs in C.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import picture_name
from datasets.layouts import is_integer, parse
from doctor.report import Finding, Report, text_finding

SECTIONS = ("images", "annotations", "categories")


def show(value: Any, length: int = 70) -> str:
    """A value as messages show it."""
    return shorten(repr(value), length)


def shorten(text: str, length: int = 70) -> str:
    """The beginning of a text."""
    return text if len(text) <= length else text[: length - 1] + "…"


def means_crowd(value: Any) -> bool:
    """Whether an iscrowd says that it is one, in whatever type."""
    return value == 1 or (isinstance(value, str) and value.strip().lower() in ("1", "true"))


def _integers_of(section: str, key: str) -> cached_property[tuple[np.ndarray, np.ndarray]]:
    """The property of a RawFile that holds a column of integers."""
    return cached_property(lambda raw: integers(raw.column(section, key)))


class RawFile:
    """The three lists of a COCO file, entries that are no objects left out, and their columns.

    N annotations, M images. Rows of a column are places in the list of the same name.

    Attributes:
        path: the file.
        images, annotations, categories: lists of dicts, as the file has them.
        rest: what else the file holds, such as licences.
        panoptic: whether annotations hold segments_info.
    """

    def __init__(self, path: Path, content: dict[str, Any]):
        self.path = path
        self.rest = {name: value for name, value in content.items() if name not in SECTIONS}
        lists = {name: [r for r in content[name] if type(r) is dict] for name in SECTIONS}
        self.images: list[dict[str, Any]] = lists["images"]
        self.annotations: list[dict[str, Any]] = lists["annotations"]
        self.categories: list[dict[str, Any]] = lists["categories"]
        self.panoptic = any("segments_info" in record for record in self.annotations[:100])

    def column(self, section: str, key: str) -> list[Any]:
        """The values of a key; None where an entry lacks it."""
        return [record.get(key) for record in getattr(self, section)]

    @cached_property
    def names(self) -> list[Any]:
        """What each image's picture is called: its file_name, or LVIS's URL; None where there is neither."""
        return list(map(picture_name, self.images))

    def lacks(self, section: str, key: str) -> np.ndarray:
        """bool [entries]: the entry has no such key, or null."""
        return np.array([record.get(key) is None for record in getattr(self, section)], dtype=bool)

    # Ids and references, int64 [entries], and which of them are valid, bool [entries]
    image_ids = _integers_of("images", "id")
    category_ids = _integers_of("categories", "id")
    annotation_ids = _integers_of("annotations", "id")
    owners = _integers_of("annotations", "image_id")
    labels = _integers_of("annotations", "category_id")

    @cached_property
    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """bbox of the annotations, float64 [N, 4], and which are four numbers."""
        return quads(self.column("annotations", "bbox"))

    @cached_property
    def corners(self) -> np.ndarray:
        """The boxes as x1 y1 x2 y2, float64 [N, 4]; NaN where one is not four numbers."""
        low, sides = self.boxes[0][:, :2], self.boxes[0][:, 2:]
        with np.errstate(invalid="ignore"):
            return np.concatenate([low, low + sides], axis=1)

    @cached_property
    def sized(self) -> np.ndarray:
        """bool [N]: the box is four finite numbers, with a width and a height above 0."""
        boxes = self.boxes[0]
        return np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)

    def edges_of(self, image: int) -> np.ndarray:
        """The right and bottom edges [K, 2] of the boxes of the image at a place that are finite."""
        edges = self.corners[self.image_rows == image, 2:]
        return edges[np.isfinite(edges).all(axis=1)]

    @cached_property
    def crowds(self) -> np.ndarray:
        """bool [N]: the annotation is a crowd."""
        return np.array([means_crowd(record.get("iscrowd")) for record in self.annotations], dtype=bool)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(width, height) of the images, float64 [M, 2]; NaN where the file does not say."""
        columns = [floats(self.column("images", side))[0] for side in ("width", "height")]
        sizes = np.stack(columns, axis=1) if self.images else np.zeros((0, 2))
        return np.where(np.isfinite(sizes) & (sizes > 0), sizes, np.nan)

    @cached_property
    def image_rows(self) -> np.ndarray:
        """int64 [N]: the place of each annotation's image in `images`; -1 where there is none."""
        ids, valid = self.image_ids
        owners, owners_valid = self.owners
        rows = np.flatnonzero(valid)
        rows = rows[np.argsort(ids[rows], kind="stable")]
        if not len(rows):
            return np.full(len(owners), -1)
        places = np.minimum(np.searchsorted(ids[rows], owners), len(rows) - 1)
        found = owners_valid & (ids[rows][places] == owners)
        return np.where(found, rows[places], -1)

    @cached_property
    def limits(self) -> np.ndarray:
        """(width, height) of each annotation's image, float64 [N, 2]; NaN where it is not known."""
        if not self.images:
            return np.full((len(self.annotations), 2), np.nan)
        return np.where(self.image_rows[:, None] >= 0, self.sizes[self.image_rows], np.nan)

    # ---- how findings are described

    def on_annotation(self, *keys: str) -> Callable[[Any], Finding]:
        """Finding of an annotation's place that shows the values of some keys."""
        return lambda row: _finding(self.annotations[row], ("id", "image_id"), keys)

    def on_image(self, *keys: str) -> Callable[[Any], Finding]:
        """Finding of an image's place that shows the values of some keys."""
        return lambda row: _finding(self.images[row], ("", "id"), keys)

    def on_category(self, row: Any) -> Finding:
        """Finding of a category's place."""
        record = self.categories[row]
        return Finding(None, None, f"category id {show(record.get('id'))} ({show(record.get('name'))})")


def _finding(record: dict[str, Any], ids: tuple[str, str], keys: tuple[str, ...]) -> Finding:
    shown = [f"{key} {show(record[key]) if key in record else 'is missing'}" for key in keys]
    return Finding(record.get(ids[0]), record.get(ids[1]), ", ".join(shown))


def read_raw(path: str | Path, report: Report, split: str = "") -> RawFile | None:
    """The file, or None where it is unusable; what is wrong with it as a whole goes to the report.

    Args:
        split: its name; a test split may be without objects.
    """
    path = Path(path)
    report.files.append(path)
    try:
        content = parse(path)
    except OSError as error:
        report.tell("missing_file", path, error.strerror or str(error))
        return None
    except json.JSONDecodeError as error:
        report.tell("unreadable_json", path, f"line {error.lineno}, column {error.colno}: {error.msg}")
        return None
    except (ValueError, RecursionError) as error:  # no UTF-8, or nested beyond all measure
        report.tell("unreadable_json", path, f"no JSON text: {show(str(error))}")
        return None
    if _has_long_ids(content):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        report.tell("not_coco", path, f"the file holds {type(content).__name__} {show(content, 40)}")
        return None
    usable = True
    for section in SECTIONS:
        here = content.get(section)
        if isinstance(here, list) and (here or (section == "annotations" and split.endswith("test"))):
            continue
        usable = False
        if section not in content:
            there = ", ".join(list(content)[:8]) or "none"
            report.tell("not_coco", path, f"there is no '{section}'; the keys are: {there}")
        elif not isinstance(here, list):
            report.tell("not_coco", path, f"'{section}' is no list: {show(here, 40)}")
        else:
            nothing = ": no image has any object" if section == "annotations" else ""
            report.tell("empty_section", path, f"'{section}' is empty{nothing}")
    if not usable:
        return None
    for section in SECTIONS:
        broken = [
            f"entry {row} of {section} is {show(record)}"
            for row, record in enumerate(content[section])
            if type(record) is not dict
        ]
        report.add("broken_record", path, broken, text_finding)
    return RawFile(path, content)


def _has_long_ids(content: Any) -> bool:
    """Whether ids of images are integers of more than 64 bits, which orjson gives as rounded floats."""
    images = content.get("images") if isinstance(content, dict) else None
    ids = [one.get("id") for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    return any(type(value) is float and abs(value) >= 1 << 63 for value in ids)


# ---- values that JSON gave, as columns


def is_number(value: Any) -> bool:
    """Whether JSON gave a number, and no truth value; NaN and infinity count as numbers."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def integers(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [N], bool [N] which of the values are integers); 0 where one is none."""
    return _column(values, {int}, is_integer, 0)


def floats(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N], bool [N] which of the values are numbers); NaN where one is none."""
    return _column(values, {int, float}, is_number, np.nan)


def _column(
    values: list[Any], types: set[type], fits: Callable[[Any], bool], missing: float
) -> tuple[np.ndarray, np.ndarray]:
    dtype = np.int64 if types == {int} else np.float64
    if set(map(type, values)) <= types:
        with contextlib.suppress(OverflowError):
            return np.array(values, dtype=dtype), np.ones(len(values), dtype=bool)
    valid = list(map(fits, values))
    numbers = [value if ok else missing for value, ok in zip(values, valid, strict=True)]
    return np.array(numbers, dtype=dtype), np.array(valid, dtype=bool)


def quads(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of four numbers as (float64 [N, 4], bool [N] which are such lists); NaN where one is none."""
    regular = set(map(type, values)) <= {list} and set(map(len, values)) <= {4}
    if regular and set(map(type, chain.from_iterable(values))) <= {int, float}:
        try:
            flat = np.fromiter(chain.from_iterable(values), dtype=np.float64, count=4 * len(values))
            return flat.reshape(-1, 4), np.ones(len(values), dtype=bool)
        except OverflowError:
            pass
    valid = [isinstance(value, list) and len(value) == 4 and all(map(is_number, value)) for value in values]
    rows = [value if ok else [np.nan] * 4 for value, ok in zip(values, valid, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 4), np.array(valid, dtype=bool)
