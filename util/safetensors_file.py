"""Weights in the safetensors format: nothing but tensors, and words beside them. See util.checkpoint_file.

The format itself knows no checksum; files written here hold one, and it is verified when they are read.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from util.errors import UserError

SUFFIX = ".safetensors"
_BY_ID = ("categories", "is_thing")  # JSON turns their keys, which are numbers, into words
_WORDS = ("args", *_BY_ID)
_CHECKSUM = "crc32"
_OF_TRANSFORMERS = ("class_labels_classifier.", "detr.class_labels_classifier.", "model.backbone.")


def read_safetensors(path: Path) -> dict[str, Any]:
    """A file's tensors as `model`, on the CPU, and what it says of `args`, `categories` and `is_thing`.

    Raises:
        UserError: safetensors is not installed, the file is damaged, or its tensors have transformers' names.
    """
    safetensors = _library()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path}: damaged, cut off or no safetensors file ({error})") from error
    if _CHECKSUM in words and words[_CHECKSUM] != _checksum(tensors):
        raise UserError(f"checkpoint {path}: damaged, its checksum does not match")
    if any(name.startswith(_OF_TRANSFORMERS) for name in tensors):
        raise UserError(
            f"checkpoint {path}: written by transformers; translate it: python -m tools.convert_hf from-hf "
            f"{path.parent} checkpoint.pth"
        )
    checkpoint: dict[str, Any] = {"model": tensors}
    for name in _WORDS:
        if name not in words:
            continue
        try:
            value = json.loads(words[name])
            checkpoint[name] = {int(k): v for k, v in value.items()} if name in _BY_ID else dict(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"checkpoint {path}: what it says of {name} is not readable ({error})") from error
    return checkpoint


def to_safetensors(checkpoint: Mapping[str, Any]) -> bytes:
    """A checkpoint's `model`, `args`, `categories` and `is_thing` as a file; it holds nothing else.

    Values in `args` that JSON does not know, such as paths, become words.

    Raises:
        UserError: safetensors is not installed.
    """
    _library()
    from safetensors.torch import save

    # Copies: the format refuses tensors that share memory or are not contiguous.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint["model"].items()
    }
    words = {_CHECKSUM: _checksum(tensors)}
    for name in _WORDS:
        value = checkpoint.get(name)
        if value is not None:
            plain = vars(value) if isinstance(value, argparse.Namespace) else value
            words[name] = json.dumps(plain, default=str)
    return save(tensors, metadata=words)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of all names and bytes."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes(), value)
    return f"{value:08x}"


def _library() -> ModuleType:
    """Raises UserError: not installed."""
    try:
        import safetensors
    except ImportError as error:
        raise UserError(f"{SUFFIX} files need a package: pip install safetensors") from error
    return safetensors
