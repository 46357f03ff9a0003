"""When a run saves itself, and the files that it keeps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import run.saving
from run.resume import make_newest, newest_whole
from run.saving import Saver
from util.checkpoint_file import keep_predecessors, predecessors, save_checkpoint
from util.interruption import Interruption
from util.meters import MetricLogger


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run.saving, "time", clock)
    return clock


def saver(folder: Path | None, **changed: Any) -> Saver:
    settings: dict[str, Any] = {"every_minutes": 0, "every_steps": 0, "keep": 1}
    state: Callable[[], Mapping[str, Any]] = lambda: {"model": {"w": torch.ones(2)}}  # noqa: E731
    return Saver(folder, state, interruption=Interruption(), **settings | changed)


def steps_saved(folder: Path, run: Saver, steps: int, advance: Callable[[], None] = lambda: None) -> list:
    """The positions (epoch, step) of the checkpoints that an epoch of so many steps writes."""
    after_step, found, path = run.inside_epoch(4), [], folder / "checkpoint.pth"
    for step in range(1, steps + 1):
        advance()
        after_step(step, MetricLogger())
        if path.exists():
            saved = torch.load(path, weights_only=True)
            found.append((saved["epoch"], saved["step"]))
            path.unlink()
    return found


def test_saves_every_so_many_steps(tmp_path):
    assert steps_saved(tmp_path, saver(tmp_path, every_steps=3), 7) == [(3, 3), (3, 6)]


def test_saves_every_so_many_minutes(tmp_path, clock):
    def half_a_minute() -> None:
        clock.now += 30

    assert steps_saved(tmp_path, saver(tmp_path, every_minutes=1), 5, half_a_minute) == [(3, 2), (3, 4)]


def test_any_save_starts_the_minutes_anew(tmp_path, clock):
    run = saver(tmp_path, every_minutes=1)
    clock.now += 59
    run.save(3)
    (tmp_path / "checkpoint.pth").unlink()
    clock.now += 59
    assert steps_saved(tmp_path, run, 1) == []
    clock.now += 1
    assert steps_saved(tmp_path, run, 1) == [(3, 1)]


def test_zero_means_never_inside_an_epoch(tmp_path, clock):
    def a_day() -> None:
        clock.now += 86400

    assert steps_saved(tmp_path, saver(tmp_path), 5, a_day) == []


def test_without_a_folder_nothing_is_written_and_a_signal_still_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = saver(None, every_steps=1)
    run.inside_epoch(0)(1, MetricLogger())
    run.copy_as("checkpoint_best.pth")
    run.interruption.received = 15
    with pytest.raises(SystemExit):
        run.inside_epoch(0)(2, MetricLogger())
    assert not list(tmp_path.iterdir())


def test_a_signal_is_obeyed_after_the_saving(tmp_path, monkeypatch):
    run = saver(tmp_path)
    seen = []

    def obey(number: int) -> None:
        seen.append((number, (tmp_path / "checkpoint.pth").exists()))

    monkeypatch.setattr(run.interruption, "obey", obey)
    after_step = run.inside_epoch(0)
    after_step(1, MetricLogger())
    run.interruption.received = 10
    after_step(2, MetricLogger())
    assert seen == [(10, True)]


def test_meters_and_random_numbers_of_the_process_are_in_the_checkpoint(tmp_path):
    logger = MetricLogger()
    logger.update(loss=2.5)
    run = saver(tmp_path, every_steps=1)
    expected = torch.get_rng_state()
    run.inside_epoch(0)(1, logger)
    (own,) = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["ranks"]
    assert own["meters"]["loss"]["total"] == 2.5
    assert torch.equal(own["random"]["torch"], expected)


# --- Earlier versions ----------------------------------------------------------------------------------


def save(folder: Path, number: int, keep: int) -> None:
    save_checkpoint({"model": {"w": torch.full((50,), float(number))}}, folder / "checkpoint.pth", keep)


def held(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["model"]["w"][0])


def versions(folder: Path) -> list[float]:
    """What each version holds, the newest first."""
    newest = folder / "checkpoint.pth"
    return [held(path) for path in [newest, *predecessors(newest)]]


@pytest.mark.parametrize("keep", [0, 1, 2, 12])
def test_that_many_earlier_versions_are_kept(tmp_path, keep):
    for number in range(15):
        save(tmp_path, number, keep)
    assert versions(tmp_path) == [float(14 - i) for i in range(keep + 1)]
    assert len(list(tmp_path.iterdir())) == keep + 1, "and nothing else"


@pytest.mark.parametrize("fewer", [0, 1])
def test_keeping_fewer_removes_the_others(tmp_path, fewer):
    for number in range(5):
        save(tmp_path, number, 3)
    save(tmp_path, 5, fewer)
    assert versions(tmp_path) == [5.0, 4.0][: fewer + 1]


def test_an_interruption_from_the_keyboard_is_no_full_disk(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=0)

    def interrupted(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, keep=0)
    assert versions(tmp_path) == [1]


def test_a_copy_stays_what_it_was(tmp_path):
    """Copies share the file's bytes on disk: nothing may ever be written into them."""
    run = saver(tmp_path, keep=1)
    run.save(0)
    run.copy_as("checkpoint_best.pth")
    before = (tmp_path / "checkpoint_best.pth").read_bytes()
    assert before == (tmp_path / "checkpoint.pth").read_bytes()
    for epoch in range(1, 4):
        run.save(epoch)
        assert (tmp_path / "checkpoint_best.pth").read_bytes() == before
    run.copy_as("checkpoint_best.pth")
    assert torch.load(tmp_path / "checkpoint_best.pth", weights_only=True)["epoch"] == 3


def test_a_copy_made_twice_leaves_no_temporary_file(tmp_path):
    run = saver(tmp_path)
    run.save(0)
    for _ in range(2):
        run.copy_as("checkpoint_best.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "checkpoint_best.pth"]


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    for number in range(3):
        save(tmp_path, number, 1)
    assert versions(tmp_path) == [2.0, 1.0]


def test_a_kill_between_rotation_and_replacement_costs_no_version(tmp_path):
    for number in range(3):
        save(tmp_path, number, 2)
    keep_predecessors(tmp_path / "checkpoint.pth", 2)  # ... and killed
    assert versions(tmp_path) == [2.0, 2.0, 1.0]
    save(tmp_path, 3, 2)
    assert versions(tmp_path) == [3.0, 2.0, 1.0]


def test_at_every_moment_of_saving_the_newest_version_has_its_name(tmp_path, monkeypatch):
    import os
    from pathlib import Path as AnyPath

    save(tmp_path, 0, 1)
    save(tmp_path, 1, 1)
    seen = []

    def watched(function: Callable) -> Callable:
        def call(*words: Any, **more: Any) -> Any:
            seen.append(held(tmp_path / "checkpoint.pth"))
            result = function(*words, **more)
            seen.append(held(tmp_path / "checkpoint.pth"))
            return result

        return call

    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for name in ("unlink", "rename"):
        monkeypatch.setattr(AnyPath, name, watched(getattr(AnyPath, name)))
    save(tmp_path, 2, 1)
    assert len(seen) >= 8
    assert seen == sorted(seen), "the former version until the new one has its name"
    assert set(seen) == {1.0, 2.0}


# --- The newest whole one ------------------------------------------------------------------------------


def test_no_checkpoint_at_all(tmp_path):
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "absent") is None


def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path, capsys):
    for number in range(4):
        save(tmp_path, number, 3)
    for name in ("checkpoint.pth", "checkpoint.1.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
    found = newest_whole(tmp_path)
    assert found is not None and found[0].name == "checkpoint.2.pth"
    assert float(found[1]["model"]["w"][0]) == 1.0
    said = capsys.readouterr().err.splitlines()
    assert [
        str(tmp_path / name) in line
        for name, line in zip(("checkpoint.pth", "checkpoint.1.pth"), said, strict=True)
    ] == [True, True]


def test_the_rotation_never_drops_the_only_whole_version(tmp_path):
    save(tmp_path, 0, 1)
    save(tmp_path, 1, 1)
    (tmp_path / "checkpoint.pth").write_bytes(b"damaged")
    make_newest(tmp_path / "checkpoint.1.pth")
    assert versions(tmp_path) == [0.0, 0.0]
    assert (tmp_path / "checkpoint.damaged.pth").read_bytes() == b"damaged"
    save(tmp_path, 2, 1)
    assert versions(tmp_path) == [2.0, 0.0]


def test_making_the_newest_the_newest_changes_nothing(tmp_path):
    save(tmp_path, 0, 1)
    make_newest(tmp_path / "checkpoint.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]
