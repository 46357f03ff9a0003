"""Signals that ask a run to stop: noted at once, obeyed between two steps.

SIGTERM saves and ends; SIGUSR1 and SIGUSR2 save, and under Slurm put the job back into the queue. A handler
that was there before (submitit's) is called after the saving, not displaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from util.distributed import barrier

# Windows has neither.
REQUEUING: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
REQUEUE_SECONDS = 60  # for the first process to put the job back into the queue, which ends all of them
EXIT_STATUS = 143  # what a shell reports for a process that SIGTERM ended


class Interruption:
    """Listens for signals as long as it is entered as a context."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
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
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                when = "all is saved" if self._at_once else "saving after this step"
                os.write(2, f"{signal.Signals(number).name}: {when}\n".encode())
        if self.received not in REQUEUING:  # a SIGTERM that follows does not take the requeue back
            self.received = number
        if self._at_once:
            self._at_once = False
            self.obey(self.received or number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, where there is nothing to save, a signal ends the run without waiting for the next step.

        An evaluation may last longer than the time between the signal and the end. Every process must enter.
        """
        barrier()  # the checkpoint is whole
        if self.received is not None:
            self.obey(self.received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

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
        if number in REQUEUING and os.environ.get("SLURM_PROCID", "0") != "0":
            time.sleep(REQUEUE_SECONDS)  # a process that ends with an error would take the first one along
        sys.exit(EXIT_STATUS)


def leave_to_parent() -> None:
    """For data workers: signals meant for the run do not end them, only their parent does.

    Slurm and torchrun signal every process of a job. A worker that died of it would end the run before the
    step is finished and saved.
    """
    for number in REQUEUING:
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: nothing tells who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads to come inherit it
    try:
        threading.Thread(target=_end_with_parents_word, args=(os.getppid(),), daemon=True).start()
    except RuntimeError:  # no more threads are allowed: let whoever sends the signal end it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_with_parents_word(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
