"""Checkpoint files: read without running code, from disk or the network; written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from util.distributed import is_main_process
from util.errors import UserError, warn
from util.files import link_whole

# Parts of names that come from DataParallel and its like, torch.compile, Lightning Fabric, FSDP.
WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
SAFETENSORS = ".safetensors"  # what reads them, or a URL, or any file, is imported where it is asked for


def is_url(location: str | os.PathLike) -> bool:
    """Whether a location is fetched over http(s)."""
    return str(location).startswith(("http://", "https://"))


def load_checkpoint(location: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of this project, a published one, or a bare state_dict, onto the CPU.

    Nothing in the file is executed: beside tensors and plain values it may hold what `harmless_types` lists,
    such as an argparse Namespace, paths and NumPy arrays. Names of tensors lose what wrappers put in front of
    them, and Lightning's `state_dict` becomes `model`; a warning says so.

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
        return _without_wrappers(read_safetensors(path), path)
    from util.harmless_objects import harmless_types, refusal

    verify(path)
    try:
        with torch.serialization.safe_globals(harmless_types()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint {path}: {refusal(error)}") from error
    except Exception as error:  # bytes that happen to look like a pickle can make its reader fail in any way
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path}: not readable, damaged or cut off ({first_line})") from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"checkpoint {path}: holds a {type(checkpoint).__name__}, not a dict of weights")
    return _without_wrappers(dict(checkpoint), path)


def _without_wrappers(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint with its weights as `model`, or alone, under the model's own names."""
    if "model" not in checkpoint and isinstance(checkpoint.get("state_dict"), Mapping):  # Lightning's
        checkpoint = {"model" if key == "state_dict" else key: value for key, value in checkpoint.items()}
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        return checkpoint
    own = own_names(state)
    if own.keys() == state.keys():
        return checkpoint
    if is_main_process():
        first, left_out = next(iter(own)), len(state) - len(own)
        rest = f", {left_out} others that are not the model's are left out" if left_out else ""
        warn(f"checkpoint {path}: {next(iter(state))} is read as {first}, and so are all its tensors{rest}")
    return checkpoint | {"model": own} if state is not checkpoint else own


def own_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict by the names that its model has without what it was wrapped in.

    DistributedDataParallel, torch.compile and their like add a part to names, in front or, where they wrap a
    part of the model, inside. Lightning keeps the model below `model.`, beside tensors of losses and metrics.
    """
    own = {".".join(p for p in name.split(".") if p not in WRAPPERS): value for name, value in state.items()}
    if len(own) < len(state):
        return dict(state)  # two models, one of them wrapped
    below = {name.removeprefix("model."): own[name] for name in own if name.startswith("model.")}
    is_detr = "class_embed.bias" in below or "detr.class_embed.bias" in below
    return own_names(below) if below and (is_detr or len(below) == len(own)) else own


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
    if isinstance(flags, argparse.Namespace | SimpleNamespace):
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
        # What the system said, where torch.save's own error hides it
        said = [one.strerror for one in _chain(error) if isinstance(one, OSError) and one.strerror]
        reason = (said or str(error).splitlines() or [type(error).__name__])[0]
        kept = "; the checkpoint written before is kept" if path.exists() else ""
        raise UserError(
            f"{path}: cannot be written ({reason}){kept}: free some space or choose another --output_dir"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
