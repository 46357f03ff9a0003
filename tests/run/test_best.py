"""Which epoch is the best, and when to stop waiting for a better one."""

import math
from typing import Any

import pytest

from run.state import Best, score


def line(epoch: int, ap: float) -> dict[str, Any]:
    return {"epoch": epoch, "test_coco_eval_bbox": [ap, *[0.0] * 11]}


def test_boxes_are_judged_by_ap_and_panoptic_runs_by_pq() -> None:
    assert score(line(0, 0.25)) == 0.25
    assert score(line(0, 0.25) | {"test_PQ_all": {"pq": 0.5, "sq": 0.7}}) == 0.5
    assert score({"epoch": 0}) is None


def test_of_averaged_weights_theirs_is_the_score() -> None:
    assert score(line(0, 0.4) | {"test_ema_coco_eval_bbox": [0.3]}) == 0.3
    panoptic = line(0, 0.4) | {"test_PQ_all": {"pq": 0.2}}
    assert score(panoptic | {"test_ema_PQ_all": {"pq": 0.1}, "test_ema_coco_eval_bbox": [0.5]}) == 0.1


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_figure_that_is_not_there_is_no_score(value: float | None) -> None:
    """A log holds null where the run had NaN: both must choose the same epoch."""
    best = Best()
    assert not best.improves({"epoch": 0, "test_PQ_all": {"pq": value}})
    assert best.epoch is None
    assert best.improves({"epoch": 1, "test_PQ_all": {"pq": 0.1}})


def test_only_a_higher_score_is_better() -> None:
    best = Best()
    better = [e for e, ap in enumerate([0.1, 0.3, 0.3, 0.2, 0.4]) if best.improves(line(e, ap))]
    assert better == [0, 1, 4]
    assert (best.value, best.epoch) == (0.4, 4)


@pytest.mark.parametrize("ap", [0.0, -1.0])
def test_the_first_epoch_is_the_best_so_far_however_low(ap: float) -> None:
    best = Best()
    assert best.improves(line(0, ap))
    assert best.epoch == 0


def test_a_resumed_run_follows_its_log() -> None:
    lines = [line(e, ap) for e, ap in enumerate([0.1, 0.3, 0.2])]
    whole = Best()
    whole.follow(lines)
    resumed = Best(value=0.1, epoch=0)  # a checkpoint is written before its epoch is evaluated
    resumed.follow(lines)
    assert vars(whole) == vars(resumed) == {"value": 0.3, "epoch": 1}


def test_patience_counts_epochs_since_the_best() -> None:
    best = Best(0.3, 4)
    assert [best.out_of_patience(epoch, 2) for epoch in (4, 5, 6, 7)] == [False, False, True, True]
    assert not best.out_of_patience(100, 0), "0: never"
    assert not Best().out_of_patience(100, 1), "nothing was ever scored"
