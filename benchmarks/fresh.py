"""Fresh processes, so that no stage finds what an earlier one has left.

The C library keeps freed memory. Work that is given such memory is spared the pages that it would touch first
in a process of its own, as a user runs it: up to a third of its time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings
from util.errors import UserError, exit_status

ROOT = Path(__file__).resolve().parents[1]


def call(module: str, settings: Settings, *words: str) -> Any:
    """What `python -m MODULE SETTINGS WORD…` prints in its last line, which is JSON.

    Raises:
        UserError: the process ends with 2, for a mistake of the user.
        RuntimeError: it fails otherwise; its last lines are told.
    """
    given = json.dumps({**asdict(settings), "folder": str(settings.folder.resolve())})
    return last_line(module, given, *words)


def last_line(module: str, *words: str, **environment: str) -> Any:
    """The same of `python -m MODULE WORD…`, with some variables of its environment."""
    command = [sys.executable, "-m", module, *words]
    variables = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode == 2:
        raise UserError(done.stderr.splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(measure: Callable[..., Any]) -> int:
    """Print what `measure(settings, WORD…)` gives, in the process that is called -> exit status."""
    given = json.loads(sys.argv[1])
    settings = Settings(**{**given, "folder": Path(given["folder"])})
    return exit_status(lambda: print(json.dumps(measure(settings, *sys.argv[2:]))))
