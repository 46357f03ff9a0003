"""Masks of objects as COCO writes them: polygons and run lengths, and which of them can be drawn.

pycocotools checks nothing, and takes memory for every pixel of an outline: a coordinate that is no finite
number, or one of 1e8, ends the process. Within FAR times the longer side an edge costs a megabyte at most in
a picture of 640 pixels, and 17 in one of 10,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FAR = 10.0  # times the longer side of the image, from its corner


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One object in COCO's compressed run lengths: polygons are united, either form of run lengths is taken.

    Raises:
        ValueError: run lengths of another size; polygons with which pycocotools would end the process.
        Exception: of pycocotools, for what it does not understand.
    """
    import pycocotools.mask as coco_mask

    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its run lengths are for {segmentation['size']}")
        compressed = not isinstance(segmentation["counts"], list)
        return segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    for polygon in segmentation:
        fault = "" if isinstance(polygon, dict) else cannot_be_drawn(polygon, max(height, width))
        if fault:
            raise ValueError(fault)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def cannot_be_drawn(polygon: Sequence[float], longer_side: float) -> str:
    """What is wrong with the coordinates x1, y1, x2, y2, … of a polygon; '' where nothing is.

    Args:
        polygon: numbers, in pixels.
        longer_side: of the image; NaN: not known.
    """
    if not math.isfinite(sum(map(float, polygon))):
        return "a coordinate of a polygon is NaN or infinite"
    furthest = max(max(polygon, default=0), -min(polygon, default=0))
    if furthest > FAR * longer_side:
        return f"a coordinate of a polygon, {furthest:g} pixels away, is beyond {FAR:g} times the longer side"
    return ""


def is_usable(polygon: Sequence[float], longer_side: float) -> bool:
    """Whether a polygon, a list of numbers, has three points or more, all of which can be drawn."""
    pairs = len(polygon) >= 6 and len(polygon) % 2 == 0
    return pairs and not cannot_be_drawn(polygon, longer_side)


def enclosed_area(polygon: Sequence[float]) -> float:
    """Of a usable polygon, in square pixels."""
    xs, ys = polygon[::2], polygon[1::2]
    turns = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in turns)) / 2
