"""Work in threads: its order, its limits, its errors."""

from __future__ import annotations

import threading

import pytest

from inference.background import Background


def test_results_come_in_the_order_of_the_calls() -> None:
    first_may_end = threading.Event()

    def wait_for_second(value: int) -> int:
        assert first_may_end.wait(300)
        return value

    def release(value: int) -> int:
        first_may_end.set()
        return value

    with Background(threads=2) as background:
        background.submit(wait_for_second, 1)
        background.submit(release, 2)  # ends before the first
        assert background.results() == [1, 2]


def test_the_caller_waits_where_too_much_is_unfinished() -> None:
    may_go_on = threading.Event()
    begun: list[int] = []

    def work(value: int) -> None:
        begun.append(value)
        assert may_go_on.wait(300)

    with Background(threads=1, waiting=2) as background:
        background.submit(work, 0)
        background.submit(work, 1)
        caller = threading.Thread(target=background.submit, args=(work, 2))
        caller.start()
        caller.join(0.2)
        assert caller.is_alive()
        may_go_on.set()
        caller.join(300)
        assert not caller.is_alive()
    assert begun == [0, 1, 2]


def fail() -> None:
    raise KeyError("of the thread")


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(KeyError, match="of the thread"), Background() as background:
        background.submit(fail)
    with pytest.raises(KeyError, match="of the thread"), Background(waiting=1) as background:
        background.submit(fail)
        background.submit(int)
    with pytest.raises(KeyError, match="of the thread"), Background() as background:
        background.submit(fail)
        background.results()


def test_after_an_error_of_the_caller_nothing_more_begins() -> None:
    may_go_on = threading.Event()
    begun: list[int] = []

    def work(value: int) -> None:
        begun.append(value)
        assert may_go_on.wait(300)

    with pytest.raises(ValueError, match="of the caller"), Background(threads=1) as background:
        for value in range(3):
            background.submit(work, value)
        threading.Timer(0.5, may_go_on.set).start()
        raise ValueError("of the caller")
    assert begun in ([], [0])
