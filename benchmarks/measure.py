"""Measuring several sides of a comparison in turn: A B A B, medians, and the spread of the ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SHORTEST_ROUND = 0.1  # seconds; quicker work is repeated within a round


@dataclass
class Work:
    """Something to measure.

    Attributes:
        run: what is measured; called with what `before` gives, where there is one. Its result of the first
            call is compared between the sides.
        before: prepares each call, unmeasured.
        items: images, or whatever else is counted, that one call handles.
    """

    run: Callable[..., Any]
    before: Callable[[], Any] | None = None
    items: int = 1


@dataclass
class Measured:
    """One side's seconds for each call, a value a round, and the result of its first call."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None


class Compared(NamedTuple):
    """Two sides of a stage, a value a round each."""

    ours: list[float]
    """Seconds of one call, or bytes."""
    theirs: list[float]
    items: int = 1
    """Images a call."""
    difference: float | None = None
    """Between the results; None: not compared."""

    @property
    def ratios(self) -> tuple[float, float, float]:
        """How many times as much the peer takes: of the medians; the least and the largest of a round."""
        of_rounds = [theirs / own for own, theirs in zip(self.ours, self.theirs, strict=True)]
        of_medians = statistics.median(self.theirs) / statistics.median(self.ours)
        return of_medians, min(of_rounds), max(of_rounds)


class WallClock:
    """Seconds of this process's time on the wall."""

    def __call__(self, run: Callable[..., Any], *prepared: Any) -> tuple[float, Any]:
        """Call -> seconds, result."""
        start = time.perf_counter()
        result = run(*prepared)
        return time.perf_counter() - start, result


class CudaClock:
    """Seconds between two events on the device's stream, the host's waiting included."""

    def __call__(self, run: Callable[..., Any], *prepared: Any) -> tuple[float, Any]:
        """Call -> seconds, result."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = run(*prepared)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000, result


Clock = WallClock | CudaClock


def measure(
    works: Mapping[str, Work], rounds: int, clock: Clock, shortest: float = SHORTEST_ROUND
) -> dict[str, Measured]:
    """Run each side once to warm up, then all of them in turn, round by round.

    Args:
        works: by side.
        rounds: how often each side has its turn.
        clock: what tells the seconds of one call.
        shortest: seconds that a round lasts at least; quicker work is repeated and averaged. 0: one call.
    """
    measured = {side: Measured() for side in works}
    calls = dict.fromkeys(works, 1)
    for side, work in works.items():
        first, measured[side].result = _once(work, clock)
        if first < 10 * shortest:  # otherwise it is long enough even when warm
            seconds, _ = _once(work, clock)
            calls[side] = max(1, math.ceil(shortest / max(seconds, 1e-6)))
    for _ in range(rounds):
        for side, work in works.items():
            total = sum(_once(work, clock)[0] for _ in range(calls[side]))
            measured[side].seconds.append(total / calls[side])
    return measured


def _once(work: Work, clock: Clock) -> tuple[float, Any]:
    return clock(work.run, work.before()) if work.before is not None else clock(work.run)
