"""The best epoch so far, by the metric that a user would choose a checkpoint by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def score(line: Mapping[str, Any]) -> float | None:
    """The figure that tells which epoch is better: PQ where there is one, else box AP; None without either.

    Where weights are averaged (`--ema`), the averaged weights' figure: it is them that one then uses.

    Args:
        line: an epoch's line of log.txt.
    """
    averaged = any(name in line for name in ("test_ema_PQ_all", "test_ema_coco_eval_bbox"))
    prefix = "test_ema_" if averaged else "test_"
    if f"{prefix}PQ_all" in line:
        figure = line[f"{prefix}PQ_all"]["pq"]
    else:
        figure = line.get(f"{prefix}coco_eval_bbox", [None])[0]
    return None if figure is None or math.isnan(figure) else figure


class Best:
    """Follows the scores of a run's epochs.

    Attributes:
        value: the highest score, -1 before the first.
        epoch: where it was reached, None before the first.
    """

    def __init__(self, value: float = -1.0, epoch: int | None = None):
        self.value = value
        self.epoch = epoch

    def improves(self, line: Mapping[str, Any]) -> bool:
        """Take an epoch's log line; whether it is the best so far (an equal later one is not)."""
        new = score(line)
        if new is None or (self.epoch is not None and new <= self.value):
            return False
        self.value, self.epoch = new, line["epoch"]
        return True

    def follow(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take the log lines of earlier epochs."""
        for line in lines:
            self.improves(line)

    def out_of_patience(self, epoch: int, patience: int) -> bool:
        """Whether `patience` epochs up to and with this one brought nothing better; 0: never."""
        return patience > 0 and self.epoch is not None and epoch - self.epoch >= patience
