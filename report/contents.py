"""What a report shows, as plain values: between the data set, which knows files and formats, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

LONGEST_MASK = 320  # pixels of a mask in the page


class Region(NamedTuple):
    """Something marked in a picture: an object, a detection or a segment.

    label: category id.
    box: x0 y0 x1 y1, relative to the picture, each in [0, 1].
    score: in [0, 1]; None for ground truth and for segments.
    mask: bool [h, w] over the whole picture, at any resolution; None where there is none.
    """

    label: int
    box: tuple[float, float, float, float]
    score: float | None = None
    mask: np.ndarray | None = None


def thinned(mask: np.ndarray, longest: int = LONGEST_MASK) -> np.ndarray:
    """Every n-th row and column of a mask [h, w], so that its longer side is about `longest` or below."""
    step = max(1, round(max(mask.shape) / longest))
    return mask[::step, ::step]


class Boxes(NamedTuple):
    """Boxes of many images as columns of length N.

    image_id, label: int64; box: float64 [N, 4], x, y, width, height in pixels; score: float64, nan for ground
    truth; crowd: bool, of ground truth.
    """

    image_id: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    crowd: np.ndarray


class Source(Protocol):
    """What a report asks of a data set and of an evaluation on it; see report.source."""

    def image_ids(self, count: int) -> list[int]:
        """The first images of the split."""

    def picture_file(self, image_id: int) -> Path:
        """The file of a picture."""

    def stated_size(self, image_id: int) -> tuple[int | None, int | None]:
        """Width and height of a picture as its entry states them, which say how it is seen."""

    def truth(self, image_id: int) -> list[Region]:
        """What is to be found in a picture."""

    def found(self, image_ids: Sequence[int], evaluator: Any, count: int) -> dict[int, list[Region]]:
        """By image id the segments of a panoptic model, else at most `count` detections of highest score.

        It is called behind `truth` of the same images.
        """

    def boxes(self, evaluator: Any, count: int) -> tuple[Boxes, Boxes] | None:
        """Detections and ground truth of at most `count` evaluated images; None without boxes."""

    def class_figures(self, evaluator: Any) -> dict[str, Sequence[dict[str, Any]]]:
        """Rows of figures in [0, 1] by `id`: `bbox` and `segm` (AP, AP50, AR), `panoptic` (pq, sq, rq)."""
