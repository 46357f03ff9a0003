"""What computes: the device, how exactly it does, and in which versions of code and packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from util.errors import UserError, warn

KINDS = ("cuda", "cpu", "mps")
TF32_OF_CONVOLUTIONS = {"default": True, "on": True, "off": False}
TF32_OF_PRODUCTS = {"default": False, "on": True, "off": False}
TF32_IN_WORDS = {"default": "TF32 in convolutions", "on": "TF32", "off": "no TF32"}
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pycocotools", "faster-coco-eval")
REPOSITORY = Path(__file__).resolve().parents[1]


def resolve_device(device: str | None) -> str:
    """The device to compute on: the one asked for; the CPU, with a warning, for `cuda` where there is no GPU.

    Args:
        device: as `--device` takes it; None: a GPU where there is one.

    Raises:
        UserError: a device that this machine does not have.
    """
    has_gpu = torch.cuda.is_available()
    if device is None:
        return "cuda" if has_gpu else "cpu"
    if device == "cuda" and not has_gpu:
        warn("--device cuda: torch sees no GPU here, so the CPU computes; pass --device cpu if that is meant")
        return "cpu"
    kind = device.split(":")[0]
    if kind not in KINDS:
        raise UserError(f"--device {device}: pass one of {', '.join(KINDS)}")
    if kind == "cuda" and not has_gpu:
        raise UserError(f"--device {device}: torch sees no GPU here; pass --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: not available on this machine; pass --device cpu")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: no such device; pass cuda, cpu or mps") from error
    return device


def set_tf32(choice: str) -> None:
    """Choose how GPUs since Ampere compute in float32: the one place that does.

    TF32 keeps float32's range and 10 bits of its digits in the factors of a product. The published figures
    were measured on GPUs without it. `default` is torch's own choice, and so what the published code does
    today: convolutions use it, matrix products do not.

    Args:
        choice: default; on: both use it; off: neither does.
    """
    torch.backends.cudnn.allow_tf32 = TF32_OF_CONVOLUTIONS[choice]
    torch.backends.cuda.matmul.allow_tf32 = TF32_OF_PRODUCTS[choice]


def make_deterministic() -> None:
    """Let equal inputs give equal bits, on GPUs too; an operation that cannot do so raises an error.

    Must be called before the first computation on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


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
