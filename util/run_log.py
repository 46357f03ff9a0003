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

from util.errors import UserError
from util.harmless_objects import harmless_types


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
        UserError: there is no such file, or no finished epoch in it.
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: no log to read there ({error.strerror}); pass the folder of a run, its --output_dir"
        ) from error
    epochs: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record.setdefault("epoch", len(epochs))
        except (ValueError, AttributeError):
            if number < len(lines):
                warnings.warn(f"{path}: line {number} is not a JSON object and is left out", stacklevel=2)
            continue
        epochs = [earlier for earlier in epochs if earlier["epoch"] < record["epoch"]] + [record]
    if not epochs:
        raise UserError(f"{path}: holds no finished epoch yet")
    return epochs


def load_runs(logs: Sequence[str | os.PathLike], log_name: str = "log.txt") -> list[Run]:
    """Read runs by their folders (or log files), named by folder, with its parent where names are equal."""
    files = [path if path.is_file() else path / log_name for path in map(Path, logs)]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):
        names = ["/".join(file.resolve().parts[-3:-1]) for file in files]
    return [Run(name, file, read_log(file)) for name, file in zip(names, files, strict=True)]


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
