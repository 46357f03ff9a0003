"""Which versions are running: of this code, and of the packages that figures depend on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pycocotools", "faster-coco-eval")
REPOSITORY = Path(__file__).resolve().parents[1]


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, check=True)
    return answer.stdout.decode(errors="replace").strip()


def get_sha() -> str:
    """Commit, cleanness of the tree and branch, in the published form; "N/A" where there is no git."""
    try:
        sha = _git("rev-parse", "HEAD")
        status = "has uncommitted changes" if _git("diff-index", "HEAD") else "clean"
        branch = _git("rev-parse", "--abbrev-ref", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "sha: N/A, status: clean, branch: N/A"
    return f"sha: {sha}, status: {status}, branch: {branch}"


def package_versions() -> dict[str, str]:
    """Python's version and those of the packages that figures depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
