"""Which detections are right, what is wrong with the others, and the worst mistakes of each class.

Detections are matched with objects as COCO does at IoU 0.5: in the order of scores, each takes the object of
its class and image that it overlaps most, of those that are left. What would only match a crowd counts
neither way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from report.source import Boxes

IOU = 0.5
NEAR = 0.1  # a detection that overlaps an object of its class less than this is not about that object
DEFAULT_THRESHOLD = 0.5

# What a detection can be.
RIGHT, IGNORED, DOUBLE, CONFUSED, MISPLACED, NOTHING = range(6)
WRONG = (DOUBLE, CONFUSED, MISPLACED, NOTHING)


class Matches(NamedTuple):
    """What became of N detections and G objects.

    kind: int [N], RIGHT, IGNORED, or what is wrong: DOUBLE (the object has a detection of higher score
        already), CONFUSED (an object of another class), MISPLACED (overlaps one of its class too little),
        NOTHING (there is none).
    object: int [N], the object that a detection is about, -1 for none.
    iou: float [N], with that object.
    score: float [G], of the detection that found an object; -1 where none did.
    threshold: the score at which F1 over all classes is best; what is above it counts as found.
    """

    kind: np.ndarray
    object: np.ndarray
    iou: np.ndarray
    score: np.ndarray
    threshold: float


def match(found: Boxes, truth: Boxes) -> Matches:
    """Match detections with objects and choose the threshold.

    Detections of classes that have no object anywhere are matched like others: they are wrong.
    """
    count, objects = len(found.label), len(truth.label)
    kind, about = np.full(count, NOTHING), np.full(count, -1)
    overlap, score = np.zeros(count), np.full(objects, -1.0)
    for rows, columns in rows_by_image(found, truth):
        rows = rows[np.argsort(-found.score[rows], kind="stable")]
        of_image = match_image(found, truth, rows, columns)
        kind[rows], about[rows], overlap[rows] = of_image
        right = rows[kind[rows] == RIGHT]
        score[about[right]] = found.score[right]
    return Matches(kind, about, overlap, score, best_threshold(found.score, kind, int((~truth.crowd).sum())))


def best_threshold(scores: np.ndarray, kind: np.ndarray, objects: int) -> float:
    """The score [N] from which on detections give the best F1; 0.5 where none of them is right."""
    counts = kind != IGNORED
    order = np.argsort(-scores[counts], kind="stable")
    right = np.cumsum(kind[counts][order] == RIGHT)
    if not len(right) or not right[-1]:
        return DEFAULT_THRESHOLD
    f1 = 2 * right / (np.arange(1, len(right) + 1) + objects)
    return float(scores[counts][order][f1.argmax()])


def pairwise_iou(one: np.ndarray, other: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """COCO's IoU of boxes [N, 4] and [M, 4] (x, y, width, height) -> [N, M].

    Where the second is a crowd, `crowd` [M], the divisor is the first box's own area.
    """
    if not len(one) or not len(other):
        return np.zeros((len(one), len(other)))
    return coco_mask.iou(one, other, crowd.astype(np.uint8))


def rows_by_image(found: Boxes, truth: Boxes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of detections and of objects, image by image, where there are detections."""
    order, objects = (np.argsort(boxes.image_id, kind="stable") for boxes in (found, truth))
    sorted_ids = truth.image_id[objects]
    ids, starts = np.unique(found.image_id[order], return_index=True)
    ends = [*starts[1:], len(order)]
    for image_id, start, end in zip(ids, starts, ends[: len(ids)], strict=True):
        low, high = np.searchsorted(sorted_ids, [image_id, image_id + 1])
        yield order[start:end], objects[low:high]


def match_image(
    found: Boxes, truth: Boxes, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kind, object and iou of the detections of an image, which come in the order of their scores."""
    crowd = truth.crowd[columns]
    iou = pairwise_iou(found.box[rows], truth.box[columns], crowd)  # [P, G]
    same = found.label[rows][:, None] == truth.label[columns]
    kind, about, overlap = np.full(len(rows), NOTHING), np.full(len(rows), -1), np.zeros(len(rows))
    if not len(columns):
        return kind, about, overlap

    # From the weakest claim to the strongest: each overwrites what the one before it said.
    for code, claims, least in (
        (MISPLACED, same & ~crowd, NEAR),
        (CONFUSED, ~same & ~crowd, IOU),
        (DOUBLE, same & ~crowd, IOU),
        (IGNORED, same & crowd, IOU),
    ):
        overlaps = np.where(claims, iou, 0)
        best = overlaps.argmax(1)
        highest = overlaps[np.arange(len(rows)), best]
        holds = highest >= least
        kind[holds], about[holds], overlap[holds] = code, columns[best[holds]], highest[holds]

    taken = np.zeros(len(columns), bool)
    fits = same & ~crowd & (iou >= IOU)
    for row in np.flatnonzero(fits.any(1)):
        free = np.where(fits[row] & ~taken, iou[row], -1)
        best = int(free.argmax())
        if free[best] > 0:
            taken[best] = True
            kind[row], about[row], overlap[row] = RIGHT, columns[best], free[best]
    return kind, about, overlap


# --- What a report says of it ----------------------------------------------------------------------------


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
    right = Counter(found.label[shown & (matches.kind == RIGHT)].tolist())
    wrong = Counter(found.label[shown & np.isin(matches.kind, WRONG)].tolist())
    missed = Counter(truth.label[is_missed(truth, matches)].tolist())
    labels = sorted({*truth.label.tolist(), *right, *wrong})
    return {i: ClassCounts(right[i], wrong[i], missed[i]) for i in labels}


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
        kind = int(matches.kind[row])
        wrong_in = KINDS[kind]
        if kind == CONFUSED:
            wrong_in = f"is {_name(truth.label[matches.object[row]], names)}"
        elif kind == MISPLACED:
            wrong_in += f", IoU {matches.iou[row]:.2f}"
        remark = f"{found.score[row]:.2f}, {wrong_in}"
        mistakes.append(Mistake(False, rank, label, image_id, found.box[row], others, remark))
    return mistakes


def misses(
    found: Boxes, truth: Boxes, matches: Matches, names: Mapping[int, str], each: int
) -> list[Mistake]:
    """Of each class the largest objects that no detection above the threshold found, at most `each`."""
    missed = np.flatnonzero(is_missed(truth, matches))
    missed = missed[np.argsort(-truth.box[missed, 2:].prod(1), kind="stable")]
    mistakes = []
    for rank, row in _first_of_each(truth.label, missed, each):
        label, image_id = int(truth.label[row]), int(truth.image_id[row])
        others, remark = why_missed(row, found, truth, matches, names)
        mistakes.append(Mistake(True, rank, label, image_id, truth.box[row], others, remark))
    return mistakes


def why_missed(
    row: int, found: Boxes, truth: Boxes, matches: Matches, names: Mapping[int, str]
) -> tuple[np.ndarray, str]:
    """The detections [M, 4] above the threshold that lie near a missed object, and why they do not count."""
    here = np.flatnonzero((found.image_id == truth.image_id[row]) & (found.score >= matches.threshold))
    iou = pairwise_iou(truth.box[row][None], found.box[here], np.zeros(len(here)))[0]  # [P]
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


def is_missed(truth: Boxes, matches: Matches) -> np.ndarray:
    """bool [G]: which objects no detection above the threshold found."""
    return ~truth.crowd & (matches.score < matches.threshold)


def _name(label: np.integer, names: Mapping[int, str]) -> str:
    return names.get(int(label), str(label))


def _first_of_each(labels: np.ndarray, order: np.ndarray, each: int) -> list[tuple[int, int]]:
    """(rank, row) of the first rows of `order`, at most `each` of a label; labels ascending."""
    return [
        (rank, int(row))
        for label in np.unique(labels[order])
        for rank, row in enumerate(order[labels[order] == label][:each])
    ]
