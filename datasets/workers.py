"""`map` over processes, for work on files that needs neither torch nor what the parent holds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from util.collector import leave_parents_objects


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_map(workers: int) -> Iterator[Callable]:
    """`map` itself where `workers` is 1, or its counterpart over that many processes; results in order.

    Where this process may have no children (a daemon of multiprocessing), `map` as well.
    """
    if workers <= 1 or multiprocessing.current_process().daemon:
        yield map
        return
    # As torch's data loader does: workers need nothing of what the parent holds, so that a fork is safe
    # and, unlike a fresh interpreter, neither imports torch nor the caller's script.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C and shared objects to the parent, and end with it even when it is killed."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    leave_parents_objects()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
