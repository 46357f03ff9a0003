"""The block that is printed before a run, and the state of the code that it names."""

import subprocess

import pytest
from torch import nn

import util.machine
from run.summary import CLASSES_SHOWN, Split, run_summary
from util.machine import get_sha


def model():
    module = nn.Sequential(nn.Linear(1000, 3), nn.Linear(3, 2))
    module[1].requires_grad_(False)
    return module


def test_the_block_holds_sizes_parameters_facts_and_classes():
    splits = [Split("train", 12345, {1: 40000, 7: 2}), Split("val", 50, {7: 31})]
    text = run_summary(splits, {1: "bolt", 7: "nut"}, model(), {"device": "cpu", "effective batch": 16})
    rows = [line.split() for line in text.splitlines()]
    assert rows == [
        ["train", "data", "12,345", "images,", "40,002", "objects"],
        ["val", "data", "50", "images,", "31", "objects"],
        ["parameters", "3,003", "train,", "8", "are", "frozen"],
        ["device", "cpu"],
        ["effective", "batch", "16"],
        ["id", "class", "train", "objects", "val", "objects"],
        ["1", "bolt", "40,000", "0"],
        ["7", "nut", "2", "31"],
    ]


def test_columns_stand_below_each_other():
    splits = [Split("train", 1, {1: 1234567}), Split("val", 1, {})]
    names = {1: "a", 20000: "a name that is longer than its column is"}
    lines = run_summary(splits, names, model(), {"a long title": "x"}).splitlines()
    facts, table = lines[:4], lines[4:]
    values = ("1 images, 1,234,567", "1 images, 0", "3,003 train", "x")
    assert len({line.index(value) for line, value in zip(facts, values, strict=True)}) == 1
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("hidden", [0, 3])
def test_long_lists_of_classes_are_cut(hidden):
    names = {i: f"thing{i}" for i in range(CLASSES_SHOWN + hidden)}
    lines = run_summary([Split("val", 1, {})], names, model(), {}).splitlines()
    assert sum(" thing" in line for line in lines) == CLASSES_SHOWN
    last = f"... and {hidden} more classes" if hidden else f"{CLASSES_SHOWN - 1}  thing{CLASSES_SHOWN - 1}"
    assert lines[-1].strip().startswith(last)


# --- git ----------------------------------------------------------------------------------------------


def git(folder, *words):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", *identity, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_state_and_branch_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(util.machine, "REPOSITORY", tmp_path)
    git(tmp_path, "init", "--initial-branch", "trunk")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert len(sha) >= 40
    assert get_sha() == f"sha: {sha}, status: clean, branch: trunk"
    (tmp_path / "a.txt").write_text("two, which is longer")
    assert get_sha() == f"sha: {sha}, status: has uncommitted changes, branch: trunk"


def test_without_a_repository_or_git_there_is_no_sha(tmp_path, monkeypatch):
    monkeypatch.setattr(util.machine, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert get_sha() == "sha: N/A, status: clean, branch: N/A"
    monkeypatch.setenv("PATH", "")
    assert get_sha() == "sha: N/A, status: clean, branch: N/A"
