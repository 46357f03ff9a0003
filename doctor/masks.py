"""Checks of segmentations: polygons and run lengths against the image, and against the object's box.

N annotations. Polygons are handled as one array of coordinates for a block of annotations.
"""

from __future__ import annotations

import array
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask

from datasets.masks import FAR, enclosed_area, is_usable, run_lengths
from doctor.columns import RawFile, floats, is_number
from doctor.report import Finding, Report

TOLERANCE = 2.0  # pixels by which boxes and masks may leave their image: rounding, tools that count from 1
KINDS_OF_MASKS = (
    "segmentation_malformed", "polygon_points", "polygon_not_finite", "polygon_far", "polygon_outside",
    "rle_misfit",
)  # fmt: skip
BLOCK = 50_000  # annotations at a time: their coordinates fit in a cache or two


Faults = dict[str, np.ndarray]  # kind -> bool [N]: which masks have it


class Extents(NamedTuple):
    """Boxes around masks, [N, 4] x1 y1 x2 y2 in pixels, NaN where there is none; and bool [N]: known."""

    boxes: np.ndarray
    known: np.ndarray


def measure(raw: RawFile) -> tuple[Extents, Faults]:
    """The extents of all masks; and kind of fault -> bool [N], which masks have it in themselves."""
    n = len(raw.annotations)
    extents = np.full((n, 4), np.nan)
    faults = {name: np.zeros(n, dtype=bool) for name in KINDS_OF_MASKS}
    values = raw.column("annotations", "segmentation")
    for start in range(0, n, BLOCK):
        block = values[start : start + BLOCK]
        rows = [row for row, value in enumerate(block, start) if type(value) is list and value]
        _measure_polygons(values, np.array(rows, dtype=np.int64), raw.limits, extents, faults)
    lists = {list, type(None)}
    if not set(map(type, values)) <= lists:
        for row, value in enumerate(values):
            if type(value) is dict:
                _measure_runs(row, value, raw.limits[row], extents, faults)
            elif type(value) not in lists:
                faults["segmentation_malformed"][row] = True
    faults["polygon_outside"] = leaves(extents, raw.limits) & ~faults["rle_misfit"]
    return Extents(extents, np.isfinite(extents).all(axis=1)), faults


def _measure_polygons(
    values: list[Any],
    rows: np.ndarray,
    limits: np.ndarray,
    extents: np.ndarray,
    faults: Faults,
) -> None:
    """Fill in the annotations `rows`, whose segmentations are lists that are not empty."""
    if not len(rows):
        return
    try:
        owners, lengths, numbers = _flatten([values[row] for row in rows])
    except (TypeError, OverflowError):  # something among them is no list of numbers
        regular = np.array([is_polygons(values[row]) for row in rows], dtype=bool)
        faults["segmentation_malformed"][rows[~regular]] = True
        rows = rows[regular]
        if not len(rows):
            return
        owners, lengths, numbers = _flatten([values[row] for row in rows])
    bad = (lengths % 2 == 1) | (lengths < 6)
    if bad.any():
        faults["polygon_points"][rows[owners[bad]]] = True
        numbers = numbers[np.repeat(~bad, lengths)]
        owners, lengths = owners[~bad], lengths[~bad]
    if not len(owners):
        return
    ends = np.cumsum(lengths) // 2
    changes = np.flatnonzero(np.diff(owners, prepend=-1))  # the first polygon of each annotation
    starts = (ends - lengths // 2)[changes]
    points = numbers.reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
        found, rows = np.concatenate([low, high], axis=1), rows[owners[changes]]
        finite = np.isfinite(found).all(axis=1)
        far = finite & (np.abs(found).max(axis=1) > FAR * limits[rows].max(axis=1))
    faults["polygon_not_finite"][rows], faults["polygon_far"][rows] = ~finite, far
    extents[rows] = np.where((finite & ~far)[:, None], found, np.nan)


def _flatten(segmentations: list[list[list[float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(annotation [P], numbers [P] of each polygon, all numbers)."""
    polygons = list(chain.from_iterable(segmentations))
    if set(map(type, polygons)) != {list}:
        raise TypeError("not a list of polygons")
    owners = np.repeat(np.arange(len(segmentations)), list(map(len, segmentations)))
    lengths = np.array(list(map(len, polygons)), dtype=np.int64)
    numbers = array.array("d", chain.from_iterable(polygons))  # TypeError for what is no number
    return owners, lengths, np.frombuffer(numbers, dtype=np.float64) if numbers else np.zeros(0)


def is_polygons(value: Any) -> bool:
    """Whether a segmentation is a list of lists of numbers."""
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        return False
    return all(is_number(number) for polygon in value for number in polygon)


def _measure_runs(
    row: int, value: dict[str, Any], limit: np.ndarray, extents: np.ndarray, faults: Faults
) -> None:
    """Fill in an annotation whose segmentation is run lengths."""
    try:
        size, runs = value["size"], run_lengths_of(value["counts"])
        height, width = (int(side) for side in size)
    except (KeyError, TypeError, ValueError):
        faults["segmentation_malformed"][row] = True
        return
    fits = (runs >= 0).all() and runs.sum() == height * width
    if not fits or (np.isfinite(limit).all() and [width, height] != limit.tolist()):
        faults["rle_misfit"][row] = True
        return
    if runs[1::2].any():
        x, y, w, h = coco_mask.toBbox(run_lengths(value, height, width))
        extents[row] = x, y, x + w, y + h


def run_lengths_of(counts: Any) -> np.ndarray:
    """Run lengths int64 [R] of either form: a list, or COCO's text of 5 bits a character.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if isinstance(counts, list):
        if not all(type(count) is int for count in counts):
            raise TypeError("run lengths are integers")
        return np.array(counts, dtype=np.int64)
    runs: list[int] = []
    number = shift = 0
    for byte in counts.encode("ascii") if isinstance(counts, str) else counts:
        code = byte - 48  # 5 bits of a number, lowest first, and whether more follow
        if not 0 <= code < 64 or shift > 55:
            raise ValueError("no text of run lengths")
        number, shift = number | (code & 31) << shift, shift + 5
        if code & 32:
            continue
        if code & 16:  # the sign is in the highest bit
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)  # from the fourth on they are differences
        number = shift = 0
    if shift or not runs or max(map(abs, runs)) >> 60:
        raise ValueError("no text of run lengths")
    return np.array(runs, dtype=np.int64)


def check_masks(raw: RawFile, report: Report, masks: Extents, faults: Faults, scored: bool) -> None:
    """Report what `measure` saw, objects without masks, and masks that lie apart from their boxes.

    Args:
        scored: the file is evaluated on, where crowds need masks too if others are trained.
    """
    path, n, describe = raw.path, len(raw.annotations), raw.on_annotation("segmentation")
    for name, rows in faults.items():
        report.add(name, path, np.flatnonzero(rows), describe, n)
    absent = np.array([not value for value in raw.column("annotations", "segmentation")], dtype=bool)
    without, objects = absent & ~raw.crowds, int((~raw.crowds).sum())  # crowds are not trained on
    if not objects or without.sum() < objects:
        needy = absent if scored and report.masks else without
        report.add("no_segmentation", path, np.flatnonzero(needy), describe)
    elif report.masks:
        report.tell("no_masks", path, f"{objects} objects, none with a mask")
    if report.doubts_boxes(path):
        return
    rows = np.flatnonzero(apart(raw, masks))
    wrong = _wrong_boxes(raw, masks.boxes, rows)

    def with_extent(row: Any) -> Finding:
        x1, y1, x2, y2 = masks.boxes[row].round(2).tolist()
        finding = raw.on_annotation("bbox")(row)
        return finding._replace(value=f"{finding.value}, the mask's is {[x1, y1, x2 - x1, y2 - y1]}")

    report.add("bbox_wrong_by_mask", path, rows[wrong], with_extent, n)
    report.add("mask_box_disagree", path, rows[~wrong], with_extent, n)


def _wrong_boxes(raw: RawFile, extents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """bool [rows]: of annotations whose mask and box lie apart, whether the box is evidently the wrong one.

    It is where it leaves the image or has a side under a pixel, and the mask does not; and where the stored
    area is the mask's and not the box's.
    """
    boxes, limits = raw.boxes[0][rows], raw.limits[rows]
    areas = floats(raw.column("annotations", "area"))[0][rows]
    wrong = leaves(raw.corners[rows], limits) | (boxes[:, 2:] < 1).any(axis=1)
    has_mask = sound(extents[rows], limits)
    for place in np.flatnonzero(has_mask & ~wrong):
        segmentation, side = raw.annotations[rows[place]]["segmentation"], limits[place].max()
        if isinstance(segmentation, dict):
            of_mask = float(run_lengths_of(segmentation["counts"])[1::2].sum())
        else:  # overlaps count twice
            of_mask = sum(enclosed_area(polygon) for polygon in segmentation if is_usable(polygon, side))
        of_box = float(boxes[place, 2] * boxes[place, 3])
        near = [abs(areas[place] - area) <= 0.1 * area for area in (of_mask, of_box)]
        wrong[place] = near == [True, False]
    return wrong & has_mask


def sound(extents: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """bool [N]: whether masks (x1 y1 x2 y2) are a pixel large on either side, and within their images."""
    with np.errstate(invalid="ignore"):
        large = (extents[:, 2:] - extents[:, :2] >= 1).all(axis=1)
    return large & ~leaves(extents, limits)


def leaves(corners: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """bool [N]: whether boxes x1 y1 x2 y2 leave their images, `limits` [N, 2] wide and high."""
    return np.any((corners[:, :2] < -TOLERANCE) | (corners[:, 2:] > limits + TOLERANCE), axis=1)


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU [N] of pairs of boxes x1 y1 x2 y2; 0 where a box is empty or not a number."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.where(union > 0, shared / union, 0.0))


def apart(raw: RawFile, masks: Extents) -> np.ndarray:
    """bool [N]: box and mask, each a pixel wider, share less than half."""
    margin = np.array([-1, -1, 1, 1])
    with np.errstate(invalid="ignore"):
        shared = overlap(raw.corners + margin, masks.boxes + margin)
    return masks.known & raw.sized & (shared < 0.5)
