"""Annotation files that are parsed once for the doctor and for training."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from datasets.annotation_file import load_once
from datasets.annotations import CocoAnnotations
from datasets.parsed import held_parsed, parse
from doctor.at_start import check_at_start, training_sources
from tests.spoiled import CleanSet, write_clean


@pytest.fixture
def clean(tmp_path: Path) -> CleanSet:
    return write_clean(tmp_path / "set")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What was parsed, file by file: as it was then, and as it is now."""
    given: list[tuple[Any, Any]] = []
    load = json.load

    def recording(file: Any) -> Any:
        content = load(file)
        given.append((copy.deepcopy(content), content))
        return content

    monkeypatch.setattr("datasets.parsed.json.load", recording)
    return given


def check_and_pack(data: CleanSet) -> None:
    check_at_start("warn", "coco", data.root, num_classes=4, masks=True)
    for source in training_sources("coco", data.root).values():
        load_once(source.annotations, CocoAnnotations)


def test_the_doctor_and_training_parse_a_file_once(clean: CleanSet, parsed: list[tuple[Any, Any]]) -> None:
    with held_parsed():
        check_and_pack(clean)
    assert len(parsed) == 2, "one for each split"
    for before, after in parsed:
        assert before == after, "neither edits what the other reads"


def test_nothing_is_held_outside(clean: CleanSet, parsed: list[tuple[Any, Any]]) -> None:
    check_and_pack(clean)
    assert len(parsed) == 4
    path = next(iter(training_sources("coco", clean.root).values())).annotations
    with pytest.raises(RuntimeError), held_parsed():
        parse(path)
        raise RuntimeError
    assert parse(path) is not parse(path)
    assert gc.isenabled()


def test_a_file_that_changes_is_parsed_anew(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with held_parsed():
        path.write_text("[1]")
        assert parse(path) == [1]
        with held_parsed():
            assert parse(path) is parse(path)
            path.write_text("[1, 2]")
            assert parse(path) == [1, 2]
