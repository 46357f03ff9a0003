"""What training wrote about a run, read back: log.txt and the files of its eval folder."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from util.errors import UserError, warn
from util.harmless_objects import harmless_types

WHAT_TO_PASS = "pass the folder of a run, its --output_dir"


class NoEpochYet(UserError):
    """A run that is still in its first epoch."""


class Run(NamedTuple):
    """One training run: its name in legends, its log file, and its epochs in order."""

    name: str
    log: Path
    epochs: list[dict[str, Any]]


def read_log(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The epochs of a log.txt, in order.

    A last line that is still being written is left out; an unreadable line before it is, with a warning. An
    epoch that comes again (a run that was resumed, or started anew in the same folder) replaces what was
    logged from that epoch on.

    Raises:
        NoEpochYet: nothing is in it yet, or the first line is still being written.
        UserError: there is no such file, or it is no log of training.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: no log to read there ({error.strerror}); pass the folder of a run, its --output_dir"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text, and so no log of training; {WHAT_TO_PASS}") from error
    epochs: list[dict[str, Any]] = []
    unreadable = []
    for number, line in enumerate(lines, 1):
        record = _record(line, len(epochs))
        if record is not None:
            epochs = [earlier for earlier in epochs if earlier["epoch"] < record["epoch"]] + [record]
        elif line.strip():
            unreadable.append(number)
    is_half_written = len(lines) == 1 and lines[0].startswith("{") and not lines[0].endswith("}")
    if unreadable and not epochs and not is_half_written:
        raise UserError(f"{path}: no line of it is an epoch's record of training; {WHAT_TO_PASS}")
    if not epochs:
        raise NoEpochYet(f"{path}: holds no finished epoch yet")
    unreadable = [number for number in unreadable if number < len(lines)]
    if unreadable:
        more = f", and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        warnings.warn(
            f"{path}: line {unreadable[0]} is no record of an epoch and is left out{more}", stacklevel=2
        )
    return epochs


def _record(line: str, epoch: int) -> dict[str, Any] | None:
    """A line of the log, None for another; `epoch` is its number where it does not say."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not any(key.startswith(("train_", "test_")) for key in record):
        return None
    number = record.setdefault("epoch", epoch)
    return record if isinstance(number, int) else None


def load_runs(logs: Sequence[str | os.PathLike], log_name: str = "log.txt") -> list[Run]:
    """Read runs by their folders (or log files), named by folder, with its parent where names are equal.

    One that is still in its first epoch is left out, with a warning, unless none has finished one.

    Raises:
        UserError: there is none, or a log is missing or none of training.
    """
    if not logs:
        raise UserError(f"no run to draw; {WHAT_TO_PASS}")
    files = [path if path.is_file() else path / log_name for path in map(Path, logs)]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):
        names = ["/".join(file.resolve().parts[-3:-1]) for file in files]
    runs = []
    for name, file in zip(names, files, strict=True):
        try:
            if file.parent.is_dir() and not file.exists():  # the first epoch's end writes it
                raise NoEpochYet(f"{file}: there is no log yet; {WHAT_TO_PASS}")
            runs.append(Run(name, file, read_log(file)))
        except NoEpochYet as error:
            waiting = error
            if len(files) > 1:
                warn(f"{error} (left out)")
    if not runs:
        raise waiting
    return runs


def read_evaluation(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """precision, recall and scores of a COCOeval's `eval` dict. Nothing in the file is executed.

    Returns:
        precision and scores: [IoU, R, K, areas, limits] over IoU thresholds, recall steps and classes;
        recall: [IoU, K, areas, limits]. -1 where there is nothing to find.

    Raises:
        UserError: there is no such file, or something else in it.
    """
    import torch
    from pycocotools.cocoeval import Params

    try:
        with torch.serialization.safe_globals([Params, *harmless_types()]):
            evaluation = torch.load(path, map_location="cpu", weights_only=True)
        return {name: np.asarray(evaluation[name]) for name in ("precision", "recall", "scores")}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not an evaluation that training stored under eval/ ({reason})") from error
