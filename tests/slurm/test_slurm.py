"""Jobs on a real Slurm: two nodes, interruptions by a requeue, a signal and the time limit, plain srun.

They need a cluster of two nodes that this machine is a part of. `tests/slurm/cluster.sh` makes one:
  export SLURM_ROOT=$(mktemp -d); eval "$(tests/slurm/cluster.sh start)"; pytest -m slow tests/slurm
"""

import functools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT, assert_equal, load, python, read_log

MODEL = (
    "--dataset_file shapes --device cpu --scales 96 --eval_scale 96 --max_size 160"
    " --backbone resnet18 --backbone_stages 2 --backbone_norm batch --backbone_weights none"
    " --hidden_dim 32 --nheads 4 --dim_feedforward 64 --enc_layers 1 --dec_layers 2 --num_queries 8"
    " --batch_size 2 --lr_drop 4 --num_workers 1"
)
TINY = MODEL.split()
EPOCHS = 6  # of 8 steps each: 32 images on two processes
SECONDS = 600  # the longest that any of the jobs may take


@functools.cache
def missing() -> str:
    """Why these tests cannot run, '' if they can."""
    if shutil.which("sinfo") is None:
        return "Slurm is not installed: see tests/slurm/cluster.sh"
    nodes = subprocess.run(["sinfo", "--noheader", "--format=%D"], capture_output=True, text=True)
    if nodes.returncode:
        return f"no Slurm cluster answers: see tests/slurm/cluster.sh ({nodes.stderr.splitlines()[0]})"
    return "" if sum(map(int, nodes.stdout.split())) > 1 else "the cluster has one node only"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


def slurm(*words: object) -> str:
    """A Slurm command -> what it prints."""
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    """run_with_submitit.py as a user calls it."""
    return python("run_with_submitit.py", *words, timeout=SECONDS)


class Job:
    """A job of two nodes with a process each, submitted by run_with_submitit.py."""

    def __init__(self, shared: Path, data: Path, *words: object):
        flags = [*TINY, "--coco_path", data, "--shared_dir", shared, "--ngpus", 0, "--nodes", 2, *words]
        self.answer = launch(*flags)
        assert self.answer.returncode == 0, self.answer.stderr
        printed = dict(line.split(None, 1) for line in self.answer.stdout.splitlines())
        self.id, self.folder = printed["job"], Path(printed["folder"])

    def field(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", slurm("scontrol", "show", "job", self.id))
        assert found is not None
        return found.group(1)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.output()}"
            time.sleep(0.3)

    def wait_for_epochs(self, number: int) -> None:
        log = self.folder / "log.txt"
        self.wait(
            lambda: log.exists() and len(read_log(self.folder)) >= number, f"{number} epochs in the log"
        )

    def finish(self) -> None:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.field("JobState") in over, "the job's end")
        assert self.field("JobState") == "COMPLETED", self.output()
        assert [line["epoch"] for line in read_log(self.folder)] == list(range(EPOCHS))

    def output(self) -> str:
        logs = sorted(self.folder.glob("*_log.*"))
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets.shapes import write_shapes

    folder = tmp_path_factory.mktemp("slurm") / "shapes"
    write_shapes(folder, train=32, val=6)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Job:
    """A job that nothing happens to."""
    job = Job(tmp_path_factory.mktemp("undisturbed"), data, "--epochs", EPOCHS, "--timeout", 10)
    job.finish()
    return job


def assert_same_end(job: Job, undisturbed: Job) -> None:
    """After one restart, weights, optimizer and log are those of the job that nothing happened to."""
    job.finish()
    assert job.field("Restarts") == "1"
    ours, theirs = (load(j.folder / "checkpoint.pth") for j in (job, undisturbed))
    for part in ("model", "optimizer", "lr_scheduler"):
        assert_equal(ours[part], theirs[part])
    assert read_log(job.folder) == read_log(undisturbed.folder)


def test_two_nodes(undisturbed: Job) -> None:
    assert undisturbed.field("NumNodes") == "2" and undisturbed.field("NumTasks") == "2"
    assert len(load(undisturbed.folder / "checkpoint.pth")["ranks"]) == 2
    first, second = ((undisturbed.folder / f"{undisturbed.id}_{rank}_log.out").read_text() for rank in (0, 1))
    assert "Training time" in first and "Epoch:" not in second
    assert f"scancel {undisturbed.id}" in undisturbed.answer.stdout


def test_requeued_from_outside(undisturbed: Job, data: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, data, "--epochs", EPOCHS, "--timeout", 10, "--save_every_steps", 3)
    job.wait_for_epochs(1)
    slurm("scontrol", "requeue", job.id)
    assert_same_end(job, undisturbed)


def test_a_signal_that_asks_to_requeue(undisturbed: Job, data: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, data, "--epochs", EPOCHS, "--timeout", 10)
    job.wait_for_epochs(1)
    slurm("scancel", "--signal=USR2", job.id)
    assert_same_end(job, undisturbed)
    assert "Requeued job" in job.output()


def test_reaching_its_time_limit(undisturbed: Job, data: Path, tmp_path: Path) -> None:
    """A limit of one minute. The job is held up, or it would be finished by then; Slurm's signal wakes it."""
    job = Job(tmp_path, data, "--epochs", EPOCHS, "--timeout", 1)
    job.wait_for_epochs(1)
    slurm("scancel", "--signal=STOP", job.id)
    job.wait(lambda: job.field("Restarts") != "0", "the requeue")
    slurm("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")  # enough for all the rest
    assert_same_end(job, undisturbed)
    assert "timed-out" in job.output() and "Requeued job" in job.output()


def test_plain_srun(data: Path, tmp_path: Path) -> None:
    words = [*TINY, "--coco_path", data, "--epochs", 1, "--output_dir", tmp_path / "run"]
    answer = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", sys.executable, "main.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("Training time") == 1, "only rank 0 prints"
    assert len(load(tmp_path / "run" / "checkpoint.pth")["ranks"]) == 2


def test_a_mistake_ends_the_job_with_its_message(data: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, data, "--epochs", EPOCHS, "--num_classes", 1)
    job.wait(lambda: job.field("JobState") == "FAILED", "the job's end")
    errors = [(job.folder / f"{job.id}_{rank}_log.err").read_text() for rank in (0, 1)]
    assert "error: " in errors[0] and "--num_classes 1" in errors[0]
    assert not any("Traceback" in text for text in errors)


def test_more_than_the_cluster_has(data: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, data, "--nodes", 3)
    slurm("scancel", job.id)
    assert "waits " in job.answer.stdout and "lower --nodes" in job.answer.stdout
    answer = launch("--shared_dir", tmp_path, "--cluster", "slurm", "--partition", "nowhere")
    assert answer.returncode == 2
    line = answer.stderr.splitlines()[-1]  # after what sbatch says
    assert line.startswith("error: the cluster refuses the job: ") and "partition" in line
    assert not (tmp_path / "%j").exists(), "no job, no folder"
