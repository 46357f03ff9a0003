"""Random annotation files, spoiled at random: nothing outside is written, nothing is lost uncounted."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doctor.check import find_sources
from doctor.columns import RawFile
from doctor.convert import run as convert
from doctor.correction import tally_of
from doctor.fix import write_corrected
from tests.doctor.red_rectangles import coco_of, hashes, landed, save_picture, write_json
from util.errors import UserError

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis (requirements-dev.txt)")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

COUNT = 3
IDS = st.one_of(st.integers(-3, 9), st.floats(0, 9), st.text(max_size=4), st.uuids().map(str), st.none())
SCALARS = st.one_of(IDS, st.booleans(), st.lists(st.integers(-5, 200), max_size=5))
NAMES = ("../../own/{}", "{}", "a\\{}", "/nowhere/{}", " {} ", "train//{}", "https://e.org/{}", "../{}")


def _retype(content: dict[str, Any], draw: Callable[..., Any]) -> None:
    """Ids of another type, alike on both sides: nothing of it may be lost."""
    kind = draw(st.sampled_from([str, float, lambda n: f"{n:#x}-x", lambda n: n]))
    for image in content["images"]:
        image["id"] = kind(image["id"])
    for one in content["annotations"]:
        one["image_id"] = kind(one["image_id"])


def _rename(content: dict[str, Any], draw: Callable[..., Any]) -> None:
    for image in content["images"]:
        image["file_name"] = draw(st.sampled_from(NAMES)).format(image["file_name"])


def _break_value(content: dict[str, Any], draw: Callable[..., Any]) -> None:
    section = draw(st.sampled_from(["images", "annotations", "categories"]))
    record = draw(st.sampled_from(content[section]))
    if isinstance(record, dict):
        record[draw(st.sampled_from(sorted(record)))] = draw(SCALARS)


def _drop_key(content: dict[str, Any], draw: Callable[..., Any]) -> None:
    record = draw(st.sampled_from(content[draw(st.sampled_from(["images", "annotations"]))]))
    if isinstance(record, dict):
        record.pop(draw(st.sampled_from(sorted(record))), None)


def _repeat(content: dict[str, Any], draw: Callable[..., Any]) -> None:
    records = content[draw(st.sampled_from(["images", "annotations", "categories"]))]
    records.append(copy.deepcopy(draw(st.sampled_from(records))))


def _replace_record(content: dict[str, Any], draw: Callable[..., Any]) -> None:
    records = content[draw(st.sampled_from(["images", "annotations"]))]
    records[draw(st.integers(0, len(records) - 1))] = draw(SCALARS)


HARMLESS = [_retype, _rename]
SPOILINGS = [_break_value, _drop_key, _repeat, _replace_record]


def write_set(root: Path, spoil: list, draw: Callable[..., Any]) -> dict[str, Any]:
    """Train and val with pictures in the folder and beside it -> the contents of the files."""
    contents = {}
    for place, split in enumerate(("train", "val")):
        content = coco_of(COUNT, COUNT * place)
        for number in range(COUNT * place, COUNT * (place + 1)):
            save_picture(root / "set" / f"{split}2017" / f"{number}.png", number)
            save_picture(root / "own" / f"{number}.png", number)
        for one in spoil:
            one(content, draw)
        contents[split] = content
        write_json(root / "set" / "annotations" / f"instances_{split}2017.json", content)
    return contents


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_wrong_nothing_is_lost_without_a_word(data: Any) -> None:
    first = data.draw(st.lists(st.sampled_from(HARMLESS), unique=True))
    spoil = first + data.draw(st.lists(st.sampled_from(SPOILINGS), min_size=0 if first else 1, max_size=3))
    harmless = spoil == first
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        contents = write_set(root, spoil, data.draw)
        before = hashes(root)
        for name, make in (("fixed", _fix), ("converted", _convert)):
            try:
                lines = make(root / "set", root / name)
            except UserError as error:
                assert not harmless, error
                lines = []
            after = hashes(root)
            assert {path: after[path] for path in before} == before  # nothing of the user's has changed
            new = after.keys() - before.keys()
            assert all(Path(path).is_relative_to(root / name) for path in new)
            assert not any("unexplained" in line for line in lines)
            if harmless:
                assert landed(root / name) == (1.0, 2 * COUNT)
            elif new and name == "fixed":
                _check_counts(contents, root / name, lines)
            before = after


def _fix(source: Path, out: Path) -> list[str]:
    return write_corrected(find_sources(source), out, drop=True)


def _convert(source: Path, out: Path) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        convert(["coco", str(source), str(out)])
    return text.getvalue().splitlines()


def _check_counts(contents: dict[str, Any], out: Path, lines: list[str]) -> None:
    """The objects of the source are there, or a line says how many are not."""
    for split, content in contents.items():
        file = out / "annotations" / f"instances_{split}2017.json"
        if not file.exists():
            assert any("cannot be corrected" in line for line in lines)
            continue
        before = tally_of(RawFile(Path(split), content))
        counted: Counter[str] = sum((before.objects, Counter()), Counter())
        line = next(line for line in lines if line.startswith(f"{split}: "))
        assert line.startswith(f"{split}: {before} before; "), (line, counted)
