"""benchmarks.compare: its jobs, the processes that run them, and what it says of their figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import compare, jobs
from benchmarks.inputs import write_inputs
from tests.helpers import ROOT

OPTIONS = {
    "device": "cpu",
    "amp": "off",
    "compile": False,
    "tf32": None,
    "threads": 1,
    "tiny": True,
    "batch": 0,
}
TREE_JOBS = [name for name in jobs.JOBS if name != "help"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs")
    write_inputs(path, tiny=True)
    return path


@pytest.mark.parametrize("name", TREE_JOBS)
def test_a_job_runs_and_gives_the_same_each_time(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    job = jobs.JOBS[name]
    run = job.prepare(SimpleNamespace(**OPTIONS, folder=folder, masks=job.masks, side="this"))
    results = [jobs.numbers(run()) for _ in range(2)]
    assert results[0] == pytest.approx(results[1]) and all(np.isfinite(results[0]))
    assert bool(results[0]) == (not name.startswith("step"))  # dropout: nothing to compare


def test_a_random_segmenter_is_made_to_find_segments(folder: Path) -> None:
    options = SimpleNamespace(**OPTIONS, folder=folder, masks=True, side="this")
    assert len(jobs.draw_segments(options)()) == 2  # a sixth of its twelve queries


def test_two_trees_are_compared_printed_written_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["items", "criterion", "--against", str(ROOT), "--tiny", "--rounds", "1", "--threads", "1"]
    for flag, name in (("--json", "out.json"), ("--markdown", "out.md"), ("--plot", "out.png")):
        words += [flag, str(tmp_path / name)]
    assert compare.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and all(line.endswith("equal") for line in printed[1:])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["job"] for row in rows] == ["items", "criterion"]
    assert all(row["ratio"] == pytest.approx(row["theirs"][0] / row["ours"][0]) for row in rows)
    table = (tmp_path / "out.md").read_text().splitlines()
    assert len(table) == 6 and table[-1].startswith("| criterion, 6 layers x 16 images |")
    with Image.open(tmp_path / "out.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


@pytest.mark.slow
def test_every_job_runs_on_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--against", str(ROOT), "--tiny", "--rounds", "1", "--threads", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(jobs.JOBS) + 2  # two rows of memory


@pytest.mark.slow
def test_every_job_of_transformers_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert compare.main(["--against", "hf", "--tiny", "--rounds", "1", "--threads", "1"]) == 0
    assert "memory of that" in capsys.readouterr().out


def test_a_side_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "detr.py", tmp_path / "models")
    words = ["annotations", "coco", "--against", str(tmp_path), "--tiny", "--rounds", "1", "--threads", "1"]
    assert compare.main(words) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 and all("theirs: ModuleNotFoundError: No module named" in line for line in lines)


class Answering:
    """A side that answers at once."""

    answers: dict[str, dict[str, Any]] = {}

    def __init__(self, tree: str, *_: Any):
        self.first = self.answers["ours" if tree == str(ROOT) else "theirs"]

    def ask(self, **request: Any) -> dict[str, Any]:
        return self.first

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("theirs", "equal"), [(5.01, True), (5.5, False)])
def test_results_are_compared(theirs: float, equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Worker", Answering)
    answer = {"seconds": 0.5, "memory": 2**20}
    answers = {"ours": {**answer, "result": [1.0, 5.0]}, "theirs": {**answer, "result": [1.0, theirs]}}
    monkeypatch.setattr(Answering, "answers", answers)
    (row,) = compare.compare("coco", "other", {**OPTIONS, "folder": "."}, rounds=2)
    assert row["equal"] is equal and row["ours"] == [500, 500] and row["ratio"] == 1
    assert compare.line(row).endswith("equal" if equal else "RESULTS DIFFER")


def test_ratios_are_of_medians_and_spread_over_rounds() -> None:
    found = compare.ratios([(1, 3), (2, 8), (4, 4)])
    assert found == {"ours": [1, 2, 4], "theirs": [3, 8, 4], "ratio": 2, "spread": [1, 4]}


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["nothing", "--against", str(ROOT)], "job nothing"),
        (["coco", "--against", "hf"], "job coco"),
        (["--against", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes(words: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        compare.main(words)
    assert end.value.code == 2 and fragment in capsys.readouterr().err
