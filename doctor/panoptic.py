"""Checks of panoptic files: the segments in the JSON, and their agreement with the PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from doctor.columns import RawFile, show
from doctor.pictures import learn
from doctor.report import Finding, Report
from util.errors import UserError


class Segment(NamedTuple):
    """The place of a segment in a panoptic file: of its annotation, and of itself therein."""

    annotation: int
    place: int


def check_segments(raw: RawFile, report: Report) -> None:
    """What the JSON alone tells: types, ids, categories, and images without an annotation."""
    path = raw.path
    report.add("isthing_missing", path, np.flatnonzero(raw.lacks("categories", "isthing")), raw.on_category)
    owned = set(raw.image_rows.tolist())
    rows = [row for row in range(len(raw.images)) if row not in owned and raw.image_ids[1][row]]
    report.add("image_without_segments", path, rows, raw.on_image("file_name"))
    names = raw.column("annotations", "file_name")
    unnamed = [row for row, name in enumerate(names) if not isinstance(name, str)]
    report.add("png_unreadable", path, unnamed, raw.on_annotation("file_name"))
    known = set(raw.category_ids[0][raw.category_ids[1]].tolist())
    found: dict[str, list[Segment]] = {}
    for annotation, record in enumerate(raw.annotations):
        segments = record.get("segments_info")
        if not isinstance(segments, list):
            found.setdefault("segments_malformed", []).append(Segment(annotation, -1))
            continue
        seen: set[Any] = set()
        for place, segment in enumerate(segments):
            one = segment if isinstance(segment, dict) else {}
            number, category, area = (one.get(key) for key in ("id", "category_id", "area"))
            if one is segment and (type(number) is not int or not 0 <= number < 1 << 24 or number in seen):
                name = "segment_id"
            elif type(category) is not int or (category in known and type(area) not in (int, float)):
                name = "segments_malformed"
            else:
                name = "" if category in known else "dangling_category_id"
            if name:
                found.setdefault(name, []).append(Segment(annotation, place))
            if name != "segment_id":
                seen.add(number)
    for name, places in found.items():
        report.add(name, path, places, on_segment(raw))


def on_segment(raw: RawFile) -> Any:
    """Describes a Segment: the finding's annotation id is the segment's own id."""

    def describe(row: Any) -> Finding:
        record = raw.annotations[row.annotation]
        image_id = record.get("image_id")
        if row.place < 0:
            return Finding(None, image_id, f"segments_info {show(record.get('segments_info'))}")
        segment = record["segments_info"][row.place]
        number = segment.get("id") if isinstance(segment, dict) else None
        return Finding(number, image_id, f"segment {show(segment)}")

    return describe


class Map(NamedTuple):
    """What a panoptic PNG holds: its size (width, height), the ids in it and their pixels; or an error."""

    size: tuple[int, int]
    ids: np.ndarray
    pixels: np.ndarray
    error: str


def read_map(path: Path) -> Map:
    """Read and count a panoptic PNG."""
    from datasets.panoptic_png import read_ids

    try:
        ids = read_ids(path)
    except UserError as error:
        return Map((0, 0), np.zeros(0), np.zeros(0), str(error))
    return map_of(ids)


def map_of(ids: np.ndarray) -> Map:
    """What a map of ids [h, w] holds."""
    values, counts = np.unique(ids, return_counts=True)
    return Map((ids.shape[1], ids.shape[0]), values, counts, "")


def check_pngs(raw: RawFile, report: Report, folder: Path, known: dict[Path, Map]) -> None:
    """Compare every PNG with its annotation; rows are places of annotations, or pairs with an id.

    Args:
        known: the PNGs that have been read already; the others are added.
    """
    names = raw.column("annotations", "file_name")
    paths = {row: folder / name for row, name in enumerate(names) if isinstance(name, str)}
    learn(read_map, paths.values(), known, f"PNGs of {raw.path.name}")
    maps = {row: known[path] for row, path in paths.items()}
    unreadable, sizes, extra, absent = [], [], [], []
    for row, one in maps.items():
        if one.error:
            unreadable.append(row)
            continue
        limit = raw.limits[row]
        if np.isfinite(limit).all() and list(one.size) != limit.tolist():
            sizes.append(row)
        segments = raw.annotations[row].get("segments_info")
        listed = {s.get("id"): place for place, s in enumerate(segments or []) if isinstance(s, dict)}
        inside = set(one.ids.tolist())
        extra += [(row, number) for number in sorted(inside - {0} - set(listed))]
        absent += [Segment(row, listed[number]) for number in listed if number not in inside]

    def on_map(row: Any) -> Finding:
        one, (width, height) = maps[row], raw.limits[row]
        sizes = f"{paths[row]} has {one.size[0]} x {one.size[1]}, the image {width:g} x {height:g}"
        return Finding(None, raw.annotations[row].get("image_id"), one.error or sizes)

    def on_extra(row: Any) -> Finding:
        one = maps[row[0]]
        pixels = int(one.pixels[one.ids == row[1]][0])
        return Finding(row[1], raw.annotations[row[0]].get("image_id"), f"{pixels} pixels in {paths[row[0]]}")

    report.add("png_unreadable", raw.path, unreadable, on_map)
    report.add("png_size", raw.path, sizes, on_map)
    report.add("png_not_in_json", raw.path, extra, on_extra)
    report.add("json_not_in_png", raw.path, absent, on_segment(raw))
