"""Checkpoint files: read without running code, from disk or the network; written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from util.errors import UserError

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # name-<first digits of the SHA-256>.pth


def is_url(location: str | os.PathLike) -> bool:
    """Whether a location is fetched over http(s)."""
    return str(location).startswith(("http://", "https://"))


def load_checkpoint(location: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of this project, a published one, or a bare state_dict, onto the CPU.

    Nothing in the file is executed: beside tensors and plain values only an argparse Namespace and NumPy
    scalars are accepted, which the published code writes.

    Args:
        location: a path, or an http(s) URL, which is fetched into torch.hub's cache once and whose hash is
            verified where its name holds one.

    Raises:
        UserError: it is missing, cannot be fetched, is damaged, or would run code.
    """
    path = fetch(str(location)) if is_url(location) else Path(location)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from error
    except (EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path}: not readable, damaged or cut off ({first_line})") from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(checkpoint).__name__}, not a dict of weights")
    return dict(checkpoint)


def _refusal(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return (
            f"checkpoint {path}: refused, because loading it would run code ({found.group(1)}); ask its "
            "author for a file that holds only tensors"
        )
    return f"checkpoint {path}: not a checkpoint, or damaged"


def _harmless_types() -> list[Any]:
    """Types beside tensors that published checkpoints hold; making one of them has no effect but itself."""
    import numpy as np
    from numpy._core import multiarray

    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "bool")]
    # Files written under NumPy 1 name the same function by its former module.
    scalars = [multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar")]
    return [argparse.Namespace, np.dtype, *scalars, *numbers]


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict in a checkpoint: its `model` entry, or the checkpoint itself where it is one.

    Raises:
        UserError: there are no tensors where they are looked for.
    """
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(map(str, list(checkpoint)[:5]))
        raise UserError(f"the checkpoint holds no weights: no entry `model`, and its keys are {keys}")
    return dict(state)


def fetch(url: str) -> Path:
    """Bring a file into torch.hub's cache, unless it is there, and verify its hash -> its path.

    Raises:
        UserError: no network, no such file, or another hash than its name says.
    """
    name = os.path.basename(urlparse(url).path)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / name
    digits = HASH_IN_NAME.search(name)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=True)
        except OSError as error:
            raise UserError(
                f"{url}: could not be downloaded ({error}); fetch it elsewhere and pass its path, or place "
                f"it in {folder}"
            ) from error
    if digits and not _sha256(path).startswith(digits.group(1)):
        raise UserError(f"{path}: its hash is not the one in its name; delete the file and fetch it again")
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint that is whole or absent: a temporary file beside it is flushed, then renamed.

    Raises:
        UserError: it cannot be written; an older file of that name is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error}); free some space or choose another --output_dir"
        ) from error
