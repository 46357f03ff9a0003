"""Work that threads do while the caller goes on: a bounded queue, results in order, errors that are told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any


class Background:
    """Calls functions in threads.

    At the end of the context everything is done; after an error nothing more is begun.

    Args:
        threads: how many work at a time.
        waiting: how many calls may be unfinished before `submit` waits, which bounds the memory they hold.
    """

    def __init__(self, threads: int = 2, waiting: int = 8):
        self._pool = ThreadPoolExecutor(threads)
        self._waiting = waiting
        self._unfinished: set[Future] = set()
        self._calls: deque[Future] = deque()

    def submit(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function called soon.

        Raises:
            Exception: what an earlier call raised.
        """
        while len(self._unfinished) >= self._waiting:
            self._settle(FIRST_COMPLETED)
        call = self._pool.submit(function, *args)
        self._unfinished.add(call)
        self._calls.append(call)

    def results(self) -> list[Any]:
        """What all calls returned, in the order in which they were submitted; waits for the last one.

        Raises:
            Exception: what the first call that failed raised.
        """
        return [call.result() for call in self._calls]

    def _settle(self, until: str) -> None:
        done, self._unfinished = wait(self._unfinished, return_when=until)
        for call in done:
            call.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.results()
