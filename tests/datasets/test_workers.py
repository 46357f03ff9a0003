"""`map` over processes: order, errors, where no children are allowed, and a parent that is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.workers import process_map, usable_cores
from tests.helpers import ROOT
from util.errors import UserError


def negative(number: int) -> int:
    if number == 13:
        raise UserError("thirteen")
    return -number


def where(_: int) -> int:
    return os.getpid()


def put_whether_map(queue: multiprocessing.Queue) -> None:
    with process_map(4) as mapper:
        queue.put(mapper is map)


def is_alive(process: int) -> bool:
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())  # empty where nobody has buried it yet
    except OSError:
        return False


def test_processes_that_do_not_fork(monkeypatch):
    """As on Windows and macOS."""
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    with process_map(2) as mapper:
        assert list(mapper(abs, [-1, -2, 3])) == [1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_errors_too(workers):
    before = set(multiprocessing.active_children())
    with process_map(workers) as mapper:
        assert list(mapper(negative, range(10))) == [-number for number in range(10)]
        assert (os.getpid() in set(mapper(where, range(4)))) == (workers < 2)
    with process_map(workers) as mapper, pytest.raises(UserError, match="^thirteen$"):
        list(mapper(negative, range(20)))
    assert set(multiprocessing.active_children()) <= before  # other tests keep processes of their own
    assert usable_cores() >= 1


def test_a_process_that_may_have_no_children_works_alone():
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    queue = context.Queue()
    process = context.Process(target=put_whether_map, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=300)
    process.join(300)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed():
    code = """
import os, time
from datasets.workers import process_map
def report(_):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: print's may be mixed with the other worker's
    time.sleep(600)
with process_map(2) as mapper:
    list(mapper(report, range(2)))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    limit = time.monotonic() + 300  # far more than needed, so that a busy machine does not matter
    while any(map(is_alive, workers)):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.02)
    parent.stdout.close()
