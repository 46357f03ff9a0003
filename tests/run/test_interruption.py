"""Signals are noted at once, obeyed later, and handed on to whoever listened before."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from util.interruption import EXIT_STATUS, Interruption, leave_to_parent

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for name in ("SLURM_JOB_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Filled with the commands that are run in place of running them."""
    seen: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: seen.append(words))
    return seen


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_said(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption() as interruption:
        assert interruption.received is None
        send(number)
        send(number)
        assert interruption.received == number
    assert capfd.readouterr().err == f"{number.name}: saving after this step\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_former_handlers_are_put_back(number: signal.Signals) -> None:
    def former(*_: Any) -> None: ...

    signal.signal(number, former)
    with Interruption():
        assert signal.getsignal(number) is not former
    assert signal.getsignal(number) is former


def test_a_terminate_after_a_requeue_does_not_take_it_back() -> None:
    with Interruption() as interruption:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert interruption.received == signal.SIGUSR1
    with Interruption() as interruption:
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        assert interruption.received == signal.SIGUSR2


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_slurm_a_signal_just_ends(number: int, commands: list[list[str]]) -> None:
    with Interruption() as interruption, pytest.raises(SystemExit) as ending:
        interruption.obey(number)
    assert ending.value.code == EXIT_STATUS == 143
    assert commands == []


@pytest.mark.parametrize(
    ("number", "rank", "requeued"),
    [
        (signal.SIGUSR1, "0", True),
        (signal.SIGUSR2, "0", True),
        (signal.SIGUSR1, "1", False),
        (signal.SIGTERM, "0", False),
    ],
)
def test_under_slurm_one_process_requeues_the_job(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]], number: int, rank: str, requeued: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", rank)
    monkeypatch.setattr("util.interruption.REQUEUE_SECONDS", 0)
    with Interruption() as interruption, pytest.raises(SystemExit) as ending:
        interruption.obey(number)
    assert ending.value.code == 143
    assert commands == ([["scontrol", "requeue", "77"]] if requeued else [])


def test_a_former_handler_is_called_after_the_saving_and_requeues_itself(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    calls = []
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    with Interruption() as interruption:
        send(signal.SIGUSR2)
        assert calls == [], "not before everything is saved"
        with pytest.raises(SystemExit):
            interruption.obey(signal.SIGUSR2)
    assert calls == [signal.SIGUSR2]
    assert commands == []


def test_a_former_handler_may_end_the_process_its_own_way() -> None:
    def former(*_: Any) -> None:
        raise SystemExit(5)

    signal.signal(signal.SIGTERM, former)
    with Interruption() as interruption, pytest.raises(SystemExit) as ending:
        interruption.obey(signal.SIGTERM)
    assert ending.value.code == 5


def test_in_another_thread_nothing_is_listened_to() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    inside: list[Any] = []

    def enter() -> None:
        with Interruption():
            inside.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == before


# --- Data workers --------------------------------------------------------------------------------------


def _work(ready: Any) -> None:
    leave_to_parent()
    ready.set()
    time.sleep(60)


def _start(function: Callable, *words: Any) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function, args=words, daemon=True)
    process.start()
    return process


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who sent a signal")
def test_only_its_parent_ends_a_data_worker() -> None:
    ready = multiprocessing.get_context("fork").Event()
    worker = _start(_work, ready)
    assert ready.wait(300)
    for number in SIGNALS:
        subprocess.run(["/bin/sh", "-c", f"kill -{int(number)} {worker.pid}"], check=True)
    worker.join(0.3)
    assert worker.is_alive(), "a stranger's signal ended it"
    worker.terminate()
    worker.join(300)
    assert worker.exitcode == 0
