"""The project gives what the published implementation gives: tests/reference/README.md."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import needs_scripting
from tests.reference.compare import compare, tolerance
from tests.reference.registry import CASES, STORED_FILE, stored_values

STORED_DIGEST = "e4d63ce5d5c08eb1bb9839a3c8dd46316cd9d50ecdb9744640d6a7b244ea590e"


@pytest.mark.parametrize("name", CASES)
def test_equals_published(name: str, tmp_path: Path) -> None:
    if name == "script":
        needs_scripting()
    case = CASES[name]
    seed, stored = stored_values()
    torch.manual_seed(0)
    differences = compare(stored[name], case.compute(seed, tmp_path))
    listed = "\n".join(differences)
    assert not differences, f"{len(differences)} of {len(stored[name])} values differ:\n{listed}"


def test_every_stored_value_belongs_to_a_case() -> None:
    assert set(stored_values()[1]) == set(CASES)


def test_stored_values_are_the_published_ones() -> None:
    """Values stored anew from this project would prove nothing."""
    assert hashlib.sha256(STORED_FILE.read_bytes()).hexdigest() == STORED_DIGEST


def _unchanged(key: str, stored: np.ndarray) -> np.ndarray:
    """`stored` as a case gives it: without the allowed deviations of statistics."""
    return stored[0] if key.endswith("~") else stored


def _allowed_deviation(key: str, stored: np.ndarray) -> np.ndarray:
    if key.endswith("~"):
        return stored[1]
    relative, absolute = tolerance(key)
    return absolute + relative * np.abs(stored.astype(np.float64))


def _is_rounded(key: str, stored: np.ndarray) -> bool:
    return stored.dtype.kind == "f" and not key.endswith("/area")


def _plant_smallest(key: str, stored: np.ndarray) -> np.ndarray:
    """`stored` with the least fault that its rule must find, in its last element."""
    planted = _unchanged(key, stored).copy()
    if _is_rounded(key, stored):
        planted = planted.astype(np.float64)
        planted.flat[-1] += 1.1 * _allowed_deviation(key, stored).flat[-1]
    elif key.endswith("/ids"):
        planted.flat[-(stored.size * 2 // 1000 + 1) :] += 1
    elif stored.dtype.kind == "U":
        planted = planted.astype(object)
        planted.flat[-1] += "x"
        planted = planted.astype(str)
    elif stored.dtype.kind == "b":
        planted.flat[-1] = ~planted.flat[-1]
    else:
        planted.flat[-1] += 1
    return planted


def _faults(key: str, stored: np.ndarray) -> list[np.ndarray]:
    """Values that differ from `stored`: the least fault, one element too many, and NaN."""
    right = _unchanged(key, stored)
    faults = []
    if stored.size:
        faults.append(_plant_smallest(key, stored))
    if not key.endswith("/includes"):  # more is allowed there
        faults.append(np.append(right, np.zeros(1, right.dtype)))
    if stored.size and _is_rounded(key, stored):
        faults.append(np.full_like(right, np.nan))
    return faults


@pytest.mark.parametrize("name", CASES)
def test_comparison_finds_a_fault_in_any_value(name: str) -> None:
    """Each key in turn gets each fault: its line is reported, and no other."""
    stored = stored_values()[1][name]
    unchanged = {key: _unchanged(key, value) for key, value in stored.items()}
    assert compare(stored, unchanged) == []
    for key, value in stored.items():
        for fault in _faults(key, value):
            (line,) = compare(stored, {**unchanged, key: fault})
            assert line.startswith(f"{key}: ")


@pytest.mark.parametrize("name", CASES)
def test_comparison_allows_rounding(name: str) -> None:
    stored = stored_values()[1][name]
    rounded = {
        key: _unchanged(key, value) + 0.9 * _allowed_deviation(key, value)
        if _is_rounded(key, value)
        else _unchanged(key, value)
        for key, value in stored.items()
    }
    assert compare(stored, rounded) == []


def test_comparison_reports_missing_and_unknown_keys() -> None:
    value = np.zeros(2)
    assert compare({"a/out": value}, {"b/out": value}) == [
        "a/out: no such value here",
        "b/out: no such published value",
    ]


def test_comparison_says_where_and_by_how_much() -> None:
    statistics = np.array([[1.0, 2.0], [0.1, 0.1]])
    names = np.array(["first", "second"])
    stored = {"case/names": names, "case/std~": statistics, "case/out": np.ones((2, 2))}
    actual = {"case/names": names, "case/std~": np.array([1, 2.5]), "case/out": np.array([[1, 1], [1.5, 1]])}
    assert compare(stored, actual) == [
        "case/std~: 1 of 2 statistics deviate, most at second: 2.5, published 2 ± 0.1",
        "case/out: 1 of 4 values differ, most at [1, 0]: 1.5, published 1, difference 0.5, allowed 0.00012",
    ]


def test_contents_may_be_more_than_published() -> None:
    key = "case/files/includes"
    stored = {key: np.array(["a", "b"])}
    assert compare(stored, {key: np.array(["a", "b", "c"])}) == []
    assert compare(stored, {key: np.array(["b", "c"])}) == [f"{key}: lacks ['a']"]
