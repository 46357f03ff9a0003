"""A run that is interrupted and resumed ends as the run that was left alone, bit for bit."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import engine
import main
import run.records
import run.saving
from tests.helpers import ROOT, TINY, command, load, read_log
from tests.run import kill_and_resume
from tests.run.kill_and_resume import COMPARED, equal

FLAGS = (
    f"{TINY} --backbone_stages 2 --backbone_norm batch --dropout 0.1 --batch_size 1 --epochs 3 --lr_drop 2"
    " --warmup_steps 7 --save_every_steps 2 --resume auto"
)
STEPS = 5  # an epoch's


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the project catches it."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may be rounded otherwise than those of the subprocesses here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(coco_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(coco_root, folder) == 0
    return folder


def start(root: Path, folder: Path, *more: object) -> int:
    words = [*FLAGS.split(), "--coco_path", root, "--output_dir", folder, *more]
    return main.run([str(word) for word in words])


def kill_it(monkeypatch: pytest.MonkeyPatch, plan: Callable[[pytest.MonkeyPatch], None], *words: Any) -> None:
    """Start a run and kill it at the moment of the plan."""
    with monkeypatch.context() as patch:
        plan(patch)
        with pytest.raises(Killed):
            start(*words)


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    for name in ("checkpoint.pth", "checkpoint_best.pth", "checkpoint0001.pth"):
        one, other = load(folder / name), load(undisturbed / name)
        for key in COMPARED:
            assert equal(one[key], other[key]), f"{name}: {key}"
    assert (folder / "log.txt").read_text() == (undisturbed / "log.txt").read_text()
    assert not list(folder.rglob("*.part"))


def after_step(epoch: int, step: int, act: Callable[[], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Do something after a step of an epoch, before the run looks whether to save or to end."""

    def plan(monkeypatch: pytest.MonkeyPatch) -> None:
        inside_epoch = run.saving.Saver.inside_epoch

        def patched(self: Any, current: int) -> Callable:
            after_step = inside_epoch(self, current)

            def acting(done: int, logger: Any) -> None:
                if (current, done) == (epoch, step):
                    act()
                after_step(done, logger)

            return acting

        monkeypatch.setattr(run.saving.Saver, "inside_epoch", patched)

    return plan


def kill() -> None:
    raise Killed


def after_saving_epoch(epoch: int) -> Callable[[pytest.MonkeyPatch], None]:
    def plan(monkeypatch: pytest.MonkeyPatch) -> None:
        save = run.saving.Saver.save

        def patched(self: Any, current: int, step: int = 0, **more: Any) -> None:
            save(self, current, step, **more)
            if (current, step) == (epoch, 0):
                raise Killed

        monkeypatch.setattr(run.saving.Saver, "save", patched)

    return plan


def while_logging(epoch: int, written: Callable[[str], str]) -> Callable[[pytest.MonkeyPatch], None]:
    """End with the part of the epoch's line that `written` gives in log.txt."""

    def plan(monkeypatch: pytest.MonkeyPatch) -> None:
        finish_epoch = run.records.RunRecords.finish_epoch

        def patched(self: Any, line: dict[str, Any]) -> None:
            path = self.folder / "log.txt"
            before = path.read_text() if path.exists() else ""
            finish_epoch(self, line)
            if line["epoch"] == epoch:
                path.write_text(before + written(path.read_text()[len(before) :]))
                raise Killed

        monkeypatch.setattr(run.records.RunRecords, "finish_epoch", patched)

    return plan


MOMENTS = {
    "before anything is saved": after_step(0, 1, kill),
    "between two checkpoints": after_step(0, 4, kill),
    "after the learning rate's drop": after_step(2, 3, kill),
    "at the last step": after_step(2, STEPS, kill),
    "between saving and evaluating": after_saving_epoch(1),
    "between saving and evaluating at the end": after_saving_epoch(2),
    "before the log's line": while_logging(1, lambda line: ""),
    "in the log's line": while_logging(1, lambda line: line[:100]),
    "before the log's line break": while_logging(0, lambda line: line[:-1]),
    "after the log's line": while_logging(2, lambda line: line),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_if_it_had_been_left_alone(
    coco_root, tmp_path, undisturbed, monkeypatch, moment
):
    kill_it(monkeypatch, MOMENTS[moment], coco_root, tmp_path)
    assert start(coco_root, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def test_only_the_evaluation_is_repeated_where_only_it_is_missing(
    coco_root, tmp_path, undisturbed, monkeypatch
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    lines = (undisturbed / "log.txt").read_text().splitlines(keepends=True)
    (tmp_path / "log.txt").write_text("".join(lines[:-1]))
    checkpoint = (tmp_path / "checkpoint.pth").read_bytes()
    monkeypatch.setattr("engine.train_one_epoch", lambda *_, **__: pytest.fail("trained again"))
    assert start(coco_root, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)
    assert (tmp_path / "checkpoint.pth").read_bytes() == checkpoint


def test_accumulation_goes_on_inside_an_epoch(coco_root, tmp_path, monkeypatch):
    more = ("--accum_steps", 2, "--save_every_steps", 1, "--epochs", 2)
    assert start(coco_root, tmp_path / "whole", *more) == 0
    kill_it(monkeypatch, after_step(1, 2, kill), coco_root, tmp_path / "killed", *more)
    assert start(coco_root, tmp_path / "killed", *more) == 0
    whole, killed = (load(tmp_path / name / "checkpoint.pth") for name in ("whole", "killed"))
    assert all(equal(whole[key], killed[key]) for key in COMPARED)
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("step", [3, STEPS])
def test_a_signal_saves_after_the_step_and_ends(coco_root, tmp_path, undisturbed, monkeypatch, number, step):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with monkeypatch.context() as patch:
        after_step(1, step, lambda: os.kill(os.getpid(), number))(patch)
        assert start(coco_root, tmp_path, "--save_every_steps", 0) == 143
    saved = load(tmp_path / "checkpoint.pth")
    assert (saved["epoch"], saved["step"]) == (0, step)
    assert signal.getsignal(number) is signal.SIG_DFL, "handlers are put back"
    assert start(coco_root, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def test_a_signal_during_evaluation_ends_at_once(coco_root, tmp_path, undisturbed, monkeypatch):
    evaluate = engine.evaluate

    def interrupted(*words: Any, **more: Any) -> Any:
        result = evaluate(*words, **more)
        if load(tmp_path / "checkpoint.pth")["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", interrupted)
        assert start(coco_root, tmp_path) == 143
    saved = load(tmp_path / "checkpoint.pth")
    assert (saved["epoch"], saved["step"]) == (1, 0)
    assert [line["epoch"] for line in read_log(tmp_path)] == [0]
    assert start(coco_root, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_job_does_not_end_data_workers_first(coco_root, tmp_path, undisturbed, number):
    """Slurm and torchrun signal every process of a job, not the main one alone."""
    words = [*FLAGS.split(), "--num_workers", "2", "--coco_path", str(coco_root)]
    words += ["--output_dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "main.py", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "checkpoint.pth").exists() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 143, said
    assert said.count(f"{number.name}: ") == 1
    assert "Traceback" not in said
    assert not _session(process.pid), "data workers are left behind"
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, undisturbed)


def _session(leader: int) -> list[str]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(stat.parent.name)
    return found


# --- What auto looks for -------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(coco_root, tmp_path, undisturbed, monkeypatch):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    for work in ("train_one_epoch", "evaluate"):
        monkeypatch.setattr(f"engine.{work}", lambda *_, **__: pytest.fail("worked again"))
    assert start(coco_root, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def test_more_epochs_continue_a_finished_run(coco_root, tmp_path, undisturbed):
    assert start(coco_root, tmp_path, "--epochs", 2) == 0
    assert start(coco_root, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("as_namespace", [True, False])
def test_a_checkpoint_of_the_published_layout_resumes(coco_root, tmp_path, undisturbed, as_namespace):
    old = load(undisturbed / "checkpoint0001.pth")
    published = {key: old[key] for key in ("model", "optimizer", "lr_scheduler", "epoch", "args")}
    if as_namespace:
        published["args"] = argparse.Namespace(**published["args"])
    torch.save(published, tmp_path / "old.pth")
    assert start(coco_root, tmp_path / "run", "--resume", tmp_path / "old.pth") == 0
    new = load(tmp_path / "run" / "checkpoint.pth")
    assert new["epoch"] == 2
    before, after = old["optimizer"]["state"][0]["step"], new["optimizer"]["state"][0]["step"]
    assert after - before == STEPS
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [2]


@pytest.mark.parametrize("change", [("--batch_size", 2), ("--accum_steps", 2)])
def test_another_batch_size_starts_the_interrupted_epoch_anew(
    coco_root, tmp_path, monkeypatch, change, capsys
):
    kill_it(monkeypatch, after_step(1, 5, kill), coco_root, tmp_path)
    assert start(coco_root, tmp_path, *change) == 0
    assert "starts anew" in capsys.readouterr().err
    assert [line["epoch"] for line in read_log(tmp_path)] == [0, 1, 2]


# --- What a run writes ----------------------------------------------------------------------------------


def test_best_is_the_checkpoint_of_the_best_epoch(coco_root, tmp_path, monkeypatch):
    scores = iter([0.1, 0.3, 0.3])
    monkeypatch.setattr("run.state.score", lambda line: next(scores))
    assert start(coco_root, tmp_path) == 0
    assert load(tmp_path / "checkpoint_best.pth")["epoch"] == 1
    assert load(tmp_path / "checkpoint.pth")["best"] == {"value": 0.3, "epoch": 1}


def test_patience_ends_a_run_and_keeps_it_ended(coco_root, tmp_path, monkeypatch, capsys):
    scores = {0: 0.2, 1: 0.1, 2: 0.1}
    monkeypatch.setattr("run.state.score", lambda line: scores[line["epoch"]])
    for _ in range(2):
        assert start(coco_root, tmp_path, "--patience", 1) == 0
        assert "--patience 1: nothing better since epoch 0" in capsys.readouterr().out
        assert [line["epoch"] for line in read_log(tmp_path)] == [0, 1]


def test_keep_leaves_that_many_earlier_versions(coco_root, tmp_path):
    assert start(coco_root, tmp_path, "--epochs", 1, "--keep", 2) == 0
    positions = [
        (load(tmp_path / name)["epoch"], load(tmp_path / name)["step"])
        for name in ("checkpoint.pth", "checkpoint.1.pth", "checkpoint.2.pth")
    ]
    assert positions == [(0, 0), (-1, 4), (-1, 2)]
    assert not (tmp_path / "checkpoint.3.pth").exists()


# --- SIGKILL, in earnest --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes"), [(3, 1), (2, 2)])
def test_sigkill_at_random_moments(tmp_path, kills, processes):
    assert kill_and_resume.main(kills, processes, tmp_path, []) == 0
