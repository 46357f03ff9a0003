"""run_with_submitit.py without a cluster: its flags, what it asks for, its mistakes, and local jobs."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import main
import run_with_submitit
from tests.helpers import ROOT, TINY, assert_one_line, load, python, read_log
from util.errors import UserError


def parse(*words: object) -> Any:
    return run_with_submitit.get_args_parser().parse_args(list(map(str, words)))


def submitted(*words: object) -> int:
    return run_with_submitit.run(list(map(str, words)))


def test_every_flag_of_main_and_the_published_ones_of_the_job():
    ours, theirs = vars(parse()), vars(main.get_args_parser().parse_args([]))
    assert theirs.items() <= ours.items()
    assert (ours["ngpus"], ours["nodes"], ours["timeout"], ours["job_dir"]) == (8, 4, 60, "")


def test_recipes_are_read(tmp_path):
    (tmp_path / "a.args").write_text("# a comment\n--nodes 2 --lr 0.5\n")
    args = parse(f"@{tmp_path / 'a.args'}")
    assert (args.nodes, args.lr) == (2, 0.5)


def test_what_the_cluster_is_asked_for():
    asked = run_with_submitit.job_parameters(parse("--partition", "gpu", "--mem_gb", 32, "--num_workers", 4))
    assert asked == {
        "name": "detr", "nodes": 4, "tasks_per_node": 8, "gpus_per_node": 8, "cpus_per_task": 5,
        "timeout_min": 60, "mem_gb": 32, "slurm_partition": "gpu", "slurm_signal_delay_s": 120,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
    }  # fmt: skip
    for words, tasks in ((("--ngpus", 0), 1), (("--ngpus", 0, "--tasks_per_node", 3), 3)):
        asked = run_with_submitit.job_parameters(parse(*words))
        assert asked["tasks_per_node"] == tasks and "gpus_per_node" not in asked


@pytest.mark.parametrize("minutes", [1, 2, 5, 10, 60, 3000])
def test_notice_leaves_time_to_train(minutes):
    seconds = run_with_submitit.notice(minutes)
    assert 10 <= seconds <= 120
    assert seconds + 30 < 60 * minutes, "Slurm may send the signal half a minute early"


def folders(*words: object) -> tuple[Path, Path]:
    return run_with_submitit.find_folders(parse(*words))


def test_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("DETR_SHARED_DIR", raising=False)
    assert folders("--shared_dir", tmp_path / "s") == (tmp_path / "s", tmp_path / "s" / "%j")
    assert (tmp_path / "s").is_dir()
    assert folders("--job_dir", tmp_path / "t" / "%j") == (tmp_path / "t", tmp_path / "t" / "%j")
    assert folders("--job_dir", tmp_path / "t/r50", "--shared_dir", tmp_path / "s")[0] == tmp_path / "s"
    monkeypatch.setenv("DETR_SHARED_DIR", str(tmp_path / "e"))
    assert folders() == (tmp_path / "e", tmp_path / "e" / "%j")


def test_folders_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DETR_SHARED_DIR", raising=False)
    with pytest.raises(UserError, match="--shared_dir.*DETR_SHARED_DIR"):
        folders()
    with pytest.raises(UserError, match="--shared_dir"):
        folders("--job_dir", tmp_path / "%j" / "run")


@pytest.mark.parametrize(
    "words", ["--shared_dir {file}", "--shared_dir {file}/x", "--job_dir {file}", "--job_dir {file}/%j/x",
              "--job_dir {file}/x", "--job_dir /proc/x/%j"],
)  # fmt: skip
def test_folders_that_cannot_be_written_to_are_named(words, tmp_path, monkeypatch, refused):
    pytest.importorskip("submitit")
    monkeypatch.delenv("DETR_SHARED_DIR", raising=False)
    (tmp_path / "file").touch()
    flag, value = words.format(file=tmp_path / "file").split()
    more = ["--shared_dir", tmp_path / "s"] if flag == "--job_dir" else []
    given = [flag, value, *more, "--cluster", "local", "--nodes", 1]
    refused(given, f"{flag} {value}", "name another folder", run=submitted)


@pytest.mark.parametrize("flag", ["--shared_dir", "--job_dir"])
def test_a_folder_without_permission_is_named(flag, tmp_path, monkeypatch):
    def denied(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.delenv("DETR_SHARED_DIR", raising=False)
    monkeypatch.setattr("tempfile.TemporaryFile", denied)  # root may write anywhere
    with pytest.raises(UserError, match=rf"{flag} .*nothing can be written to .*\(Permission denied\); name"):
        folders(flag, tmp_path / "%j")


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--ngpus", -1), ("--nodes", 0), ("--nodes", -2), ("--tasks_per_node", -1), ("--tasks_per_node", 0),
        ("--timeout", -5), ("--timeout", 0), ("--mem_gb", -1), ("--mem_gb", "nan"), ("--cpus_per_task", 0),
    ],
)  # fmt: skip
def test_numbers_below_their_limits_are_refused(flag, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(flag, value)
    assert stopped.value.code == 2
    assert_one_line(capsys, flag, f"{value} is below")


def inside(tmp_path: Path, tasks: int, *words: object) -> Any:
    job = SimpleNamespace(job_id="77", num_tasks=tasks)
    return run_with_submitit.job_arguments(parse("--job_dir", tmp_path / "%j", *words), job)


def test_arguments_inside_a_job(tmp_path, monkeypatch):
    for name in ("SLURM_RESTART_COUNT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    folder = str(tmp_path / "77")
    first = inside(tmp_path, 2)
    assert (first.job_dir, first.output_dir, first.resume) == (folder, folder, "auto")
    assert first.dist_url.startswith(f"file://{folder}/")
    assert inside(tmp_path, 1).dist_url == "env://", "one process has nobody to meet"
    assert inside(tmp_path, 2, "--output_dir", "/out/%j").output_dir == "/out/77"
    assert inside(tmp_path, 2, "--dist_url", "tcp://a:1").dist_url == "tcp://a:1"
    assert inside(tmp_path, 2, "--eval", "--resume", "a.pth").resume == "a.pth"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert inside(tmp_path, 2).dist_url != first.dist_url
    monkeypatch.setenv("MASTER_ADDR", "n1")
    assert inside(tmp_path, 2).dist_url == "env://"


def test_a_restart_resumes_from_itself_once_it_has_saved(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert inside(tmp_path, 1, "--resume", "a.pth").resume == "a.pth"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert inside(tmp_path, 1, "--resume", "a.pth").resume == "a.pth", "killed before it saved"
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "checkpoint.pth").touch()
    assert inside(tmp_path, 1, "--resume", "a.pth").resume == "auto"


def test_what_is_queued_again_is_the_same(tmp_path):
    pytest.importorskip("submitit")
    work = run_with_submitit.Work(parse("--lr", 0.5), str(ROOT))
    again = pickle.loads(pickle.dumps(work.checkpoint().function))
    assert vars(again.args) == vars(work.args)


def test_without_slurm(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(["--shared_dir", tmp_path], "--cluster slurm", "sbatch", run=submitted)


def test_without_submitit(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "submitit", None)
    refused(["--shared_dir", tmp_path], "pip install submitit", run=submitted)


def test_one_machine_has_no_second_node(tmp_path, refused):
    refused(["--shared_dir", tmp_path, "--cluster", "local"], "--nodes 4", "--cluster local", run=submitted)


@pytest.mark.slow
@pytest.mark.parametrize("cluster, tasks", [("local", 2), ("debug", 1)])
def test_a_job_on_this_machine(cluster, tasks, coco_root, tmp_path):
    flags = [*TINY.split(), "--coco_path", coco_root, "--epochs", 1, "--batch_size", 2, "--ngpus", 0]
    flags += ["--shared_dir", tmp_path, "--nodes", 1, "--tasks_per_node", tasks, "--cluster", cluster]
    answer = python(ROOT / "run_with_submitit.py", *flags, cwd=tmp_path)  # it finds the project from anywhere
    assert answer.returncode == 0, answer.stderr
    (log,) = tmp_path.glob("*/log.txt")
    assert len(read_log(log.parent)) == 1
    assert len(load(log.parent / "checkpoint.pth")["ranks"]) == tasks
