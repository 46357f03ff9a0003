"""One of several processes fails: it says why, the others end soon with its message, and nobody hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, TINY, TRAIN_SIZES, write_coco

SECONDS = 300  # far more than needed, far less than the 10 minutes that a hanging collective would take

# What the processes of a run do once they have met; `rank` is theirs.
SCRIPT = """
import os, signal, sys, time
import main
from util.errors import UserError

def work(args):
    import torch
    from util.distributed import barrier, get_rank, init_distributed_mode
    init_distributed_mode(args)
    rank = get_rank()
    {scenario}

parser = main.RecipeParser("test", parents=[main.get_args_parser()])
sys.exit(main.guarded(work, parser.parse_args(["--device", "cpu", *sys.argv[1:]])))
"""

# A whole run, perhaps stopped by a signal -> the names of the threads that it leaves behind.
THREADS = """
import os, signal, sys
from pathlib import Path
import engine, main

def step(*args, **kwargs):
    if "{signal}":
        os.kill(os.getpid(), signal.Signals["{signal}"])
    return epoch(*args, **kwargs)

epoch, engine.train_one_epoch = engine.train_one_epoch, step
status = main.run(sys.argv[1:])
print(sorted({{path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}}))
sys.exit(status)
"""


def start(
    folder: Path, command: list[object], ranks: tuple[int, ...] = (0, 1)
) -> list[tuple[int, list[str], str]]:
    """Start one process a rank; they meet over a file -> each one's status, lines of stderr, and stdout."""
    url = f"file://{folder / 'meeting'}"
    words = [sys.executable, *map(str, command), "--dist_url", url]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    try:
        ended = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, err.splitlines(), out)
        for process, (out, err) in zip(processes, ended, strict=True)
    ]


def play(folder: Path, scenario: str, *flags: object) -> list[tuple[int, list[str], str]]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(scenario=scenario))
    return start(folder, [script, *flags])


@pytest.mark.parametrize("waiting", ["barrier()", pytest.param("time.sleep(600)", marks=pytest.mark.slow)])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_mistake_on_one_rank_ends_the_other(failing: int, waiting: str, tmp_path: Path) -> None:
    mistake = f"if rank == {failing}: raise UserError('a.jpg: cut off')"
    answers = play(tmp_path, f"{mistake}\n    {waiting}")
    status, lines, _ = answers[failing]
    assert (status, lines) == (2, ["error: a.jpg: cut off"])
    status, lines, _ = answers[1 - failing]
    assert (status, lines) == (1, [f"error: rank {failing} failed: a.jpg: cut off"])


def test_a_mistake_on_all_ranks_is_told_once(tmp_path: Path) -> None:
    (first, told, _), (second, untold, _) = play(tmp_path, "raise UserError('--lr -1: not above 0')")
    assert (first, told) == (2, ["error: --lr -1: not above 0"])
    assert (second, untold) == (2, [])


@pytest.mark.slow
def test_an_unexpected_error_keeps_its_traceback_on_its_own_rank(tmp_path: Path) -> None:
    scenario = "if rank == 1: {}['missing']\n    barrier()"
    (first, told, _), (second, lines, _) = play(tmp_path, scenario)
    assert (first, told) == (1, ["error: rank 1 failed: KeyError: 'missing'"])
    assert second == 1
    assert lines[0].startswith("Traceback") and lines[-1] == "error: KeyError: 'missing'"


@pytest.mark.slow
def test_a_killed_process_is_missed(tmp_path: Path) -> None:
    scenario = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n    barrier()"
    (first, lines, _), (second, _, _) = play(tmp_path, scenario)
    assert (first, second) == (1, -9)
    (line,) = lines
    assert line.startswith("error: lost the connection to another process")


@pytest.mark.slow
def test_a_hanging_process_is_given_up(tmp_path: Path) -> None:
    scenario = "if rank == 1: time.sleep(600)\n    barrier()"
    (first, lines, _), (second, told, _) = play(tmp_path, scenario, "--dist_timeout", 0.05)
    assert first == second == 1
    assert len(lines) == 1 and "lost the connection" in lines[0]
    assert told == [lines[0].replace("error:", "error: rank 0 failed:")]


@pytest.mark.slow
def test_a_process_that_never_comes(tmp_path: Path) -> None:
    scenario = "barrier()"
    (tmp_path / "script.py").write_text(SCRIPT.format(scenario=scenario))
    flags = ["--dist_timeout", 0.05]
    ((status, lines, _),) = start(tmp_path, [tmp_path / "script.py", *flags], ranks=(0,))
    assert status != 0
    (line,) = lines
    assert line.startswith("error: rank 0 of 2 did not meet the others at file://"), line
    assert "0.05 minutes" in line and "--dist_timeout" in line


def test_ranks_that_end_well_leave_quietly(tmp_path: Path) -> None:
    assert play(tmp_path, "barrier()\n    print('rank', rank)") == [(0, [], "rank 0\n"), (0, [], "rank 1\n")]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads' names are read from /proc")
@pytest.mark.parametrize("signal", ["", "SIGTERM"])
def test_no_thread_of_the_group_is_left(signal: str, tmp_path: Path) -> None:
    """One that still frees a tensor while the interpreter ends aborts the process now and then."""
    script = tmp_path / "script.py"
    script.write_text(THREADS.format(signal=signal))
    flags = [*TINY.split(), "--coco_path", write_coco(tmp_path / "data"), "--batch_size", 2, "--epochs", 1]
    for status, _, out in start(tmp_path, [script, *flags]):
        assert (status, out.splitlines()[-1]) == (143 if signal else 0, "['python']"), out


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_unreadable_image_in_one_ranks_share(workers: int, tmp_path: Path) -> None:
    from datasets.sampler import TrainBatchSampler

    root = write_coco(tmp_path / "data")
    batches = [list(TrainBatchSampler(list(TRAIN_SIZES), 2, 2, rank, seed=42)) for rank in (0, 1)]
    place = batches[1][0][0]  # an image that rank 1 takes
    name = sorted((root / "train2017").iterdir())[place].name
    (root / "train2017" / name).write_bytes(b"not an image")
    flags = [*TINY.split(), "--coco_path", root, "--batch_size", 2, "--num_workers", workers, "--epochs", 1]
    flags += ["--check_data", "off"]  # which would find it before training
    (first, told, _), (second, lines, _) = start(tmp_path, ["main.py", *flags])
    assert (first, second) == (1, 2)
    (line,) = lines
    assert line.startswith("error: ") and name in line
    assert told == [line.replace("error:", "error: rank 1 failed:")]
