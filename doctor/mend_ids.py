"""What `--fix` does about ids, categories, and entries that stand twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from doctor.columns import RawFile, as_integer
from doctor.correction import Action, Correction, drop
from doctor.report import Group


def _mend_ids(correction: Correction, group: Group) -> str:
    raw = correction.raw
    section, key = group.about.split(".")
    records = getattr(raw, section)
    taken = [record[key] for record in records if type(record.get(key)) is int]
    following = max(taken, default=0) + 1
    renamed: dict[str, int] = {}  # by the value's text, for values of any type
    for row in group.rows:
        record, value = records[row], records[row].get(key)
        number = as_integer(value)
        if number is None and key == "id":
            number, following = following, following + 1
        if number is None:
            correction.dropped[section].add(int(row))
            continue
        record[key] = number
        if value is not None:
            renamed[repr(value)] = number
    reference = {"images": "image_id", "categories": "category_id"}.get(section)
    if reference and key == "id":
        for record in raw.annotations:
            if repr(record.get(reference)) in renamed and type(record.get(reference)) is not int:
                record[reference] = renamed[repr(record[reference])]
    return "made integers" if key == "id" else "made integers, or dropped"


def _new_annotation_ids(correction: Correction, group: Group) -> str:
    if correction.raw.panoptic:
        return drop("annotations")(correction, group)
    records = correction.raw.annotations
    # Not from the column of ids: two kinds of fault end here, and both may come in one round.
    highest = max((record["id"] for record in records if type(record.get("id")) is int), default=0)
    for number, row in enumerate(group.rows, highest + 1):
        records[row]["id"] = number
    return f"given new ids from {highest + 1} on"


def _mend_duplicate_images(correction: Correction, group: Group) -> str:
    raw = correction.raw
    ids = raw.image_ids[0]
    for row in group.rows:
        same = np.flatnonzero(ids == ids[row]).tolist()
        if len({raw.images[one].get("file_name") for one in same}) == 1:
            correction.dropped["images"] |= set(same[1:])
        else:  # nobody can tell which picture the objects belong to
            correction.dropped["images"] |= set(same)
            owners = np.flatnonzero(raw.owners[1] & (raw.owners[0] == ids[row]))
            correction.dropped["annotations"] |= set(owners.tolist())
    return "merged where they name one picture, dropped with their objects where they name several"


def _merge_images(correction: Correction, group: Group) -> str:
    raw = correction.raw
    first: dict[Any, int] = {}
    for row, record in enumerate(raw.images):
        keys = [record.get("file_name")]
        if correction.files and correction.source.images and isinstance(keys[0], str):
            picture = correction.files.pictures.get(correction.path(row))
            keys += [picture.digest] if picture and picture.size else []
        same = min(first.get(key, row) for key in keys)
        for key in keys:
            first.setdefault(key, same)
        if same != row and row in set(map(int, group.rows)):
            for annotation in np.flatnonzero(raw.image_rows == row):
                raw.annotations[annotation]["image_id"] = raw.images[same]["id"]
            correction.dropped["images"].add(row)
    return "merged with the first entry"


def _move_categories(correction: Correction, group: Group) -> str:
    raw, limit = correction.raw, correction.num_classes
    taken = set(raw.category_ids[0].tolist())
    free = (i for i in range(1, limit if limit is not None else 1 << 31) if i not in taken)
    moved: dict[int, int] = {}
    for row in group.rows:
        old, new = raw.categories[row]["id"], next(free, None)
        if new is None:
            correction.dropped["categories"].add(int(row))
        else:
            raw.categories[row]["id"] = moved[old] = new
    _relabel(raw, moved)
    return ", ".join(f"{old} became {new}" for old, new in moved.items()) or "dropped"


def _rename_categories(correction: Correction, group: Group) -> str:
    raw = correction.raw
    split = next(name for name, one in correction.raws.items() if one.path == raw.path)
    train = correction.raws[split.replace("val", "train")]
    ids = {record.get("name"): record["id"] for record in train.categories}
    following = max(ids.values(), default=0) + 1
    moved: dict[int, int] = {}
    for record in raw.categories:
        number = ids.get(record.get("name"))
        if number is None:
            number, following = following, following + 1
        moved[record["id"]] = number
        record["id"] = number
    _relabel(raw, moved)
    return "val has the ids of train"


def _relabel(raw: RawFile, moved: Mapping[int, int]) -> None:
    """Give objects and segments of some categories other ids."""
    for record in raw.annotations:
        segments = record.get("segments_info") if raw.panoptic else [record]
        for one in segments if isinstance(segments, list) else ():
            if isinstance(one, dict) and type(one.get("category_id")) is int:
                one["category_id"] = moved.get(one["category_id"], one["category_id"])


def _drop_dangling(correction: Correction, group: Group) -> str:
    if not correction.raw.panoptic:
        return drop("annotations")(correction, group)
    correction.dropped_segments |= {tuple(segment) for segment in group.rows}
    return "dropped the segment"


ACTIONS: dict[str, Action] = {
    "id_type": _mend_ids,
    "duplicate_image_id": _mend_duplicate_images,
    "duplicate_category_id": drop("categories"),
    "duplicate_annotation_id": _new_annotation_ids,
    "annotation_id_zero": _new_annotation_ids,
    "dangling_image_id": drop("annotations"),
    "dangling_category_id": _drop_dangling,
    "category_range": _move_categories,
    "categories_differ": _rename_categories,
    "image_twice": _merge_images,
    "duplicate_object": drop("annotations"),
}
"""Kind of fault -> its correction."""
