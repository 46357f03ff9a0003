"""The folder of a run: made where it is missing, held by one run; two would spoil each other's files."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from util.errors import UserError, warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WAIT_SECONDS = 30  # a run that was killed or requeued may still be ending, its data workers above all
POLL_SECONDS = 0.5


def output_folder(args: Namespace) -> Path | None:
    """`--output_dir` as a folder that exists and can be written to, None where nothing is to be saved.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    if not args.output_dir:
        return None
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output_dir {folder}: nothing can be written there")
    return folder


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Hold a folder as long as the context lasts; the system lets go of it where the process dies.

    The folder itself is locked, so that nothing is left in it. Where the system locks no folders (Windows,
    some network file systems) nothing is held.

    Args:
        folder: of `--output_dir`; None: this process writes nothing.

    Raises:
        UserError: another run holds it, and still does after WAIT_SECONDS.
    """
    if folder is None or fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    said = False
    while not _locked(handle):
        if time.monotonic() >= deadline:
            raise UserError(
                f"--output_dir {folder}: another run writes there; end that one, or pass another folder"
            )
        if not said:
            warn(f"another run writes to {folder}: waiting up to {WAIT_SECONDS} s for its end")
            said = True
        time.sleep(POLL_SECONDS)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that locks no folders
        pass
    return True
