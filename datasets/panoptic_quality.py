"""Panoptic quality (Kirillov et al., CVPR 2019, arXiv 1801.00868), counted as COCO's panopticapi counts it.

    PQ = sum of IoU over matched pairs / (matched + unmatched predictions / 2 + unmatched ground truth / 2)
       = SQ (mean IoU of matched pairs) · RQ (the F1 score of matching)

for each class; a group's figures are means over its classes that occur. A predicted and a true segment of
the same class match where their IoU exceeds 1/2. Pixels that are void in the ground truth (id 0) leave the
union, and a prediction that lies to more than half in void and in the crowd of its class is not counted.

G true segments, P predicted ones, M pairs of ids that meet in some pixel, K classes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from datasets.panoptic_png import run_starts

VOID = 0


class Category(NamedTuple):
    """A class of segments: its name, and whether it is one of things."""

    name: str
    is_thing: bool


class Table(NamedTuple):
    """The segments of one image, each array [N]; no id occurs twice."""

    ids: np.ndarray  # int64
    category_ids: np.ndarray  # int64
    areas: np.ndarray  # float64, in pixels; used of true segments only, as are crowds
    crowds: np.ndarray  # bool

    @classmethod
    def of(cls, segments: Iterable[Mapping[str, Any]], with_area: bool) -> Table:
        """Of a file's segments_info; of segments with the same id the last counts, as in panopticapi.

        Args:
            with_area: the segments are true ones, whose areas are needed.

        Raises:
            KeyError: a segment has no id, no category_id, or no area where it is needed.
            TypeError: an id is no integer, an area no number.
        """
        records = list({record["id"]: record for record in segments}.values())
        ids = [operator.index(record["id"]) for record in records]
        category_ids = [operator.index(record["category_id"]) for record in records]
        areas = [float(record["area"]) for record in records] if with_area else [0.0] * len(records)
        crowds = [record.get("iscrowd", 0) == 1 for record in records]
        return cls(
            np.array(ids, np.int64),
            np.array(category_ids, np.int64),
            np.array(areas, np.float64),
            np.array(crowds, bool),
        )


class Counts(NamedTuple):
    """What panoptic quality is computed from, for each class in a fixed order; each array [K]."""

    iou: np.ndarray  # float64, summed over matched pairs
    matched: np.ndarray  # int64
    missed: np.ndarray  # int64, unmatched true segments
    surplus: np.ndarray  # int64, unmatched predicted segments

    @classmethod
    def zeros(cls, classes: int) -> Counts:
        """Of no image."""
        return cls(np.zeros(classes), *(np.zeros(classes, np.int64) for _ in range(3)))

    def plus(self, other: Counts) -> Counts:
        """Of both sets of images."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def count_image(
    true_ids: np.ndarray, predicted_ids: np.ndarray, truth: Table, predicted: Table, classes: np.ndarray
) -> Counts:
    """The counts of one image.

    Args:
        true_ids, predicted_ids: int32 [h, w], maps of ids.
        truth, predicted: their segments. Areas of the truth are those that the table says.
        classes: int64 [K], category ids, ascending.

    Raises:
        ValueError: the maps differ in size; a class is not in `classes`; a prediction has an id in the map
            that its table lacks (other than 0), or the reverse; a true segment is larger than its area.
    """
    if true_ids.shape != predicted_ids.shape:
        sizes = [f"{ids.shape[0]} x {ids.shape[1]}" for ids in (predicted_ids, true_ids)]
        raise ValueError(f"the prediction has {sizes[0]} pixels, the ground truth {sizes[1]}")
    _check_classes(truth, "true", classes)
    _check_classes(predicted, "predicted", classes)
    true_id, predicted_id, pixels = _meetings(true_ids, predicted_ids)
    count_t, count_p = len(truth.ids), len(predicted.ids)
    t, p = _places(truth.ids, true_id), _places(predicted.ids, predicted_id)  # [M], G or P: no segment

    def predicted_sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(p, values, minlength=count_p + 1)[:count_p]

    areas = predicted_sums(pixels)  # [P]
    for unknown in predicted_id[(p == count_p) & (predicted_id != VOID)][:1]:
        raise ValueError(f"predicted segment {unknown} is in the PNG, and not in the JSON")
    for absent in predicted.ids[areas == 0][:1]:
        raise ValueError(f"predicted segment {absent} is in the JSON, and not in the PNG")
    void = predicted_sums(pixels * (true_id == VOID))  # [P]

    # Pairs of segments of the same class, M of them from here on
    both = np.flatnonzero((t < count_t) & (p < count_p))
    both = both[truth.category_ids[t[both]] == predicted.category_ids[p[both]]]
    t, p, pixels = t[both], p[both], pixels[both]
    in_crowd = predicted_sums(pixels * _crowds_that_count(truth)[t])  # [P]
    t, p, pixels = (column[~truth.crowds[t]] for column in (t, p, pixels))
    union = areas[p] + truth.areas[t] - pixels - void[p]
    for wrong in t[pixels > union][:1]:
        raise ValueError(f"true segment {truth.ids[wrong]} has more pixels than its area in the JSON says")
    iou = pixels / union
    matches = iou > 0.5
    t, p, iou = t[matches], p[matches], iou[matches]

    missed = ~truth.crowds
    missed[t] = False
    surplus = (void + in_crowd) / areas <= 0.5
    surplus[p] = False
    true_class = np.searchsorted(classes, truth.category_ids)
    predicted_class = np.searchsorted(classes, predicted.category_ids)
    size = len(classes)
    return Counts(
        np.bincount(true_class[t], iou, minlength=size),
        np.bincount(true_class[t], minlength=size),
        np.bincount(true_class[missed], minlength=size),
        np.bincount(predicted_class[surplus], minlength=size),
    )


def _check_classes(table: Table, which: str, classes: np.ndarray) -> None:
    for row in np.flatnonzero(~np.isin(table.category_ids, classes))[:1]:
        name = f"{which} segment {table.ids[row]} has category {table.category_ids[row]}"
        raise ValueError(f"{name}, which the ground truth does not list")


def _meetings(true_ids: np.ndarray, predicted_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of ids that some pixels have: true id, predicted id, number of pixels, each [M]."""
    starts = run_starts(true_ids, predicted_ids)
    lengths = np.diff(starts, append=true_ids.size)
    keys = true_ids.ravel()[starts].astype(np.int64) << 24 | predicted_ids.ravel()[starts]
    pairs, where = np.unique(keys, return_inverse=True)
    return pairs >> 24, pairs & 0xFFFFFF, np.bincount(where, lengths)


def _places(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value its place in `ids` [N], N where it is not there."""
    if not len(ids):
        return np.zeros(len(values), np.int64)
    order = np.argsort(ids)
    at = order[np.minimum(np.searchsorted(ids, values, sorter=order), len(ids) - 1)]
    return np.where(ids[at] == values, at, len(ids))


def _crowds_that_count(truth: Table) -> np.ndarray:
    """Which true segments [G] can excuse a prediction: of each class the last crowd, as in panopticapi."""
    last = {int(truth.category_ids[place]): place for place in np.flatnonzero(truth.crowds)}
    chosen = np.zeros(len(truth.ids), dtype=bool)
    chosen[list(last.values())] = True
    return chosen


class Evaluation(NamedTuple):
    """What was counted over a data set, and the classes that it was counted for, by id, ascending."""

    counts: Counts
    categories: Mapping[int, Category]

    def figures(self) -> dict[str, Any]:
        """The figures as panopticapi gives them, fractions of 1.

        Returns:
            `All`, `Things`, `Stuff`: dicts of `pq`, `sq`, `rq` (None where no class of the group occurs) and
            `n`, the number of classes that occur; `per_class`: category id -> `pq`, `sq`, `rq`, 0 where it
            does not occur.
        """
        rows, keys = self.per_class(), ("pq", "sq", "rq")
        groups = {
            "All": rows,
            "Things": [row for row in rows if row["isthing"]],
            "Stuff": [row for row in rows if not row["isthing"]],
        }
        result: dict[str, Any] = {}
        for name, group in groups.items():
            present = [row for row in group if row["pq"] is not None]
            result[name] = {
                key: sum(row[key] for row in present) / len(present) if present else None for key in keys
            }
            result[name]["n"] = len(present)
        result["per_class"] = {row["id"]: {key: row[key] or 0.0 for key in keys} for row in rows}
        return result

    def per_class(self) -> list[dict[str, Any]]:
        """For each class a dict: `id`, `name`, `isthing`; `pq`, `sq`, `rq` in [0, 1], None where the class
        does not occur; and the numbers of segments `matched`, `missed` and `surplus`.
        """
        rows = []
        for place, (category_id, category) in enumerate(self.categories.items()):
            iou, matched, missed, surplus = (column[place].item() for column in self.counts)
            row = {"id": category_id, "name": category.name, "isthing": category.is_thing}
            weight = matched + missed / 2 + surplus / 2
            quality: dict[str, float | None] = {"pq": None, "sq": None, "rq": None}
            if weight:
                quality = {
                    "pq": iou / weight,
                    "sq": iou / matched if matched else 0.0,
                    "rq": matched / weight,
                }
            rows.append({**row, **quality, "matched": matched, "missed": missed, "surplus": surplus})
        return rows

    def group_table(self) -> str:
        """The figures of all classes, of things and of stuff, in percent, as text of four lines."""
        result = self.figures()
        lines = [f"{'':<10}{'PQ':>7}{'SQ':>7}{'RQ':>7}{'classes':>9}"]
        for name in ("All", "Things", "Stuff"):
            lines.append(f"{name:<10}{_percentages(result[name])}{result[name]['n']:>9}")
        return "\n".join(lines)

    def class_table(self) -> str:
        """The figures of each class in percent, and its segments, as text of a line each and a headline."""
        numbers = ("matched", "missed", "surplus")
        head = f"{'id':>6}  {'class':<24}{'':<6}{'PQ':>7}{'SQ':>7}{'RQ':>7}"
        lines = [head + "".join(f"{number:>9}" for number in numbers)]
        for row in self.per_class():
            name = f"{row['id']:>6}  {row['name'][:23]:<24}{'thing' if row['isthing'] else 'stuff':<6}"
            lines.append(name + _percentages(row) + "".join(f"{row[number]:>9}" for number in numbers))
        return "\n".join(lines)


def _percentages(row: Mapping[str, Any]) -> str:
    values = (row[key] for key in ("pq", "sq", "rq"))
    return "".join(f"{'n/a' if value is None else f'{100 * value:.1f}':>7}" for value in values)
