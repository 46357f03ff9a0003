"""Files that are whole or absent: each is written next to its place under a hidden name, then renamed.

And what a file is that should have been a picture or an annotation file.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.errors import UserError

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: git lfs pull fetches it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"<!doctype html": "a web page, as a download that failed leaves it",
    b"<html": "a web page, as a download that failed leaves it",
}
LONGEST = 64  # bytes that suffice


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


def make_writable(folder: Path, named: str) -> None:
    """Make a folder if it is missing, and write a file without a name there.

    Permissions do not say what a read-only file system or root may do.

    Args:
        named: the flag that it comes from and its value, for messages.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{named}: nothing can be written to {folder} ({reason}); name another folder"
        ) from error


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


def what_it_is(data: bytes) -> str:
    """What the first bytes of a file show; '' where they show nothing of the usual mistakes."""
    if not data:
        return "an empty file"
    start = data[:LONGEST].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((said for begin, said in _BEGINNINGS.items() if start.startswith(begin.lower())), "")
