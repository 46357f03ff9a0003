"""Figures that tell how well a prediction does and that no loss is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Percentage of rows whose class is among the k most probable, for each k.

    Args:
        output: scores [N, C].
        target: classes [N].
        topk: each k.

    Returns:
        A scalar in [0, 100] for each k; 0 where there are no rows.
    """
    if target.numel() == 0:
        return [torch.zeros([], device=output.device) for _ in topk]
    best = output.topk(max(topk), dim=1).indices  # [N, k]
    hits = best == target[:, None]
    return [hits[:, :k].any(dim=1).float().mean() * 100 for k in topk]
