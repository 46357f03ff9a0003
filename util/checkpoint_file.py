"""Checkpoint files: read without running code, from disk or the network; written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.files import link_whole

SAFETENSORS = ".safetensors"  # what reads them, or a URL, is imported where it is asked for


def is_url(location: str | os.PathLike) -> bool:
    """Whether a location is fetched over http(s)."""
    return str(location).startswith(("http://", "https://"))


def load_checkpoint(location: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of this project, a published one, or a bare state_dict, onto the CPU.

    Nothing in the file is executed: beside tensors and plain values only an argparse Namespace and NumPy
    scalars are accepted, which the published code writes.

    A `.safetensors` file gives `model`, and `args`, `categories` and `is_thing` where it holds them.

    Args:
        location: a path, or an http(s) URL, which is fetched into torch.hub's cache once and whose hash is
            verified where its name holds one.

    Raises:
        UserError: it is missing, cannot be fetched or read, is damaged, or would run code.
    """
    path = Path(location)
    if is_url(location):
        from util.download import fetch

        path = fetch(str(location), verify)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    if path.suffix == SAFETENSORS:
        from util.safetensors_file import read_safetensors

        _head(path)
        return read_safetensors(path)
    verify(path)
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from error
    except Exception as error:  # bytes that happen to look like a pickle can make its reader fail in any way
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path}: not readable, damaged or cut off ({first_line})") from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(checkpoint).__name__}, not a dict of weights")
    return dict(checkpoint)


def verify(path: Path) -> None:
    """Compare every record of a checkpoint with the checksum that torch.save stored beside it.

    torch.load itself does not look at the checksums: a flipped bit would become a wrong weight. Files in the
    format before torch 1.6 hold none and pass.

    Raises:
        UserError: damaged, cut off, or empty; or the system does not let it be read.
    """
    head = _head(path)
    if path.suffix == SAFETENSORS:
        from util.safetensors_file import read_safetensors

        read_safetensors(path)
        return
    try:
        if head != b"PK\x03\x04":
            if head:
                return  # not a zip archive: an old checkpoint, or something that torch.load will refuse
            raise UserError(f"checkpoint {path}: the file is empty")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, ValueError) as error:
        raise UserError(f"checkpoint {path}: damaged or cut off ({error})") from error
    if damaged is not None:
        raise UserError(f"checkpoint {path}: damaged, the checksum of {damaged} does not match")


def _head(path: Path) -> bytes:
    """A file's first four bytes; safetensors would take one that the system denies for none at all."""
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error.strerror})") from error


def predecessors(path: Path) -> list[Path]:
    """The kept earlier versions of a file NAME.pth, the latest first: NAME.1.pth, NAME.2.pth, ..."""
    numbered = {}
    for other in path.parent.glob(f"{path.stem}.*{path.suffix}"):
        number = other.name[len(path.stem) + 1 : -len(path.suffix)]
        if number.isdigit():
            numbered[int(number)] = other
    return [numbered[number] for number in sorted(numbered)]


def keep_predecessors(path: Path, keep: int) -> None:
    """Before a file is replaced, let its present version become number 1 of at most `keep` earlier ones.

    At no moment is the newest version without a name. Nothing moves where number 1 is the present version
    already, after a kill between this and the replacement.
    """
    first = path.with_suffix(f".1{path.suffix}")
    if first.exists() and path.exists() and first.samefile(path) and keep:
        return
    for old in reversed(predecessors(path)):
        number = int(old.suffixes[-2][1:]) + 1
        if number > keep:
            old.unlink()
        else:
            old.rename(path.with_suffix(f".{number}{path.suffix}"))
    if path.exists() and keep:
        link_whole(path, first)


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
    # Arguments of a Slurm job hold a path; Python 3.13 names its class by another module. A pure path can
    # be made on every system.
    paths = [(PurePosixPath, "pathlib.PosixPath"), (PurePosixPath, "pathlib._local.PosixPath")]
    return [argparse.Namespace, np.dtype, *scalars, *numbers, *paths]


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


def stored_flags(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a checkpoint holds, none where its `args` are none; published files hold a Namespace."""
    flags = checkpoint.get("args")
    if isinstance(flags, argparse.Namespace):
        return dict(vars(flags))
    return dict(flags) if isinstance(flags, Mapping) else {}


def stored_categories(checkpoint: Mapping[str, Any]) -> dict[int, str]:
    """The categories that a checkpoint holds, id -> name; none in published ones, or in another form."""
    stored = checkpoint.get("categories")
    if not isinstance(stored, Mapping):
        return {}
    try:
        return {int(i): str(name) for i, name in stored.items()}
    except (TypeError, ValueError):  # by something else than ids
        return {}


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike, keep: int = 0) -> None:
    """Write a checkpoint that is whole or absent: a temporary file beside it is flushed, then renamed.

    Args:
        checkpoint: what to write.
        path: where; the folder exists. A `.safetensors` file takes weights, `args`, `categories` and
            `is_thing` alone: enough to evaluate and fine-tune, not to resume.
        keep: how many earlier versions stay, as NAME.1.pth, NAME.2.pth, ...

    Raises:
        UserError: it cannot be written; an older file of that name is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            if path.suffix == SAFETENSORS:
                from util.safetensors_file import to_safetensors

                file.write(to_safetensors(checkpoint))
            else:
                torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        keep_predecessors(path, keep)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if any(isinstance(one, KeyboardInterrupt) for one in _chain(error)):
            raise KeyboardInterrupt from error  # torch.save's own error hides it
        kept = "; the checkpoint written before is kept" if path.exists() else ""
        raise UserError(
            f"{path}: cannot be written ({_reason(error)}){kept}: free some space or choose another "
            "--output_dir"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """What the system said, where torch.save's own error hides it."""
    for found in _chain(error):
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a model's weights, all of them.

    Args:
        model: changed in place.
        state: its state_dict; counters of norms may be missing.
        source: the flag and file they come from, for messages.

    Raises:
        UserError: they belong to another architecture; the first differences are named.
    """
    ours = model.state_dict()
    counters = {key for key in ours.keys() | state.keys() if key.endswith("num_batches_tracked")}
    differences = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(ours[key].shape)} here"
        for key in ours
        if key in state and state[key].shape != ours[key].shape
    ]
    differences += [f"{key} is missing there" for key in ours if key not in state and key not in counters]
    differences += [f"{key} is unknown here" for key in state if key not in ours and key not in counters]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{source}: weights of another architecture: {'; '.join(differences[:3])}{more}. Pass the flags "
            "it was trained with, or --finetune to take over what fits"
        )
    model.load_state_dict(state, strict=False)
