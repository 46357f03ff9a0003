"""Which device to compute on."""

from __future__ import annotations

import torch

from util.errors import UserError

KINDS = ("cuda", "cpu", "mps")


def resolve_device(device: str | None) -> str:
    """The device to use; None is a GPU where there is one.

    Raises:
        UserError: one that this machine does not have.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in KINDS:
        raise UserError(f"--device {device}: pass one of {', '.join(KINDS)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no GPU here; pass --device cpu or leave the flag out")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: not available on this machine; pass --device cpu")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: no such device; pass cuda, cpu or mps") from error
    return device
