"""Mixed precision: most of the model in 16 bits, what needs the digits in 32.

Inside autocast, convolutions and matrix products compute in 16 bits; weights, gradients and the optimizer
stay float32. The box head, the matching and every loss compute in float32: a box coordinate of bfloat16 has
three decimal digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from util.errors import UserError

KINDS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
INITIAL_SCALE = 2.0**16  # of the loss under fp16, torch's own; it is halved until nothing overflows


class Precision:
    """In what the model computes; every method does nothing to a float32 computation.

    Args:
        kind: off (float32), bf16 or fp16. With fp16 the loss is scaled before backward, since small gradients
            would vanish, and a step whose gradients overflow is left out and the scale halved.
        device: where the model is.

    Raises:
        UserError: an unknown kind, or the device computes bf16 in emulation only.
    """

    def __init__(self, kind: str, device: torch.device):
        if kind not in KINDS:
            raise UserError(f"--amp {kind}: pass one of {', '.join(KINDS)}")
        if (
            kind == "bf16"
            and device.type == "cuda"
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            raise UserError("--amp bf16: this GPU computes in bfloat16 by emulation only; pass --amp fp16")
        self.kind = kind
        self.device = device
        self.dtype = KINDS[kind]
        self.scaler = torch.amp.GradScaler(device.type, INITIAL_SCALE) if kind == "fp16" else None

    def autocast(self) -> AbstractContextManager:
        """The block in which the model runs."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def outside(self, function: Callable | None) -> Callable | None:
        """A function that the model calls from inside the block, computing in float32 on float32 values."""
        if self.dtype is None or function is None:
            return function

        def in_full(*values: Any) -> Any:
            with torch.autocast(self.device.type, enabled=False):
                return function(*map(as_float32, values))

        return in_full

    def outputs(self, outputs: Any) -> Any:
        """The model's outputs in float32."""
        return outputs if self.dtype is None else as_float32(outputs)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, times the scale."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide an optimizer's gradients by the scale; once a step."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def adapt(self) -> None:
        """After an optimizer step, choose the next one's scale; nothing waits for the device."""
        if self.scaler is not None:
            self.scaler.update()


def at_least_float32(x: Tensor) -> Tensor:
    """16-bit numbers in float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_float32(value: Any) -> Any:
    """Nested dicts and lists with every tensor of floating-point numbers in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: as_float32(inner) for key, inner in value.items()}
    return [as_float32(inner) for inner in value] if isinstance(value, list) else value
