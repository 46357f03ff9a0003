"""Random panoptic scenes, and panoptic quality as its definition reads, one segment after the other.

A scene is the true map of ids, the predicted one, and the records (segments_info) of each.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

CATEGORIES: list[dict[str, Any]] = [
    {"id": 90, "name": "kite", "isthing": 1},
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 7, "name": "bus", "isthing": 1},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 100, "name": "sky", "isthing": 0},
    {"id": 187, "name": "grass", "isthing": 0},
]  # nothing shows a bus
CLASSES = np.array(sorted(category["id"] for category in CATEGORIES))
DRAWN = [1, 3, 90, 100, 187]


def straightforward(images):
    """[K] dicts of iou, tp, fp, fn by class, over (true map, predicted map, true and predicted records)."""
    stats: defaultdict[int, dict[str, Any]] = defaultdict(lambda: {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0})
    for true_map, predicted_map, true_records, predicted_records in images:
        truth = {record["id"]: record for record in true_records}
        predicted = {record["id"]: record for record in predicted_records}
        areas = dict(zip(*(v.tolist() for v in np.unique(predicted_map, return_counts=True)), strict=True))
        combined = true_map.astype(np.uint64) * 2**24 + predicted_map.astype(np.uint64)
        overlap = {
            (int(value) >> 24, int(value) & 0xFFFFFF): int(count)
            for value, count in zip(*np.unique(combined, return_counts=True), strict=True)
        }
        matched_truth, matched_predicted = set(), set()
        for (t, p), pixels in overlap.items():
            if t not in truth or p not in predicted or truth[t]["iscrowd"] == 1:
                continue
            if truth[t]["category_id"] != predicted[p]["category_id"]:
                continue
            iou = pixels / (truth[t]["area"] + areas[p] - pixels - overlap.get((0, p), 0))
            if iou > 0.5:
                entry = stats[truth[t]["category_id"]]
                entry["tp"] += 1
                entry["iou"] += iou
                matched_truth.add(t)
                matched_predicted.add(p)
        crowd_of = {}
        for t, record in truth.items():
            if record["iscrowd"] == 1:
                crowd_of[record["category_id"]] = t
            elif t not in matched_truth:
                stats[record["category_id"]]["fn"] += 1
        for p, record in predicted.items():
            if p in matched_predicted:
                continue
            excused = overlap.get((0, p), 0)
            if record["category_id"] in crowd_of:
                excused += overlap.get((crowd_of[record["category_id"]], p), 0)
            if excused / areas[p] <= 0.5:
                stats[record["category_id"]]["fp"] += 1
    return stats


def straightforward_figures(images):
    stats = straightforward(images)
    result: dict[str, Any] = {"per_class": {}}
    for name, kinds in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        rows = []
        for category in CATEGORIES:
            if category["isthing"] not in kinds:
                continue
            entry = stats[category["id"]]
            weight = entry["tp"] + entry["fp"] / 2 + entry["fn"] / 2
            if weight:
                quality = entry["iou"] / entry["tp"] if entry["tp"] else 0.0
                rows.append((entry["iou"] / weight, quality, entry["tp"] / weight))
            figures_of_class = dict(zip(("pq", "sq", "rq"), rows[-1] if weight else (0.0,) * 3, strict=True))
            result["per_class"][category["id"]] = figures_of_class
        means = np.mean(rows, 0).tolist() if rows else [None] * 3
        result[name] = {**dict(zip(("pq", "sq", "rq"), means, strict=True)), "n": len(rows)}
    return result


def flat(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, str(key)))
        else:
            yield (*prefix, str(key)), value


def assert_same_figures(found, expected, tolerance=1e-12):
    found, expected = dict(flat(found)), dict(flat(expected))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (value if value is None else pytest.approx(value, rel=0, abs=tolerance)), key


def random_records(draw, ids, with_crowds):
    records = []
    for segment, area in ids.items():
        record = {"id": segment, "category_id": int(draw.choice(DRAWN)), "area": area}
        records.append({**record, "iscrowd": int(draw.random() < 0.25)} if with_crowds else record)
    return [records[i] for i in draw.permutation(len(records))]


def counted(ids):
    return dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))


def random_scene(seed):
    """Maps and records of an image: rectangles above one another, some changed in the prediction.

    The truth has void, crowds (several of one class), pixels of a segment that its records lack, and a
    record without pixels; the prediction has pixels of no segment, or a segment whose id is 0, and records
    of the same id; and whole pictures of one segment, or of none, occur.
    """
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 60, 2)
    true_map, predicted_map = np.zeros((2, height, width), np.int32)
    for _ in range(draw.integers(0, 14)):
        top, left = draw.integers(0, (height, width))
        rows, columns = slice(top, top + draw.integers(1, 40)), slice(left, left + draw.integers(1, 40))
        true_map[rows, columns] = draw.choice([0, int(draw.integers(1, 1 << 24))], p=[0.2, 0.8])
        if draw.random() < 0.8:
            shift = draw.integers(0, 3)
            rows, columns = slice(top + shift, rows.stop), slice(left, columns.stop - shift)
            predicted_map[rows, columns] = draw.choice([0, int(draw.integers(1, 1 << 24))], p=[0.1, 0.9])
    true_ids, predicted_ids = counted(true_map), counted(predicted_map)
    true_ids.pop(0, None)
    if draw.random() < 0.6:
        predicted_ids.pop(0, None)
    if len(true_ids) > 3:
        true_ids.pop(list(true_ids)[1])
        true_ids[int((1 << 24) - 1)] = 5
    truth = random_records(draw, true_ids, True)
    guesses = {record["id"]: record["category_id"] for record in truth}
    predicted = random_records(draw, predicted_ids, False)
    for record in predicted:
        under, amount = np.unique(true_map[predicted_map == record["id"]], return_counts=True)
        if draw.random() < 0.8:
            record["category_id"] = guesses.get(int(under[amount.argmax()]), record["category_id"])
    if predicted and draw.random() < 0.3:
        predicted.append({**predicted[0], "category_id": 3})
    if truth and draw.random() < 0.3:
        truth.append({**truth[0], "category_id": 1, "iscrowd": 0})
    return true_map, predicted_map, truth, predicted


def record(segment, category, area=0, **more):
    return {"id": segment, "category_id": category, "area": area, "iscrowd": 0, **more}
