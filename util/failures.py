"""A process that fails tells the others, and they end with its message instead of waiting for it.

The processes of a run share a key-value store (torch.distributed's). One that fails writes a line there; in
each of the others a thread looks for it, so that even one that waits inside a collective learns of it. No
process leaves before all have read the line, or a few seconds have passed: the store lives in one of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch.distributed import Store

FIRST, ENDED = "failures/first", "failures/ended"  # the first failure; how many processes have ended
POLL_SECONDS = 0.5
GRACE_SECONDS = 1.0  # for a process that is about to fail by itself, in its own words
ALIKE_SECONDS = 2.0  # to see whether rank 0 has failed in the same way, and says so
NEWS_SECONDS = 6.0  # from a broken collective to the line of the process that broke it
LEAVE_SECONDS = 4.0  # for the others to read it
OF_COLLECTIVES = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")


class FailureWatch:
    """This process's view of the failures of a run.

    Args:
        store: reaches every process of the run.
        rank, world_size: this process's number, and of how many.
    """

    def __init__(self, store: Store, rank: int, world_size: int):
        self.store = _own_connection(store)
        self.rank, self.world_size = rank, world_size
        self.first: tuple[int, str] | None = None
        self.news = threading.Event()
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="failures of other ranks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This process has done its work."""
        self._stopped.set()
        self._thread.join(2 * POLL_SECONDS)

    def end_with(self, message: str, status: int, details: str = "") -> NoReturn:
        """End this process because of a failure of its own.

        Args:
            message: one line; it is what the others print.
            details: printed in front of it, by this process alone.
        """
        self._begin_to_end()
        said_by_main = self.rank > 0 and _within(ALIKE_SECONDS + 1, lambda: self._announce(message))
        if self.rank == 0:
            _within(ALIKE_SECONDS, lambda: self._announce(message))
        self._leave("" if said_by_main else f"{details}error: {message}", status)

    def end_after_collective(self, reason: str) -> NoReturn:
        """End this process because a collective broke: with the line of the process that broke it, if any."""
        if self.news.wait(NEWS_SECONDS):
            self._end_with_news()
        self.end_with(
            f"lost the connection to another process of this run ({reason}): it was killed, or the network "
            "between them failed",
            1,
        )

    def _announce(self, message: str) -> bool:
        """Write the line -> whether rank 0, another process, has failed in the same way."""
        self.store.set(f"failures/{self.rank}", message)
        self.store.compare_set(FIRST, "", f"{self.rank} {message}")
        deadline = time.monotonic() + ALIKE_SECONDS
        while self.rank > 0 and time.monotonic() < deadline:
            if self.store.check(["failures/0"]):
                return self.store.get("failures/0").decode() == message
            time.sleep(0.1)
        return False

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                if not self.store.check([FIRST]):
                    continue
                rank, _, message = self.store.get(FIRST).decode().partition(" ")
            except RuntimeError:
                return  # the store went with its process; the next collective will say so
            self.first = (int(rank), message)
            self.news.set()
            if not self._stopped.wait(GRACE_SECONDS):
                self._end_with_news()
            return

    def _end_with_news(self) -> NoReturn:
        assert self.first is not None
        self._begin_to_end()
        rank, message = self.first
        self._leave(f"error: rank {rank} failed: {message}", 1)

    def _begin_to_end(self) -> None:
        """Only one thread gets past this."""
        if not self._ending.acquire(blocking=False):
            time.sleep(3600)  # the other one ends the process
        self._stopped.set()

    def _leave(self, text: str, status: int) -> NoReturn:
        """Print and end, without the destructors that would wait for the other processes."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # data workers are about to be ended
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            if text:
                print(text, file=sys.stderr, flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        _within(LEAVE_SECONDS, self._wait_for_others)
        os._exit(status)

    def _wait_for_others(self) -> None:
        self.store.add(ENDED, 1)
        while self.store.add(ENDED, 0) < self.world_size:
            time.sleep(0.1)


def _own_connection(store: Any) -> Any:
    """A store to be used beside a wait on the given one, as far as this torch can make one."""
    from torch.distributed import FileStore

    # Files need none, and a second FileStore would wait at its end for a file that the first one removed.
    return store.clone() if hasattr(store, "clone") and not isinstance(store, FileStore) else store


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What a function returns, None if it fails or takes longer: a store may be out of reach."""
    result: list[Any] = [None]

    def call() -> None:
        with contextlib.suppress(RuntimeError):
            result[0] = function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0]


_watch: FailureWatch | None = None


def watch(store: Store, rank: int, world_size: int) -> None:
    """From now on, end this process when another one fails, and let `end` tell the others."""
    global _watch
    _watch = FailureWatch(store, rank, world_size)


def stop_watching() -> None:
    """This process has done its work: what becomes of the others no longer concerns it."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def is_shared() -> bool:
    """Whether other processes would wait for this one."""
    return _watch is not None


def end(error: Exception, message: str | None = None, debug: bool = False) -> NoReturn:
    """End this process, and with it the run, because of an error. Only where `is_shared`.

    Args:
        message: a user's mistake in one line, exit status 2; None: any other error, exit status 1 and a
            traceback, unless the error is only what another process's failure looks like from here.
        debug: a traceback in any case.
    """
    assert _watch is not None
    details = "".join(traceback.format_exception(error))
    if message is not None:
        _watch.end_with(message, 2, details if debug else "")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if _is_of_collective(error):
        _watch.end_after_collective(reason)
    _watch.end_with(f"{type(error).__name__}: {reason}", 1, details)


def _is_of_collective(error: Exception) -> bool:
    from torch.distributed import DistError

    text = str(error).lower()
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in OF_COLLECTIVES)
    )
