"""When a run saves itself: after every epoch, inside one when it is due, and before it obeys a signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from util.checkpoint_file import save_checkpoint
from util.distributed import StepVote, all_gather, barrier, is_main_process
from util.files import link_whole
from util.interruption import Interruption
from util.meters import MetricLogger
from util.random_state import random_state


class Saver:
    """Writes `checkpoint.pth`; every process must call it at the same steps.

    Args:
        folder: the run's folder; None saves nothing, and a signal ends the run unsaved.
        state: gives what to save besides the position, a RunState's `entries`.
        every_minutes, every_steps: save inside an epoch this often; 0 never.
        keep: how many earlier versions to keep.
        interruption: the signals to obey.
        vote: what any process wants; left out, one with the default time limit.
    """

    def __init__(
        self,
        folder: Path | None,
        state: Callable[[], Mapping[str, Any]],
        every_minutes: float,
        every_steps: int,
        keep: int,
        interruption: Interruption,
        vote: StepVote | None = None,
    ):
        self.folder, self.state, self.keep, self.interruption = folder, state, keep, interruption
        self.every_seconds, self.every_steps = 60 * every_minutes, every_steps
        self.vote = vote or StepVote()
        self.saved_at = time.monotonic()

    def inside_epoch(self, epoch: int) -> Callable[[int, MetricLogger], None]:
        """What to call after each optimizer step of an epoch, with the steps done and the meters."""

        def after_step(step: int, logger: MetricLogger) -> None:
            due = 0 < self.every_seconds <= time.monotonic() - self.saved_at
            due = due or (self.every_steps > 0 and step % self.every_steps == 0)
            signal, due_anywhere = self.vote(self.interruption.received or 0, int(due))
            if signal or due_anywhere:
                self.save(epoch - 1, step, meters=logger.state_dict())
            if signal:
                barrier()  # a process that ends before the file is whole may take the others along
                self.interruption.obey(signal)

        return after_step

    def save(self, epoch: int, step: int = 0, meters: dict | None = None, **more: Any) -> None:
        """Write a checkpoint.

        Args:
            epoch: the last finished one.
            step: optimizer steps done in the one after it.
            meters: this process's meters inside that epoch.
            more: further entries.
        """
        self.saved_at = time.monotonic()
        if self.folder is None:
            return
        ranks = all_gather({"random": random_state(), "meters": meters})
        if not is_main_process():
            return
        checkpoint = {**self.state(), "epoch": epoch, "step": step, "ranks": ranks, **more}
        save_checkpoint(checkpoint, self.folder / "checkpoint.pth", self.keep)

    def copy_as(self, name: str) -> None:
        """Keep `checkpoint.pth` as it is now under a further name."""
        if self.folder is not None and is_main_process():
            link_whole(self.folder / "checkpoint.pth", self.folder / name)
