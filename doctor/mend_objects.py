"""What `--fix` does about boxes, areas, crowd flags and segmentations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from datasets.masks import is_usable, run_lengths
from doctor.boxes import to_corners
from doctor.columns import is_number, means_crowd
from doctor.correction import Correction
from doctor.masks import apart, is_polygons, measure, sound
from doctor.report import Group

_BOX_KEYS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def _good_polygons(record: dict[str, Any], limit: np.ndarray) -> list[list[float]]:
    """The usable polygons of an object in an image of this width and height; [] where it has none."""
    polygons = record.get("segmentation")
    if not isinstance(polygons, list) or not is_polygons(polygons):
        return []
    return [polygon for polygon in polygons if is_usable(polygon, limit.max())]


def box_from_elsewhere(correction: Correction, group: Group) -> str:
    """The box from its own text, or from the polygons; an object without either is left out."""
    for row in group.rows:
        record = correction.raw.annotations[row]
        box = _as_numbers(record.get("bbox"))
        polygons = _good_polygons(record, correction.raw.limits[row])
        if box is None and polygons:
            points = np.concatenate(polygons).reshape(-1, 2)
            low, high = points.min(axis=0), points.max(axis=0)
            box = [*low.tolist(), *(high - low).tolist()]
        if box is None:
            correction.drop("annotations", [row], group.kind.title)
        else:
            record["bbox"] = box
    return "read as numbers, taken from the polygons, or dropped with the object"


def box_of_mask(correction: Correction, group: Group) -> str:
    """The box around a sound mask; an object without one is left out."""
    raw = correction.raw
    extents = measure(raw)[0].boxes
    good = sound(extents, raw.limits)
    for row in group.rows:
        if good[row]:
            low, high = extents[row, :2], extents[row, 2:]
            raw.annotations[row]["bbox"] = [*low.round(3).tolist(), *(high - low).round(3).tolist()]
        else:
            correction.drop("annotations", [row], group.kind.title)
    return "taken from the mask, or dropped with the object"


def _as_numbers(value: Any) -> list[float] | None:
    """['1', '2', '3', '4'], '1, 2, 3, 4' or a dict of x, y, width, height as numbers; None for others."""
    if isinstance(value, str):
        value = value.strip(" []()").replace(",", " ").split()
    if isinstance(value, dict):
        sides = next((keys for keys in _BOX_KEYS if value.keys() >= set(keys)), None)
        value = [value[key] for key in sides] if sides else None
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == 4 and np.isfinite(numbers).all() else None


def make_plain(record: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose box, crowd flag and area are written as COCO writes them, where that is plain.

    Boxes as text or dicts, crowd flags of any type or none, areas that are missing. What is not plain stays.
    """
    box, crowd = record.get("bbox"), record.get("iscrowd")
    regular = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    made = dict(record) if regular else {**record, "bbox": _as_numbers(box) or box}
    made["iscrowd"] = int(means_crowd(crowd))
    polygon = record.get("segmentation")  # VIA writes the numbers of the one polygon, not a list of polygons
    if isinstance(polygon, list) and len(polygon) > 5 and all(map(is_number, polygon)):
        made["segmentation"] = [polygon]
    sides = _as_numbers(made["bbox"])
    if not is_number(made.get("area")) and sides is not None:
        made["area"] = sides[2] * sides[3]
    return made


def convert_boxes(correction: Correction, group: Group) -> str:
    """All boxes of the file from the convention that the group is about to COCO's."""
    raw, rows = correction.raw, np.asarray(group.rows)
    convention = group.about
    boxes = raw.boxes[0][rows]
    if group.name == "looks_normalised":
        limits = np.tile(raw.limits[rows], 2)
        boxes = np.where(np.isfinite(limits), boxes * limits, boxes)
    corners = to_corners(boxes, convention)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).round(3)
    for row, box in zip(rows, boxes.tolist(), strict=True):
        raw.annotations[row]["bbox"] = box
    names = {"xywh": "x y width height", "xyxy": "x1 y1 x2 y2", "centred": "centre x y, width, height"}
    return f"converted to x y width height in pixels from {names[convention]}"


def swap_corners(record: dict[str, Any], limit: np.ndarray) -> None:
    """A box of negative sides, measured from its top left corner."""
    x, y, w, h = record["bbox"]
    record["bbox"] = [min(x, x + w), min(y, y + h), abs(w), abs(h)]


def clamp_box(record: dict[str, Any], limit: np.ndarray) -> None:
    """The part of a box that lies in the image."""
    box = np.array(record["bbox"], dtype=np.float64)
    low, high = np.clip(box[:2], 0, limit), np.clip(box[:2] + box[2:], 0, limit)
    record["bbox"] = [*low.tolist(), *(high - low).tolist()]


def compute_area(correction: Correction, group: Group) -> str:
    """The area of the polygons, or of the box."""
    raw = correction.raw
    extents = measure(raw)[0]
    # A mask that lies apart from its box gives no area: it would speak against the box in the next round.
    doubtful = apart(raw, extents)
    for row in group.rows:
        record, area = raw.annotations[row], 0.0
        box, polygons = record.get("bbox"), _good_polygons(record, raw.limits[row])
        if polygons and not doubtful[row] and np.isfinite(raw.limits[row]).all():
            width, height = raw.limits[row].astype(int).tolist()
            area = float(coco_mask.area(run_lengths(polygons, height, width)))
        if not area and _as_numbers(box) and all(map(is_number, box)):
            area = abs(float(box[2] * box[3]))
        record["area"] = area
    return "computed from mask or box"


def keep_good_polygons(record: dict[str, Any], limit: np.ndarray) -> None:
    """Only the polygons that can be drawn."""
    record["segmentation"] = _good_polygons(record, limit)


def clamp_polygons(record: dict[str, Any], limit: np.ndarray) -> None:
    """The points of polygons moved to the edges of the image where they lie beyond."""
    points = [np.clip(np.reshape(one, (-1, 2)), 0, limit) for one in _good_polygons(record, limit)]
    record["segmentation"] = [one.ravel().tolist() for one in points]
