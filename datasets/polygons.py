"""Which polygons pycocotools can draw: it checks nothing, and takes memory for every pixel of an outline.

A coordinate that is no finite number, or one of 1e8, ends the process. Within FAR times the longer side an
edge costs a megabyte at most in a picture of 640 pixels, and 17 in one of 10,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FAR = 10.0  # times the longer side of the image, from its corner


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
