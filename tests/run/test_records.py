"""log.txt, args.json and evaluations: whole files, one line an epoch, readable by any program."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from run.records import RunRecords
from util.errors import UserError
from util.files import write_whole

ARGS = argparse.Namespace(lr=1e-4, output_dir="x")


def line(epoch: int) -> dict[str, Any]:
    return {"train_loss": 1 / (epoch + 3), "epoch": epoch}


def epochs_in(folder: Path) -> list[int]:
    return [json.loads(text)["epoch"] for text in (folder / "log.txt").read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of four epochs."""
    records = RunRecords(tmp_path)
    for epoch in range(4):
        records.finish_epoch(line(epoch))
    return tmp_path / "log.txt"


def test_a_line_for_each_epoch(log: Path) -> None:
    assert epochs_in(log.parent) == [0, 1, 2, 3]
    assert log.read_text().endswith("}\n")


@pytest.mark.parametrize("epoch", range(1, 6))
def test_beginning_at_an_epoch_drops_what_comes_again(log: Path, epoch: int) -> None:
    kept = RunRecords(log.parent).begin(epoch, ARGS, {1: "bolt"})
    assert kept == [line(e) for e in range(min(epoch, 4))]
    assert epochs_in(log.parent) == list(range(min(epoch, 4)))


def test_a_new_run_puts_an_older_log_aside(log: Path, capsys: pytest.CaptureFixture) -> None:
    before = log.read_bytes()
    assert RunRecords(log.parent).begin(0, ARGS, {}) == []
    assert not log.exists()
    assert (log.parent / "log.1.txt").read_bytes() == before
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{log.parent} holds an earlier run: log.txt is kept as log.1.txt; its checkpoints" in line
    assert "--resume auto" in line and "--output_dir" in line


def test_a_log_that_needs_no_change_is_not_touched(log: Path) -> None:
    before = log.read_bytes(), log.stat().st_ino
    RunRecords(log.parent).begin(4, ARGS, {})
    assert (log.read_bytes(), log.stat().st_ino) == before


@pytest.mark.parametrize("cut", [1, 2, 10, 30])
def test_a_line_that_was_cut_off_is_repaired(log: Path, cut: int) -> None:
    """Whatever is left of the last line, the next one begins a line of its own."""
    whole = log.read_text()
    log.write_text(whole[:-cut])
    records = RunRecords(log.parent)
    kept = records.begin(4, ARGS, {})
    assert [one["epoch"] for one in kept] == ([0, 1, 2, 3] if cut == 1 else [0, 1, 2])
    for epoch in range(len(kept), 6):
        records.finish_epoch(line(epoch))
    assert log.read_text().startswith(whole)
    assert epochs_in(log.parent) == list(range(6))


@pytest.mark.parametrize("foreign", ["[1, 2]", "null", "text", '{"epoch": "3"}', "\x00"])
def test_lines_that_are_no_epochs_are_dropped(log: Path, foreign: str) -> None:
    log.write_text(foreign + "\n" + log.read_text())
    assert [one["epoch"] for one in RunRecords(log.parent).begin(9, ARGS, {})] == [0, 1, 2, 3]
    assert epochs_in(log.parent) == [0, 1, 2, 3]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    for name in (".checkpoint.pth.77.part", "eval/.latest.pth.77.part"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "mine.part").write_bytes(b"a user's own")
    RunRecords(tmp_path).begin(0, ARGS, {})
    assert [path.name for path in tmp_path.rglob("*.part")] == ["mine.part"]


def test_figures_that_are_not_numbers_are_null(tmp_path: Path) -> None:
    RunRecords(tmp_path).finish_epoch({"epoch": 0, "a": math.nan, "b": [1.0, math.inf], "c": {"d": math.nan}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    written = json.loads((tmp_path / "log.txt").read_text(), parse_constant=refuse)
    assert written == {"epoch": 0, "a": None, "b": [1.0, None], "c": {"d": None}}


def test_args_hold_flags_versions_and_categories(tmp_path: Path) -> None:
    RunRecords(tmp_path).begin(0, argparse.Namespace(lr=0.5, path=Path("a/b")), {1: "bolt"})
    written = json.loads((tmp_path / "args.json").read_text())
    assert written["args"] == {"lr": 0.5, "path": "a/b"}
    assert written["categories"] == {"1": "bolt"}
    assert {"python", "torch", "numpy"} <= written["versions"].keys() and "git" in written
    assert torch.__version__.startswith(written["versions"]["torch"])


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = RunRecords(None)
    assert records.begin(0, ARGS, {}) == []
    records.finish_epoch(line(0))
    records.write_stats({"a": 1})
    records.close()
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written_is_a_clear_mistake(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(UserError, match=r"log\.txt: cannot be written"):
        RunRecords(tmp_path).finish_epoch(line(0))


def test_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "before")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_whole(path, "behind")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]
