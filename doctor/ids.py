"""Checks of ids and of what refers to them, and the notes on classes; for instances and panoptic files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from doctor.columns import RawFile, shorten
from doctor.numbering import as_integer
from doctor.report import Finding, Report, text_finding


def check_ids(raw: RawFile, report: Report) -> None:
    """Types and duplicates of ids, and references without a target."""
    path, n = raw.path, len(raw.annotations)
    columns = [
        ("images", "id", raw.image_ids[1], raw.on_image("id", "file_name")),
        ("categories", "id", raw.category_ids[1], raw.on_category),
        ("annotations", "image_id", raw.owners[1], raw.on_annotation("image_id")),
    ]
    if not raw.panoptic:
        columns.append(("annotations", "id", raw.annotation_ids[1], raw.on_annotation("id")))
        columns.append(("annotations", "category_id", raw.labels[1], raw.on_annotation("category_id")))
    for section, key, valid, describe in columns:

        def named(row: Any, section: str = section, describe: Any = describe) -> Finding:
            finding = describe(row)
            return finding._replace(value=f"{section}[{row}]: {finding.value}")

        report.add("id_type", path, np.flatnonzero(~valid), named, about=f"{section}.{key}")
    report.add("duplicate_image_id", path, _repeated(*raw.image_ids), raw.on_image("id", "file_name"))
    report.add("duplicate_category_id", path, _repeated(*raw.category_ids), raw.on_category)
    known = (raw.image_rows >= 0) | np.isin(raw.owners[0], _meant(raw, "images", raw.image_ids[1]))
    rows = np.flatnonzero(raw.owners[1] & ~known)
    report.add("dangling_image_id", path, rows, raw.on_annotation("image_id"))
    unnamed = [row for row, name in enumerate(raw.names) if type(name) is not str or not name]
    report.add("file_name_missing", path, unnamed, raw.on_image("file_name"))
    if raw.panoptic:
        report.add("duplicate_annotation_id", path, _repeated(*raw.owners), raw.on_annotation("image_id"))
        return
    report.add(
        "duplicate_annotation_id", path, _repeated(*raw.annotation_ids), raw.on_annotation("category_id")
    )
    ids, valid = raw.annotation_ids
    report.add("annotation_id_zero", path, np.flatnonzero(valid & (ids == 0)), raw.on_annotation(), n)
    labels, valid = raw.labels
    listed = raw.category_ids[0][raw.category_ids[1]].tolist()
    listed += _meant(raw, "categories", raw.category_ids[1])
    rows = np.flatnonzero(valid & ~np.isin(labels, listed))
    report.add("dangling_category_id", path, rows, raw.on_annotation("category_id"))


def _meant(raw: RawFile, section: str, valid: np.ndarray) -> list[int]:
    """What ids of the wrong type probably mean: their objects do not lack them, the type is the fault."""
    meant = (as_integer(getattr(raw, section)[row].get("id")) for row in np.flatnonzero(~valid))
    return [number for number in meant if number is not None]


def _repeated(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The places of valid values that stood before already."""
    rows = np.flatnonzero(valid)
    _, first = np.unique(values[rows], return_index=True)
    repeated = np.ones(len(rows), dtype=bool)
    repeated[first] = False
    return rows[repeated]


def check_categories(raw: RawFile, report: Report, num_classes: int | None) -> None:
    """Category ids that the model has no class for, and notes on the list of categories."""
    path = raw.path
    ids, valid = raw.category_ids
    beyond = (ids < 0) | (ids >= (num_classes if num_classes is not None else np.inf))
    if num_classes is not None or (ids < 0).any():
        limit = "ids are 0 or more"
        if num_classes is not None:
            enough = f"--num_classes {max(0, *ids[valid].tolist()) + 1} holds all"
            limit = (
                f"--num_classes {num_classes}, given or of the model, holds 0 to {num_classes - 1}; {enough}"
            )

        def describe(row: Any) -> Finding:
            value = f"{raw.on_category(row).value}; {limit}"
            users = np.flatnonzero(raw.labels[1] & (raw.labels[0] == ids[row]))
            example = raw.annotations[users[0]] if len(users) else {}
            return Finding(example.get("id"), example.get("image_id"), value)

        report.add("category_range", path, np.flatnonzero(valid & beyond), describe)
    used = np.unique(ids[valid])
    if len(used) and used[0] == 0:
        report.tell("ids_from_zero", path, f"the first of {len(used)} categories has id 0")
    pairs = zip(used.tolist(), used[1:].tolist(), strict=False)
    holes = [(low + 1, high - 1) for low, high in pairs if high - low > 1]
    gaps = [f"{first}…{last}" if first < last else f"{first}" for first, last in holes]
    if gaps:
        report.tell("id_gaps", path, f"unused: {shorten(', '.join(gaps))}; highest id {used[-1]}")
    names = Counter(str(record.get("name")) for record in raw.categories)
    report.add("same_names", path, [name for name, count in names.items() if count > 1], text_finding)


def note_classes(raw: RawFile, report: Report, num_queries: int | None) -> dict[str, int]:
    """Notes on classes and images without objects and on crowded images -> objects of each class by name."""
    path = raw.path
    labels, owners = objects(raw)
    ids, counts = np.unique(labels, return_counts=True)
    found = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    ids, valid = raw.category_ids
    names = {int(i): str(r.get("name")) for i, r, ok in zip(ids, raw.categories, valid, strict=True) if ok}
    crowd_ids, crowd_counts = np.unique(raw.labels[0][raw.labels[1] & raw.crowds], return_counts=True)
    crowds = dict(zip(crowd_ids.tolist(), crowd_counts.tolist(), strict=True))
    if crowds and not raw.panoptic:
        shown = [f"{names.get(i, i)} {count}" for i, count in crowds.items()]
        report.add("crowds", path, shown, text_finding)
        only = [names[i] for i in crowds if i in names and i not in found]
        report.add("crowds_only", path, only, text_finding)
    empty = [names[i] for i in sorted(names) if i not in found and i not in crowds]
    report.add("empty_classes", path, empty, text_finding)
    per_image = np.bincount(owners, minlength=len(raw.images))
    report.add("images_without_objects", path, np.flatnonzero(per_image == 0), raw.on_image("file_name"))
    if num_queries is not None:

        def describe(row: Any) -> Finding:
            value = f"{per_image[row]} objects, {num_queries} queries"
            return Finding(None, raw.images[row].get("id"), value)

        report.add("more_than_queries", path, np.flatnonzero(per_image > num_queries), describe)
    report.summary.append(
        f"{path}: {len(raw.images)} images, {len(labels)} objects of {len(names)} classes "
        f"(highest id {max(names, default=0)}); {np.count_nonzero(per_image)} images hold objects, "
        f"{per_image.max(initial=0)} at most"
    )
    return {name: found.get(i, 0) for i, name in names.items()}


def objects(raw: RawFile) -> tuple[np.ndarray, np.ndarray]:
    """(category ids, places of the images), int64 [objects] each, of what is trained on in listed images."""
    if not raw.panoptic:
        rows = np.flatnonzero((raw.image_rows >= 0) & raw.labels[1] & ~raw.crowds)
        return raw.labels[0][rows], raw.image_rows[rows]
    pairs = [
        (segment["category_id"], image)
        for record, image in zip(raw.annotations, raw.image_rows.tolist(), strict=True)
        if image >= 0 and isinstance(record.get("segments_info"), list)
        for segment in record["segments_info"]
        if isinstance(segment, dict) and type(segment.get("category_id")) is int
    ]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def compare_categories(
    report: Report,
    train: RawFile,
    val: RawFile,
    trained: Mapping[str, int],
    scored: Mapping[str, int],
    split: str,
) -> None:
    """Ids that mean one class in train and another in val or test; classes with objects in train or val only.

    `trained` and `scored` are the objects of each class in train and in the other, which is called `split`.
    """
    names: list[dict[int, Any]] = []
    for raw in (train, val):
        records = [record for record in raw.categories[::-1] if type(record.get("id")) is int]
        names.append({record["id"]: record.get("name") for record in records})  # the first of an id counts
    ids = sorted(i for i in names[0].keys() & names[1].keys() if names[0][i] != names[1][i])
    other = split.split()[-1]
    different = [f"category {i} is {names[0][i]!r} in train and {names[1][i]!r} in {other}" for i in ids]
    report.add("categories_differ", val.path, different, text_finding)
    if split.endswith("test"):
        return
    for raw, here, there in ((train, trained, scored), (val, scored, trained)):
        only = sorted(name for name, n in here.items() if n and not there.get(name))
        report.add("one_split_only", raw.path, only, text_finding)
