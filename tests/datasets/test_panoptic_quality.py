"""Panoptic quality against a plain reading of its definition, and counted by hand."""

import numpy as np
import pytest

from datasets.panoptic_quality import Category, Counts, Evaluation, Table, count_image
from tests.datasets.panoptic_scenes import CLASSES, random_scene, record, straightforward


def count(scene):
    true_map, predicted_map, truth, predicted = scene
    return count_image(true_map, predicted_map, Table.of(truth, True), Table.of(predicted, False), CLASSES)


@pytest.mark.parametrize("seed", range(60))
def test_counts_of_random_scenes(seed):
    scene = random_scene(seed)
    expected = straightforward([scene])
    counts = count(scene)
    for place, category in enumerate(CLASSES.tolist()):
        entry = expected[category]
        assert counts.iou[place] == pytest.approx(entry["iou"], rel=1e-12)
        found = [column[place] for column in counts[1:]]
        assert found == [entry["tp"], entry["fn"], entry["fp"]]


def strip(*pieces):
    """A map of one row from (id, length) pieces."""
    return np.concatenate([np.full(length, segment, np.int32) for segment, length in pieces])[None]


@pytest.mark.parametrize(
    "what, truth, predicted, true_records, predicted_records, expected",
    [
        ("equal", strip((5, 10)), strip((9, 10)), [record(5, 1, 10)], [record(9, 1)], (1.0, 1, 0, 0)),
        ("another class", strip((5, 10)), strip((9, 10)), [record(5, 3, 10)], [record(9, 1)], (0, 0, 0, 1)),
        ("half", strip((5, 10)), strip((9, 5), (0, 5)), [record(5, 1, 10)], [record(9, 1)], (0, 0, 1, 1)),
        ("over half", strip((5, 9)), strip((9, 5), (0, 4)), [record(5, 1, 9)], [record(9, 1)],
         (5 / 9, 1, 0, 0)),
        ("void leaves the union", strip((5, 4), (0, 6)), strip((9, 10)), [record(5, 1, 4)], [record(9, 1)],
         (1.0, 1, 0, 0)),
        ("an unknown true id does not", strip((5, 4), (6, 6)), strip((9, 10)), [record(5, 1, 4)],
         [record(9, 1)], (0, 0, 1, 1)),
        ("void excuses", strip((0, 6), (6, 4)), strip((9, 10)), [], [record(9, 1)], (0, 0, 0, 0)),
        ("half void does not", strip((0, 5), (6, 5)), strip((9, 10)), [], [record(9, 1)], (0, 0, 0, 1)),
        ("a crowd is not missed", strip((5, 9)), strip((0, 9)), [record(5, 1, 9, iscrowd=1)], [],
         (0, 0, 0, 0)),
        ("a crowd excuses and never matches", strip((5, 6), (6, 4)), strip((9, 10)),
         [record(5, 1, 6, iscrowd=1)], [record(9, 1)], (0, 0, 0, 0)),
        ("a crowd of another class does not", strip((5, 10)), strip((9, 10)), [record(5, 3, 10, iscrowd=1)],
         [record(9, 1)], (0, 0, 0, 1)),
        ("the last crowd of a class counts", strip((5, 8), (6, 2)), strip((9, 10)),
         [record(5, 1, 8, iscrowd=1), record(6, 1, 2, iscrowd=1)], [record(9, 1)], (0, 0, 0, 1)),
        ("void and crowd together", strip((0, 3), (5, 3), (7, 4)), strip((9, 10)),
         [record(5, 1, 3, iscrowd=1)], [record(9, 1)], (0, 0, 0, 0)),
        ("a predicted segment 0", strip((5, 10)), strip((0, 10)), [record(5, 1, 10)], [record(0, 1)],
         (1.0, 1, 0, 0)),
    ],
)  # fmt: skip
def test_by_hand(what, truth, predicted, true_records, predicted_records, expected):
    counts = count((truth, predicted, true_records, predicted_records))
    assert tuple(column[0] for column in counts) == expected, what


def test_groups_without_a_class_have_no_figures():
    counts = Counts(
        np.array([0.8, 0, 0]), *(np.array(column) for column in ([1, 0, 0], [0, 0, 1], [0, 0, 0]))
    )
    categories = {1: Category("person", True), 2: Category("bus", True), 3: Category("car", True)}
    evaluation = Evaluation(counts, categories)
    result = evaluation.figures()
    assert result["Stuff"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert result["All"] == result["Things"] == {"pq": 0.4, "sq": 0.4, "rq": 0.5, "n": 2}
    assert result["per_class"][2] == result["per_class"][3] == {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    assert [line.split() for line in evaluation.group_table().splitlines()[1:]] == [
        ["All", "40.0", "40.0", "50.0", "2"],
        ["Things", "40.0", "40.0", "50.0", "2"],
        ["Stuff", "n/a", "n/a", "n/a", "0"],
    ]
    rows = [line.split() for line in evaluation.class_table().splitlines()]
    assert rows[1:] == [
        ["1", "person", "thing", "80.0", "80.0", "100.0", "1", "0", "0"],
        ["2", "bus", "thing", "n/a", "n/a", "n/a", "0", "0", "0"],
        ["3", "car", "thing", "0.0", "0.0", "0.0", "0", "1", "0"],
    ]
