"""Several processes of one run: how they meet, wait, fail and part, started by hand and by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, TINY, TRAIN_SIZES, torchrun, write_coco

SECONDS = 300  # far more than needed, far less than the 10 minutes that a hanging collective would take

# What the processes of a run do once they have met; `rank` is theirs.
SCRIPT = """
import os, signal, sys, time
import main
from util.distributed import barrier, get_rank, init_distributed_mode
from util.errors import UserError

def scenario(args):
    init_distributed_mode(args)
    rank = get_rank()
    {scenario}

main.main = scenario
sys.exit(main.run(["--device", "cpu", *sys.argv[1:]]))
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
    environment |= {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
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


def test_the_rank_that_fails_says_why_and_the_other_does_not_wait(tmp_path: Path) -> None:
    scenario = "if rank == 1: raise UserError('a.jpg: cut off')\n    barrier()"
    (first, broken, _), (second, lines, _) = play(tmp_path, scenario)
    assert (second, lines) == (2, ["error: a.jpg: cut off"])
    assert first == 1 and "Traceback" in broken[0]


@pytest.mark.slow
def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    scenario = "if rank == 1: {}['missing']\n    barrier()"
    (first, _, _), (second, lines, _) = play(tmp_path, scenario)
    assert first == second == 1
    assert "Traceback" in lines[0] and lines[-1].endswith("KeyError: 'missing'")


@pytest.mark.slow
def test_a_hanging_process_is_given_up_after_dist_timeout(tmp_path: Path) -> None:
    scenario = "if rank == 1: time.sleep(45)\n    barrier()"
    (first, lines, _), (second, _, _) = play(tmp_path, scenario, "--dist_timeout", 0.05)
    assert first == second == 1
    assert any("Timed out" in line or "timed out" in line for line in lines), lines


@pytest.mark.slow
def test_a_process_that_never_comes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(scenario="barrier()"))
    flags = ["--dist_timeout", 0.05]
    ((status, lines, _),) = start(tmp_path, [tmp_path / "script.py", *flags], ranks=(0,))
    assert status == 2
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert line.startswith("error: rank 0 of 2 did not meet the others at file://"), line
    assert "0.05 minutes" in line and "--dist_timeout" in line


def test_what_is_written_to_args_is_what_the_published_code_writes(tmp_path: Path) -> None:
    scenario = "print(sorted((k, v) for k, v in vars(args).items() if k in NAMES))"
    script = tmp_path / "script.py"
    names = "NAMES = {'rank', 'world_size', 'gpu', 'distributed', 'dist_backend'}\n"
    script.write_text(names + SCRIPT.format(scenario=scenario))
    for rank, (status, _, out) in enumerate(start(tmp_path, [script])):
        wanted = {"rank": rank, "world_size": 2, "gpu": rank, "distributed": True, "dist_backend": "gloo"}
        assert (status, out.strip()) == (0, str(sorted(wanted.items())))


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


@pytest.mark.slow
def test_torchrun_ends_the_others_and_shows_the_error_that_came_first(tmp_path: Path) -> None:
    """A whole training, in which one rank's share holds an image that cannot be read."""
    from datasets.sampler import TrainBatchSampler

    root = write_coco(tmp_path / "data")
    batches = [list(TrainBatchSampler(list(TRAIN_SIZES), 2, 2, rank, seed=42)) for rank in (0, 1)]
    name = sorted((root / "train2017").iterdir())[batches[1][0][0]].name
    (root / "train2017" / name).write_bytes(b"not an image")
    flags = [*TINY.split(), "--coco_path", root, "--batch_size", 2, "--epochs", 1]
    flags += ["--check_data", "off"]  # which would find it before training
    answer = torchrun(2, "main.py", *flags)
    assert answer.returncode == 1
    assert [line for line in answer.stderr.splitlines() if line.startswith("error: ") and name in line]
    cause = answer.stderr.split("Root Cause")[1]
    assert "rank      : 1" in cause and "exitcode  : 2" in cause and name in cause
