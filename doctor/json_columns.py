"""Values that JSON gave, as NumPy columns: quickly where all are alike, and what is no number is marked.

In files of COCO's size a loop over the values takes seconds; `set(map(type, values))` runs in C.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np


def integers(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [N], bool [N] which of the values are integers); 0 where one is none."""
    if set(map(type, values)) <= {int}:
        try:
            return np.array(values, dtype=np.int64), np.ones(len(values), dtype=bool)
        except OverflowError:
            pass
    valid = [type(value) is int and -(1 << 63) <= value < 1 << 63 for value in values]
    numbers = [value if ok else 0 for value, ok in zip(values, valid, strict=True)]
    return np.array(numbers, dtype=np.int64), np.array(valid, dtype=bool)


def is_number(value: Any) -> bool:
    """Whether JSON gave a number, and no truth value; NaN and infinity count as numbers."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def floats(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N], bool [N] which of the values are numbers); NaN where one is none."""
    if set(map(type, values)) <= {int, float}:
        try:
            return np.array(values, dtype=np.float64), np.ones(len(values), dtype=bool)
        except OverflowError:
            pass
    valid = list(map(is_number, values))
    numbers = [value if ok else np.nan for value, ok in zip(values, valid, strict=True)]
    return np.array(numbers, dtype=np.float64), np.array(valid, dtype=bool)


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


def are_polygons(segmentations: list[Any]) -> bool:
    """Whether all of these are lists of lists of numbers, truth values not counted as such."""
    if not set(map(type, segmentations)) <= {list}:
        return False
    polygons = list(chain.from_iterable(segmentations))
    if not set(map(type, polygons)) <= {list}:
        return False
    return set(map(type, chain.from_iterable(polygons))) <= {int, float}
