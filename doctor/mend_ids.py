"""What `--fix` does about ids, categories, and entries that stand twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from datasets.layouts import is_integer
from doctor.columns import RawFile
from doctor.correction import Correction, drop
from doctor.numbering import Numbering, as_integer
from doctor.report import Group


def number_ids(raw: RawFile) -> list[int]:
    """Give images, categories and annotations integers for ids, and follow every reference to them.

    References may be the id, what the id means, the name of a category, the file name of an image, or that
    without its ending.

    Returns:
        the places of the annotations whose image or category is none of these, nor an integer.
    """
    names = [(name, os.path.splitext(name)[0] if isinstance(name, str) else None)
             for name in raw.column("images", "file_name")]  # fmt: skip
    images = Numbering(raw.column("images", "id"), raw.column("annotations", "image_id"), names)
    categories = Numbering(
        raw.column("categories", "id"),
        [one.get("category_id") for record in raw.annotations for one in _labelled(record)],
        [(name,) for name in raw.column("categories", "name")],
    )
    pairs = [(raw.images, images), (raw.categories, categories)]
    if not raw.panoptic:  # there, an annotation is known by its image
        pairs.append((raw.annotations, Numbering(raw.column("annotations", "id"))))
    for records, numbering in pairs:
        for record, number in zip(records, numbering.numbers, strict=True):
            record["id"] = number
    lost = []
    for row, record in enumerate(raw.annotations):
        followed = [(record, "image_id", images)]
        followed += [(one, "category_id", categories) for one in _labelled(record)]
        for one, key, numbering in followed:
            meant = numbering(one.get(key))
            one[key] = as_integer(one.get(key)) if meant is None else meant
        needed = ["image_id"] if raw.panoptic else ["image_id", "category_id"]
        if not all(is_integer(record.get(key)) for key in needed):
            lost.append(row)
    return lost


def _labelled(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What has a category: the annotation itself, or its segments."""
    segments = record.get("segments_info", [record])
    return [one for one in segments if isinstance(one, dict)] if isinstance(segments, list) else []


def number_everything(correction: Correction, group: Group) -> str:
    """Integers for all ids of the file at once, whichever of them the group is about."""
    lost = number_ids(correction.raw)
    correction.drop("annotations", lost, "an object whose image or category names none of the file")
    return "made integers, everywhere alike"


def new_annotation_ids(correction: Correction, group: Group) -> str:
    """Free ids for annotations; a panoptic one, which is known by its image, is left out."""
    if correction.raw.panoptic:
        return drop("annotations")(correction, group)
    records = correction.raw.annotations
    # Not from the column of ids: two kinds of fault end here, and both may come in one round.
    highest = max((record["id"] for record in records if is_integer(record.get("id"))), default=0)
    for number, row in enumerate(group.rows, max(highest, 0) + 1):
        records[row]["id"] = number
    return f"given new ids from {highest + 1} on"


def merge_one_id(correction: Correction, group: Group) -> str:
    """Entries of one image id: merged where they name one picture, else dropped."""
    raw = correction.raw
    ids = raw.image_ids[0]
    for row in group.rows:
        same = np.flatnonzero(ids == ids[row]).tolist()
        if len({raw.images[one].get("file_name") for one in same}) == 1:
            correction.drop("images", same[1:], group.kind.title, merged=True)
        else:  # nobody can tell which picture the objects belong to
            correction.drop("images", same, group.kind.title)
            owners = np.flatnonzero(raw.owners[1] & (raw.owners[0] == ids[row]))
            correction.drop("annotations", owners, group.kind.title)
    return "merged where they name one picture, dropped with their objects where they name several"


def merge_one_picture(correction: Correction, group: Group) -> str:
    """Entries of one picture, by its name, its path or its bytes, become the first of them."""
    raw = correction.raw
    rows = set(map(int, group.rows))
    first: dict[Any, int] = {}
    for row in range(len(raw.images)):
        path = correction.picture(row)
        keys: list[Any] = [raw.images[row].get("file_name"), path]
        if correction.files and path is not None:
            picture = correction.files.pictures.get(path)
            keys.append(picture.digest if picture and picture.size and picture.digest else None)
        keys = [key for key in keys if key is not None]
        same = min((first.get(key, row) for key in keys), default=row)
        for key in keys:
            first.setdefault(key, same)
        if same != row and row in rows:
            for annotation in np.flatnonzero(raw.image_rows == row):
                raw.annotations[annotation]["image_id"] = raw.images[same]["id"]
            correction.drop("images", [row], group.kind.title, merged=True)
    return "merged with the first entry"


def move_categories(correction: Correction, group: Group) -> str:
    """Free ids for categories that the model has no class for, as far as there are any."""
    raw, limit = correction.raw, correction.num_classes
    taken = set(raw.category_ids[0].tolist())
    free = (i for i in range(1, limit if limit is not None else 1 << 31) if i not in taken)
    moved: dict[int, int] = {}
    for row in group.rows:
        old, new = raw.categories[row]["id"], next(free, None)
        if new is None:
            correction.drop("categories", [row], group.kind.title)
        else:
            raw.categories[row]["id"] = moved[old] = new
    _relabel(raw, moved)
    return ", ".join(f"{old} became {new}" for old, new in moved.items()) or "dropped"


def take_ids_of_train(correction: Correction, group: Group) -> str:
    """The category ids of train, by name; categories that train lacks get those that follow."""
    raw = correction.raw
    split = next(name for name, one in correction.raws.items() if one.path == raw.path)
    train = correction.raws[split.replace("val", "train").replace("test", "train")]
    ids = {str(record.get("name")): record["id"] for record in train.categories}
    following = max(ids.values(), default=0) + 1
    moved: dict[int, int] = {}
    for record in raw.categories:
        number = ids.get(str(record.get("name")))
        if number is None:
            number, following = following, following + 1
        moved[record["id"]] = number
        record["id"] = number
    _relabel(raw, moved)
    return "val has the ids of train"


def _relabel(raw: RawFile, moved: Mapping[int, int]) -> None:
    """Give objects and segments of some categories other ids."""
    for record in raw.annotations:
        for one in _labelled(record):
            if is_integer(one.get("category_id")):
                one["category_id"] = moved.get(one["category_id"], one["category_id"])


def drop_uncategorised(correction: Correction, group: Group) -> str:
    """Objects, or segments, of a category that is not listed are left out."""
    if not correction.raw.panoptic:
        return drop("annotations")(correction, group)
    correction.dropped_segments.update({tuple(segment): group.kind.title for segment in group.rows})
    return "dropped the segment"
