"""The one exception that speaks to a user instead of a programmer, and how a command line ends on it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one clear line that names the file, id or flag concerned and says what to do. Command
    lines print it on stderr without a traceback and end with exit status 2.
    """

    def one_line(self) -> str:
        """The message alone, without the traceback that torch's data loader puts around a worker's error."""
        lines = str(self).strip().splitlines()
        if lines and lines[0].startswith("Caught "):
            return lines[-1].split("UserError: ", 1)[-1]
        return " ".join(lines)  # a file's name may hold line ends


def warn(text: str) -> None:
    """One line on stderr, about what goes on all the same."""
    print(f"warning: {text}", file=sys.stderr)


def escape_unprintable() -> None:
    """Let what an output's encoding lacks be escaped, as 红色 in cp1252, instead of ending a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def files_named() -> Iterator[None]:
    """What the system says of a file becomes a mistake that the user can correct; other errors stay.

    Standard output is a file as well: its disk may be full, or its reader gone.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        name = "standard output" if error.filename is None and _output_is_lost() else error.filename
        if name is None or not error.strerror:
            raise
        raise UserError(f"{name}: {error.strerror[0].lower()}{error.strerror[1:]}") from error


def _output_is_lost() -> bool:
    """Whether standard output fails; its rest then goes nowhere, lest the interpreter's end fail."""
    try:
        print(flush=True)  # what failed has been dropped: a flush alone would go well
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


def exit_status(command: Callable[[], int | None], debug: bool = False) -> int:
    """Carry out what a command line asks for -> its exit status.

    That is what `command` returns or passes to sys.exit, None meaning 0; 2 for a UserError or a file that the
    system denies, with a message on stderr; 130 for an interruption from the keyboard.

    Args:
        debug: let a UserError through, with its traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # under pythonw.exe, or closed: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    escape_unprintable()
    try:
        with files_named():
            return command() or 0
    except UserError as error:
        if debug:
            raise
        print(f"error: {error.one_line()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stopped:  # a signal, once all is saved
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
