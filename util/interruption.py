"""Signals that ask a run to stop: noted at once, obeyed between two steps.

SIGTERM saves and ends; SIGUSR1 and SIGUSR2 save, and under Slurm put the job back into the queue. A handler
that was there before (submitit's) is called behind the saving, not displaced.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

REQUEUING = (signal.SIGUSR1, signal.SIGUSR2)
EXIT_STATUS = 143  # what a shell reports for a process that SIGTERM ended


class Interruption:
    """Listens for signals as long as it is entered as a context."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for number in (signal.SIGTERM, *REQUEUING):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            print(f"{signal.Signals(number).name}: saving behind this step", file=sys.stderr, flush=True)
        self.received = number

    def obey(self, number: int) -> None:
        """End the process, everything having been saved: by the former handler, a requeue, or plainly."""
        former = self._before.get(number)
        if callable(former):
            former(number, None)
        elif (
            number in REQUEUING
            and "SLURM_JOB_ID" in os.environ
            and os.environ.get("SLURM_PROCID", "0") == "0"
        ):
            job = os.environ["SLURM_JOB_ID"]
            print(f"requeuing job {job}", file=sys.stderr, flush=True)
            subprocess.run(["scontrol", "requeue", job], check=False)
        sys.exit(EXIT_STATUS)
