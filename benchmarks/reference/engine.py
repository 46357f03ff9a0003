"""One training step, and the optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reference import criterion


def build_optimizer(model: nn.Module, lr: float = 1e-4, lr_backbone: float = 1e-5) -> torch.optim.AdamW:
    """AdamW as torch builds it by default, with a rate of its own for the backbone."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if "backbone" not in name]},
        {"params": [p for name, p in trained if "backbone" in name], "lr": lr_backbone},
    ]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=1e-4)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float = 0.1) -> None:
    """Clip the gradient and change the weights."""
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    targets: list[dict[str, Tensor]],
) -> dict[str, float]:
    """A whole step on a padded batch and its mask -> every loss as a number, for the log.

    Raises:
        ValueError: the loss is not finite.
    """
    found = criterion.losses(model(*batch), targets)
    total = criterion.weighted_sum(found)
    if not math.isfinite(total.item()):
        raise ValueError(f"the loss is {total.item()}")
    optimizer.zero_grad()
    total.backward()
    update(model, optimizer)
    return {name: value.item() for name, value in found.items()}
