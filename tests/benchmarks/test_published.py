"""benchmarks.published: evaluates through main.py, compares, and says what is missing."""

from pathlib import Path

import pytest
import torch

import benchmarks.published as published
from tests.file_server import url_without_server
from tests.helpers import TINY, Prepared


def test_an_evaluation_becomes_a_line(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*TINY.split(), "--num_classes", "6")
    monkeypatch.setitem(published.MODELS, "r50", published.Published("ours.pth", flags, 12.0))
    monkeypatch.setattr(published, "fetch", lambda url, check: prepared.start)
    status = published.main(["--coco_path", str(prepared.root), "--models", "r50", "--num_workers", "0"])
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:2] == ["r50", "12.0"]
    assert float(line[2]) - 12.0 == pytest.approx(float(line[3]), abs=0.06)
    assert status == (0 if abs(float(line[3])) <= published.TOLERANCE else 1)


def test_missing_network_and_data_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(published, "PUBLISHED", url_without_server() + "/")
    flags = ["--coco_path", str(tmp_path), "--models", "r50", "r50-panoptic"]
    assert published.main(flags) == 2
    said = capsys.readouterr().out
    assert "could not be downloaded" in said and "needs --coco_panoptic_path" in said
