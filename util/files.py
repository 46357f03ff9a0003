"""Files that are whole or absent: each is written next to its place under a hidden name, then renamed."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.errors import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that is whole or absent.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); check --output_dir") from error


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys, and an `id` among them, as CSV; None becomes an empty cell.

    Raises:
        UserError: it cannot be written.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]) if rows else ["id"])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, table.getvalue())


def link_whole(path: Path, name: Path) -> None:
    """Give a file a further name, in place of whatever had it; a copy where the disk knows no links."""
    if name.exists() and name.samefile(path):
        return  # two names of one file cannot be renamed into each other
    temporary = name.with_name(f".{name.name}.{os.getpid()}.part")
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, name)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{name}: cannot be written ({error.strerror}); check --output_dir") from error
