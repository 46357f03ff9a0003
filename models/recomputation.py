"""Activations that are computed a second time for the gradient, not kept (`--grad_checkpoint`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from util.errors import UserError

from .resnet import Body


def enable_grad_checkpoint(model: nn.Module) -> None:
    """Let the backbone's stages and the encoder's layers recompute what they would keep for the gradient.

    Changes the model in place; numbers and names in the state_dict stay.

    Raises:
        UserError: a backbone of timm that cannot do it, or not with norms that train.
    """
    for module in list(model.modules()):
        if isinstance(module, Body):
            for name, stage in list(module.items()):
                if isinstance(stage, nn.Sequential):
                    module[name] = RecomputedStage(*stage)
        elif hasattr(module, "grad_checkpoint"):  # TransformerEncoder
            module.grad_checkpoint = True  # type: ignore[assignment]
        elif hasattr(module, "set_grad_checkpointing"):  # timm's own way
            if any(isinstance(norm, _BatchNorm) for norm in module.modules()):
                raise UserError(
                    "--grad_checkpoint: timm's backbones would count the statistics of norms twice; leave "
                    "out --backbone_norm batch"
                )
            try:
                module.set_grad_checkpointing(True)  # type: ignore[operator]
            except AssertionError as error:
                raise UserError(f"--grad_checkpoint: this backbone of timm cannot do it ({error})") from error


class RecomputedStage(nn.Sequential):
    """A stage of a ResNet whose inner activations are recomputed; its names are a Sequential's."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        return recomputed(self, super().forward, x)


def recomputed(module: nn.Module, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a module, keep only what goes in, and call it again when the gradient is computed.

    The second call draws the same dropout and counts no statistics a second time, so that gradients and state
    are those of a plain call. Where no gradient is wanted it is a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    if not (module.training and norms):
        return checkpoint(function, *args, use_reentrant=False, **kwargs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_left_alone(norms)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _statistics_left_alone(norms: list[_BatchNorm]) -> Iterator[None]:
    """Inside, the norms normalise by their batch as always, but move copies of their statistics."""
    before = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, before, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
