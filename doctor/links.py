"""Putting pictures into a new data set without copying them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link(source: Path, target: Path) -> None:
    """Link `target` to `source`, or copy where the file system has no links.

    Nothing happens where the target is there already, or the source is not.
    """
    if target.exists() or not source.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)
