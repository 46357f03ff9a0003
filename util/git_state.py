"""Which version of the code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def get_sha() -> str:
    """Commit, cleanness of the tree and branch, in the published form; "N/A" where there is no git."""
    try:
        sha = _git("rev-parse", "HEAD")
        status = "has uncommitted changes" if _git("diff-index", "HEAD") else "clean"
        branch = _git("rev-parse", "--abbrev-ref", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "sha: N/A, status: clean, branch: N/A"
    return f"sha: {sha}, status: {status}, branch: {branch}"
