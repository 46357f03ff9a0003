"""The average of a run's weights (`--ema`), which is evaluated and saved beside them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from util.errors import UserError


class WeightAverage:
    """An exponential moving average over optimizer steps: average <- d * average + (1 - d) * weights.

    d rises to `decay` as (1 + n) / (10 + n) over the steps n, so that the random weights of the beginning are
    soon forgotten. Statistics of trained norms are averaged alike. torch's AveragedModel waits for the GPU at
    every step; this does not.

    Args:
        model: where the average begins. It is copied, with its device.
        decay: d in the long run, at least 0 and below 1.

    Attributes:
        model: the copy that holds the averages, in evaluation mode; it does not train.
        updates: how often it was updated, n.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step; nothing waits for the device."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        ours = chain(self.model.parameters(), self.model.buffers())
        theirs = chain(model.parameters(), model.buffers())
        for own, current in zip(ours, theirs, strict=True):
            if own.is_floating_point():
                averages.append(own)
                weights.append(current.detach())
            else:
                own.copy_(current)  # a counter
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: `ema`, a state_dict like the model's own, and `ema_updates`."""
        return {"ema": self.model.state_dict(), "ema_updates": self.updates}

    def load_state_dict(self, checkpoint: Mapping[str, Any], source: str) -> bool:
        """Continue from a checkpoint -> whether it holds an average.

        Args:
            checkpoint: what `state_dict` gave, among others.
            source: the checkpoint's name, for messages.

        Raises:
            UserError: it is the average of another model.
        """
        if "ema" not in checkpoint:
            return False
        try:
            self.model.load_state_dict(checkpoint["ema"])
        except RuntimeError as error:
            raise UserError(f"{source}: its averaged weights are those of another architecture") from error
        self.updates = checkpoint["ema_updates"]
        return True
