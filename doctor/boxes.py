"""Checks of boxes, areas and crowd flags, and of the convention in which all boxes of a file are written.

N annotations; boxes are compared with the size of their image, and where there are polygons with those.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from doctor.columns import RawFile, floats
from doctor.masks import Extents, leaves, overlap
from doctor.report import Finding, Report

FEWEST = 3  # boxes from which a convention is judged
CONVENTIONS = ("xywh", "xyxy", "centred")


def to_corners(boxes: np.ndarray, convention: str) -> np.ndarray:
    """Boxes [N, 4] of a convention as x1 y1 x2 y2.

    Args:
        convention: xywh (COCO's), xyxy, or centred: centre, then width and height.
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    if convention == "xyxy":
        return boxes
    low = first - second / 2 if convention == "centred" else first
    return np.concatenate([low, low + second], axis=1)


def check_boxes(raw: RawFile, report: Report, masks: Extents) -> None:
    """Boxes that are missing, no numbers, without size or off the image; conventions other than COCO's."""
    boxes, regular = raw.boxes
    path, n, describe = raw.path, len(boxes), raw.on_annotation("bbox")
    missing = raw.lacks("annotations", "bbox")
    finite = np.isfinite(boxes).all(axis=1)
    report.add("bbox_missing", path, np.flatnonzero(missing), describe)
    report.add("bbox_malformed", path, np.flatnonzero(~missing & ~regular), describe)
    report.add("bbox_not_finite", path, np.flatnonzero(regular & ~finite), describe)
    usable = regular & finite
    areas = floats(raw.column("annotations", "area"))[0]
    convention, scale = find_convention(boxes, raw.limits, usable, masks, areas)
    if (convention, scale) != ("xywh", "pixels"):
        name = "looks_normalised" if scale == "normalised" else f"looks_{convention}"
        report.add(name, path, np.flatnonzero(usable), describe, about=convention)
        return  # what else is odd about the boxes follows from it
    negative = usable & (boxes[:, 2:] < 0).any(axis=1)
    low, high = raw.corners[:, :2], raw.corners[:, 2:]
    outside = raw.sized & ((high <= 0) | (low >= raw.limits)).any(axis=1)
    over_edge = raw.sized & ~outside & leaves(raw.corners, raw.limits)

    def where(row: Any) -> Finding:
        finding, (width, height) = describe(row), raw.limits[row]
        return finding._replace(value=f"{finding.value}, the image has {width:g} x {height:g}")

    report.add("bbox_negative", path, np.flatnonzero(negative), describe, n)
    report.add("bbox_no_size", path, np.flatnonzero(usable & ~negative & ~raw.sized), describe, n)
    report.add("bbox_outside", path, np.flatnonzero(outside), where, n)
    report.add("bbox_over_edge", path, np.flatnonzero(over_edge), where, n)
    rows = np.flatnonzero(raw.sized & (raw.image_rows >= 0) & raw.labels[1] & ~raw.crowds)
    keys = [*boxes[rows].T, raw.labels[0][rows], raw.image_rows[rows]]
    order = np.lexsort(keys)  # stable: of equal ones the first in the file comes first
    same = np.ones(max(len(rows) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    twice = np.sort(rows[order[1:][same]])
    report.add("duplicate_object", path, twice, raw.on_annotation("category_id", "bbox"), n)


def find_convention(
    boxes: np.ndarray,
    limits: np.ndarray,
    usable: np.ndarray,
    masks: Extents,
    areas: np.ndarray | None = None,
) -> tuple[str, str]:
    """How the boxes of a file are written.

    A convention is ruled out by boxes that leave their images, or that lie apart from their polygons. COCO's
    is assumed unless it does not suit and another suits nearly every box; or nearly every area is that
    between two corners, and not width times height.

    Args:
        boxes: [N, 4] as they are in the file.
        limits: [N, 2] width and height of each one's image, NaN if unknown.
        usable: [N] which boxes are four finite numbers.
        masks: extents of the masks.
        areas: [N] as they are in the file; None: they say nothing.

    Returns:
        one of CONVENTIONS, and 'pixels' or 'normalised'.
    """
    known = usable & np.isfinite(limits).all(axis=1) & (boxes != 0).any(axis=1)
    boxes, limits = boxes[known], limits[known]
    if len(boxes) < FEWEST:
        return "xywh", "pixels"
    extents, has_mask = masks.boxes[known], masks.known[known]
    scale = "pixels"
    if np.mean((np.abs(boxes) <= 1.01).all(axis=1)) >= 0.95 and np.median(limits) > 4:
        boxes, scale = boxes * np.tile(limits, 2), "normalised"
    fits = {}  # convention -> the share of boxes that have a size, lie in their image, and fit their masks
    for name in CONVENTIONS:
        corners = to_corners(boxes, name)
        has_size = (corners[:, 2:] >= corners[:, :2]).all(axis=1)
        fits[name] = float(np.mean(has_size & ~leaves(corners, limits)))
        if has_mask.sum() >= FEWEST:
            fits[name] *= float(np.mean(overlap(corners[has_mask], extents[has_mask]) > 0.5))
    if scale == "normalised":  # YOLO's, unless it does not suit
        order: tuple[str, ...] = ("centred", "xywh", "xyxy")
        return max(order, key=lambda name: round(fits[name], 2)), scale
    if areas is not None:
        between = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), np.prod(boxes[:, 2:], axis=1)
        near = [np.mean(np.abs(areas[known] - one) <= 0.01 * one) for one in between]  # xyxy, xywh
        if fits["xyxy"] >= 0.98 and near[0] >= 0.98 and near[1] < 0.5:
            return "xyxy", scale
    best = max(("xyxy", "centred"), key=lambda name: round(fits[name], 2))
    return (best, scale) if fits["xywh"] < 0.9 and fits[best] >= 0.98 else ("xywh", scale)


def check_areas_and_crowds(raw: RawFile, report: Report) -> None:
    """Areas that are missing or impossible, and crowd flags that are missing or not 0 or 1."""
    path, n = raw.path, len(raw.annotations)
    areas, regular = floats(raw.column("annotations", "area"))
    boxes = raw.boxes[0]
    with np.errstate(invalid="ignore"):
        box_areas = boxes[:, 2] * boxes[:, 3]
        high = areas > 1.05 * box_areas + 2 * (boxes[:, 2] + boxes[:, 3]) + 4  # a pixel wider on each side
        wrong = regular & raw.sized & (~np.isfinite(areas) | (areas <= 0) | high)
    if report.doubts_boxes(path):
        wrong &= ~np.isfinite(areas) | (areas <= 0)
    report.add("area_malformed", path, np.flatnonzero(~regular), raw.on_annotation("area"))
    report.add("area_wrong", path, np.flatnonzero(wrong), raw.on_annotation("area", "bbox"), n)
    values = raw.column("annotations", "iscrowd")
    if set(map(type, values)) <= {int} and set(values) <= {0, 1}:
        return
    missing = raw.lacks("annotations", "iscrowd")
    regular = np.array([type(value) is int and value in (0, 1) for value in values], dtype=bool)
    describe = raw.on_annotation("iscrowd")
    report.add("iscrowd_missing", path, np.flatnonzero(missing), describe, n)
    report.add("iscrowd_malformed", path, np.flatnonzero(~missing & ~regular), describe)
