"""Kill a training run at random moments, resume it each time, and compare it with one left alone.

  python -m tests.run.kill_and_resume --kills 20                    one process
  python -m tests.run.kill_and_resume --kills 20 --processes 2      torchrun with two

A small model learns the built-in pictures on the CPU, with data workers, augmentation and dropout. All of the
run's processes get SIGKILL, which they cannot notice, and the same command starts anew with `--resume auto`.
A run that is over before it was killed often enough is compared, and another one begun. The exit status is 0
if weights, optimizer and log.txt are equal bit for bit, 1 if anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from datasets.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--dataset_file shapes --scales 80 96 --eval_scale 96 --max_size 160 --device cpu --num_workers 2"
    " --backbone resnet18 --backbone_stages 2 --backbone_norm batch --backbone_weights none --hidden_dim 32"
    " --nheads 4 --dim_feedforward 64 --enc_layers 1 --dec_layers 2 --num_queries 8 --dropout 0.1"
    " --epochs 3 --lr_drop 2 --warmup_steps 5 --save_every_steps 2 --resume auto"
)
IMAGES, BATCH = 64, 4
# Not the warm-up's state: a resumed run drops a warm-up that is over. What it did shows in the optimizer.
COMPARED = ("model", "optimizer", "lr_scheduler", "best", "epoch", "step", "ranks")
LIMIT = 300  # seconds without a new checkpoint until a run is given up


class Run:
    """One start of the command, in a session of its own."""

    def __init__(self, data: Path, folder: Path, processes: int, more: list[str]):
        python = [sys.executable]
        if processes > 1:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        flags = [*FLAGS.split(), "--batch_size", str(BATCH // processes), *more]
        folder.mkdir(exist_ok=True)
        self.checkpoint = folder / "checkpoint.pth"
        self.output = folder.parent / f"{folder.name}.out"
        with open(self.output, "a") as output:
            self.process = subprocess.Popen(
                [*python, "main.py", *flags, "--coco_path", str(data), "--output_dir", str(folder)],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait_for_checkpoint(self) -> bool:
        """Until it has saved itself; False where it has ended instead."""
        before, limit = self._saved(), time.monotonic() + LIMIT
        while self.process.poll() is None and self._saved() == before:
            if time.monotonic() > limit:
                self.kill()
                raise SystemExit(f"no checkpoint in {LIMIT} s; see {self.output}")
            time.sleep(0.005)
        return self.process.poll() is None

    def _saved(self) -> int:
        try:
            return self.checkpoint.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def kill(self) -> None:
        """SIGKILL to the process and all that it has started, torchrun's processes too."""
        for pid in [self.process.pid, *_descendants(self.process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def run_to_the_end(data: Path, folder: Path, processes: int, more: list[str]) -> float:
    """Leave a run alone -> the seconds from its first checkpoint to its end."""
    run = Run(data, folder, processes, more)
    began = time.monotonic()
    if run.wait_for_checkpoint():
        began = time.monotonic()
    if run.process.wait() != 0:
        raise SystemExit(f"the run ended with status {run.process.returncode}; see {run.output}")
    return time.monotonic() - began


def run_with_kills(
    data: Path, folder: Path, processes: int, more: list[str], kills: int, pause: float
) -> int:
    """Start a run until it ends by itself; kill it up to so many times -> how often it was killed.

    Args:
        more: flags of main.py beside FLAGS.
        pause: the longest time between a checkpoint and a kill, in seconds.
    """
    killed = 0
    while killed < kills:
        run = Run(data, folder, processes, more)
        if random.random() < 0.1:
            time.sleep(random.uniform(0, 4))  # while it starts
        elif run.wait_for_checkpoint():
            time.sleep(random.uniform(0, pause))
        ended = run.process.poll()
        run.kill()
        if ended is not None:
            if ended:
                raise SystemExit(f"the run ended with status {ended}; see {run.output}")
            return killed
        killed += 1
        print(f"{folder.name}: kill {killed}, {standing(folder)}", flush=True)
    run_to_the_end(data, folder, processes, more)
    return killed


def standing(folder: Path) -> str:
    """Where a run stood when it was killed."""
    path = folder / "checkpoint.pth"
    if not path.exists():
        return "nothing saved"
    checkpoint = torch.load(path, weights_only=True)
    lines = (folder / "log.txt").read_text().count("\n") if (folder / "log.txt").exists() else 0
    return f"epoch {checkpoint['epoch'] + 1}, step {checkpoint['step']} saved, {lines} lines in log.txt"


def differences(folder: Path, other: Path) -> list[str]:
    """What is not equal bit for bit in two finished runs' folders."""
    found = []
    for name in ("checkpoint.pth", "checkpoint_best.pth", "checkpoint0001.pth"):
        one, two = (torch.load(run / name, weights_only=True) for run in (folder, other))
        found += [f"{name}: {key}" for key in COMPARED if not equal(one[key], two[key])]
    log, other_log = ((run / "log.txt").read_text() for run in (folder, other))
    epochs = [json.loads(line)["epoch"] for line in log.splitlines()]
    if epochs != list(range(len(epochs))):
        found.append(f"log.txt holds the epochs {epochs}")
    if log != other_log:
        found.append("log.txt")
    return found + [f"left behind: {path.name}" for path in folder.rglob("*.part")]


def equal(one: Any, other: Any) -> bool:
    """Whether two nested values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def main(kills: int, processes: int, folder: Path, more: list[str]) -> int:
    """The whole comparison -> its exit status."""
    data, undisturbed = folder / "shapes", folder / "undisturbed"
    write_shapes(data, train=IMAGES, val=10)
    seconds = run_to_the_end(data, undisturbed, processes, more)
    print(f"undisturbed: {seconds:.1f} s after its first checkpoint", flush=True)
    killed = rounds = different = 0
    while killed < kills:
        rounds += 1
        run = folder / f"killed{rounds}"
        killed += run_with_kills(data, run, processes, more, kills - killed, pause=seconds / 6)
        found = differences(run, undisturbed)
        different += bool(found)
        print(f"{run.name}: {', '.join(found) or 'equal'}", flush=True)
    print(f"{killed} kills, {rounds} run(s) of {processes} process(es), {different} of them different")
    return 1 if different else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="how often in all")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4), help="processes of the run")
    parser.add_argument("--seed", type=int, help="of the moments; left out: new ones each time")
    parser.add_argument("--folder", type=Path, help="keep everything there; left out: a temporary folder")
    parser.add_argument("--device", default="cpu", help="as main.py's")
    parser.add_argument("--deterministic", action="store_true", help="as main.py's; a GPU needs it")
    given = parser.parse_args()
    more = ["--device", given.device, *(["--deterministic"] if given.deterministic else [])]
    random.seed(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(given.kills, given.processes, given.folder or Path(temporary), more))
