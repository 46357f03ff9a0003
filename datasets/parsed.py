"""Annotation files that the doctor and training both read: parsed once, while both are at work.

Parsing COCO's training set takes seconds, and so does every search for garbage among its millions of records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from util.collector import paused_collector, return_freed_memory

_held: dict[tuple[str, int, int], Any] | None = None  # content by path, time and size; None: nothing is held


@contextmanager
def held_parsed() -> Iterator[None]:
    """Inside, `parse` parses a file once while it does not change; behind it the memory is given back."""
    global _held
    outermost = _held is None
    with paused_collector():
        if outermost:
            _held = {}
        try:
            yield
        finally:
            if outermost:
                _held = None
                return_freed_memory()


def parse(path: str | Path) -> Any:
    """What a JSON file holds; not to be changed, others may be given the same.

    Raises:
        OSError: the file cannot be read.
        json.JSONDecodeError, UnicodeDecodeError: it is no JSON text.
    """
    with open(path, encoding="utf-8") as file:
        if _held is None:
            return _load(file)
        status = os.fstat(file.fileno())
        key = os.path.realpath(path), status.st_mtime_ns, status.st_size
        if key not in _held:
            _held[key] = _load(file)
        return _held[key]


def _load(file: TextIO) -> Any:
    try:
        return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise json.JSONDecodeError("Lists or objects nested too deeply", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("A number of thousands of digits", "", 0) from None
