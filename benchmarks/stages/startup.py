"""How long `main.py --help` takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Work
from benchmarks.settings import Settings
from benchmarks.stages import Stage

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"ours": ["main.py"], "reference": ["-m", "benchmarks.reference.script"]}


def _help(settings: Settings, side: str) -> Work:
    command = [sys.executable, *SCRIPTS[side], "--help"]
    return Work(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, check=True).returncode)


STAGES = [Stage("startup", "main.py --help", _help, target=6)]
