"""The worst mistakes of each class, with a word on each: what a report shows as crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from report.contents import Boxes
from report.matching import (
    CONFUSED,
    DOUBLE,
    IOU,
    MISPLACED,
    NEAR,
    NOTHING,
    RIGHT,
    WRONG,
    Matches,
    pairwise_iou,
)

KINDS = {
    MISPLACED: "placed badly",
    CONFUSED: "of another class",
    DOUBLE: "found twice",
    NOTHING: "nothing there",
}


class Mistake(NamedTuple):
    """A false positive or a miss.

    missed: whether it is a miss.
    rank: 0 for the worst of its class and kind.
    box: x, y, width, height in pixels: of the detection, or of the object that was missed.
    others: boxes [M, 4] to compare it with: the objects of the image, or the detections about this object.
    remark: a few words on what is wrong.
    """

    missed: bool
    rank: int
    label: int
    image_id: int
    box: np.ndarray
    others: np.ndarray
    remark: str


class ClassCounts(NamedTuple):
    """Of one class, at the threshold: detections that are right and wrong, objects that were missed."""

    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float | None:
        """In [0, 1]; None without a detection."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> float | None:
        """In [0, 1]; None without an object."""
        return self.right / (self.right + self.missed) if self.right + self.missed else None


def count(found: Boxes, truth: Boxes, matches: Matches) -> dict[int, ClassCounts]:
    """What happened to each class that was looked for or found, by category id."""
    shown = found.score >= matches.threshold
    right = _tally(found.label[shown & (matches.kind == RIGHT)])
    wrong = _tally(found.label[shown & np.isin(matches.kind, WRONG)])
    missed = _tally(truth.label[_missed(truth, matches)])
    labels = sorted({*_tally(truth.label), *right, *wrong})
    return {i: ClassCounts(right.get(i, 0), wrong.get(i, 0), missed.get(i, 0)) for i in labels}


def count_kinds(found: Boxes, matches: Matches) -> dict[str, int]:
    """How many of the detections above the threshold are wrong in which way."""
    kinds = matches.kind[found.score >= matches.threshold]
    return {name: int((kinds == kind).sum()) for kind, name in KINDS.items()}


def false_positives(
    found: Boxes, truth: Boxes, matches: Matches, names: Mapping[int, str], each: int
) -> list[Mistake]:
    """Of each class the wrong detections of highest score, at most `each`."""
    wrong = np.flatnonzero((found.score >= matches.threshold) & np.isin(matches.kind, WRONG))
    wrong = wrong[np.argsort(-found.score[wrong], kind="stable")]
    mistakes = []
    for rank, row in _first_of_each(found.label, wrong, each):
        label, image_id = int(found.label[row]), int(found.image_id[row])
        others = truth.box[(truth.image_id == image_id) & ~truth.crowd]
        remark = f"{found.score[row]:.2f}, {_what_is_wrong(row, truth, matches, names)}"
        mistakes.append(Mistake(False, rank, label, image_id, found.box[row], others, remark))
    return mistakes


def misses(
    found: Boxes, truth: Boxes, matches: Matches, names: Mapping[int, str], each: int
) -> list[Mistake]:
    """Of each class the largest objects that no detection above the threshold found, at most `each`."""
    missed = np.flatnonzero(_missed(truth, matches))
    missed = missed[np.argsort(-truth.box[missed, 2:].prod(1), kind="stable")]
    mistakes = []
    for rank, row in _first_of_each(truth.label, missed, each):
        label, image_id = int(truth.label[row]), int(truth.image_id[row])
        others, remark = _about(row, found, truth, matches, names)
        mistakes.append(Mistake(True, rank, label, image_id, truth.box[row], others, remark))
    return mistakes


def _about(
    row: int, found: Boxes, truth: Boxes, matches: Matches, names: Mapping[int, str]
) -> tuple[np.ndarray, str]:
    """The detections [M, 4] above the threshold that lie near a missed object, and why they do not count."""
    here = np.flatnonzero((found.image_id == truth.image_id[row]) & (found.score >= matches.threshold))
    iou = pairwise_iou(truth.box[row][None], found.box[here])[0]  # [P]
    same = found.label[here] == truth.label[row]
    near, instead = same & (iou >= NEAR), ~same & (iou >= IOU)
    if matches.score[row] >= 0:
        remark = f"scored only {matches.score[row]:.2f}"
    elif instead.any():
        best = here[instead][found.score[here[instead]].argmax()]
        remark = f"taken for {_name(found.label[best], names)}"
    elif near.any():
        remark = f"{KINDS[MISPLACED]}, IoU {iou[near].max():.2f}"
    else:
        remark = "not seen"
    return found.box[here[near | instead]], remark


def _what_is_wrong(row: int, truth: Boxes, matches: Matches, names: Mapping[int, str]) -> str:
    kind = int(matches.kind[row])
    if kind == CONFUSED:
        return f"is {_name(truth.label[matches.object[row]], names)}"
    if kind == MISPLACED:
        return f"{KINDS[kind]}, IoU {matches.iou[row]:.2f}"
    return KINDS[kind]


def _missed(truth: Boxes, matches: Matches) -> np.ndarray:
    return ~truth.crowd & (matches.score < matches.threshold)


def _tally(labels: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _name(label: np.integer, names: Mapping[int, str]) -> str:
    return names.get(int(label), str(label))


def _first_of_each(labels: np.ndarray, order: np.ndarray, each: int) -> list[tuple[int, int]]:
    """(rank, row) of the first rows of `order`, at most `each` of a label; labels ascending."""
    return [
        (rank, int(row))
        for label in np.unique(labels[order])
        for rank, row in enumerate(order[labels[order] == label][:each])
    ]
