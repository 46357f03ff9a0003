"""Two training runs in one folder: the second waits for the first to end, and then gives up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from run.records import alone_in
from tests.helpers import ROOT, Refused, files, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX systems")

HOLD = """
import sys
from pathlib import Path
from run.records import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def other_run(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until its stdin is closed, or until it is killed."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_changes_nothing(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr("run.records.WAIT_SECONDS", 0)
    (tmp_path / "log.txt").write_text("of the first run")
    before = files(tmp_path)
    first = other_run(tmp_path)
    try:
        refused(
            ["--coco_path", coco_root, "--epochs", 1, "--output_dir", tmp_path],
            f"--output_dir {tmp_path}: another run writes there",
        )
        assert files(tmp_path) == before
    finally:
        first.kill()
        first.wait()
    assert run("--coco_path", coco_root, "--epochs", 1, "--output_dir", tmp_path) == 0, "killed: let go of"


def test_a_run_that_is_ending_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = other_run(tmp_path)
    monkeypatch.setattr("run.records.time.sleep", lambda _: first.communicate())  # instead of sleeping
    with alone_in(tmp_path):
        assert first.returncode == 0
    assert capsys.readouterr().err.startswith(f"warning: another run writes to {tmp_path}: waiting")
    with alone_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "", "a process lets go when it ends"


def test_without_a_folder_nothing_is_held() -> None:
    with alone_in(None), alone_in(None):
        pass
