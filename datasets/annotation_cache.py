"""Packed annotation files kept on disk: COCO's training set is read in 10 s as JSON, in under one as arrays.

They lie in the user's cache folder, one file for each content: an annotation file that changes is packed
anew. `DETR_CACHE` names another folder, and turns the cache off where it is empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from datasets import json_columns

LEAST_BYTES = 8 << 20  # smaller files are read faster than a user wonders what lies in the cache
KEPT = 16  # entries, by their last use
_STATE = "state"


def cache_folder() -> Path | None:
    """`DETR_CACHE`, or `detr` in the user's cache folder; None where `DETR_CACHE` is empty."""
    chosen = os.environ.get("DETR_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr"


def entry_of(path: str | Path, form: type) -> Path | None:
    """Where the packed content of a file belongs; None where the file is small or there is no cache.

    The name is a hash of the file and of the code that packs it, so that neither can be out of date.

    Raises:
        OSError: the file cannot be read.
    """
    folder = cache_folder()
    if folder is None or os.path.getsize(path) < LEAST_BYTES:
        return None
    digest = hashlib.sha256()
    for name in (*(base.__module__ for base in form.__mro__[:-1]), json_columns.__name__):
        source = getattr(sys.modules[name], "__file__", None)
        if source is not None:
            digest.update(Path(source).read_bytes())
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return folder / f"{form.__name__}-{digest.hexdigest()[:32]}.npz"


def read_entry(entry: Path) -> dict[str, Any] | None:
    """What `write_entry` was given; None where there is no such entry, or it is damaged."""
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            values = dict(arrays)
        os.utime(entry)  # its last use
        state = json.loads(values.pop(_STATE).tobytes())
    except Exception:  # a damaged archive raises whatever its damage leads to, and is made anew
        return None
    tables = {name: {int(key): value for key, value in pairs} for name, pairs in state["tables"].items()}
    return {**values, **state["values"], **tables}


def write_entry(entry: Path, values: dict[str, Any]) -> None:
    """Keep arrays, numbers, texts and dicts with integer keys; no effect where nothing can be written."""
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    tables = {name: list(value.items()) for name, value in values.items() if isinstance(value, dict)}
    plain = {name: value for name, value in values.items() if name not in arrays and name not in tables}
    state = np.frombuffer(json.dumps({"values": plain, "tables": tables}).encode(), dtype=np.uint8)
    keep(entry, lambda file: np.savez(file, allow_pickle=False, **{_STATE: state}, **arrays))
    with contextlib.suppress(OSError):
        entries = sorted(entry.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        for old in entries[:-KEPT]:
            old.unlink(missing_ok=True)


def keep(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file of the cache whole, or not at all: a full or read-only disk costs time alone."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                write(file)
                file.flush()  # the name is for what is whole
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(entry: Path) -> Iterator[None]:
    """Hold the cache's lock, where there are locks: one of a host's ranks packs, the others read."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            entry.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(entry.parent / "lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
