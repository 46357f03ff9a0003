"""Both sides of a stage in turn, in one process.

python -m benchmarks.timing SETTINGS STAGE PEER ROUNDS     prints JSON; benchmarks.run calls it
"""

from __future__ import annotations

import sys

from benchmarks.fresh import answer, call
from benchmarks.measure import Compared, CudaClock, WallClock, measure
from benchmarks.settings import Settings


def in_fresh_process(stage: str, settings: Settings, peer: str, rounds: int) -> Compared:
    """`compare` in a process that has done nothing before."""
    return Compared(*call("benchmarks.timing", settings, stage, peer, str(rounds)))


def compare(stage_name: str, settings: Settings, peer: str, rounds: int) -> Compared:
    """Seconds of this project and of a peer."""
    import torch

    from benchmarks.stages import all_stages

    stage = all_stages()[stage_name]
    usual = torch.get_num_threads()
    torch.set_num_threads(stage.threads or settings.threads or usual)
    try:
        works = {side: stage.build(settings, side) for side in ("ours", peer)}
        clock = CudaClock() if settings.device == "cuda" and stage.on_device else WallClock()
        shortest = {"shortest": 0.0} if settings.tiny else {}
        ours, theirs = measure(works, rounds, clock, **shortest).values()
    finally:
        torch.set_num_threads(usual)
    difference = None
    if stage.difference is not None and peer == "reference" and settings.amp == "off":
        difference = stage.difference(ours.result, theirs.result)
    return Compared(ours.seconds, theirs.seconds, works["ours"].items, difference)


if __name__ == "__main__":
    sys.exit(answer(lambda settings, stage, peer, rounds: compare(stage, settings, peer, int(rounds))))
