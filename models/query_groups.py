"""Several groups of queries in training, one at inference (Group DETR, Chen et al., ICCV 2023).

K groups of queries decode the same image side by side. None sees another, and each is matched one to one with
the objects, so that a step has K times the positive matches; the losses are averaged. The first group is the
model's own `query_embed`. The others live here, outside the model, which is evaluated, saved and exported as
if they did not exist.

The groups become part of the batch in `Transformer.forward` and in the decoder layer's `_attend_to_memory`
(models/transformer.py); `DETR._predict_groups` takes them apart again, and the criterion averages over them.

Shapes: K groups, B batch, Q queries of a group, D width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from util.errors import UserError

NOISE = 0.1  # of a copied group, in standard deviations of the first


class QueryGroups(nn.Module):
    """A model while it trains with K groups of queries; called, it gives `group_outputs` too.

    Args:
        model: a DETR or DETRsegm, on its device. What is trained, other than the groups here, is its own.
        groups: K, at least 2.
        seed: of a generator for the groups' initial values alone: nothing else in the run moves.
        starts_trained: the model starts from trained weights; the other groups are then noisy copies of the
            first. Otherwise they are drawn from a standard normal distribution, as the first is.

    Attributes:
        module: the model, by the name that DistributedDataParallel has for what it wraps.
        others: the queries of the other groups as one table; `queries` has them by group. A module of its
            own, registered last, so that the optimizer too has it last.

    Raises:
        UserError: a user-defined model that takes no further queries.
    """

    def __init__(self, model: nn.Module, groups: int, seed: int, starts_trained: bool = False):
        super().__init__()
        if "other_queries" not in inspect.signature(model.forward).parameters:
            raise UserError(
                f"--query_groups {groups}: forward of {type(model).__name__} takes no `other_queries` "
                "(models/detr.py); leave the flag out"
            )
        detector: Any = getattr(model, "detr", model)
        first: Tensor = detector.query_embed.weight.detach()  # [Q, D]
        self.shape = (groups - 1, *first.shape)
        values = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)).to(first)
        if starts_trained:
            values = first + NOISE * first.std() * values
        self.module = model
        self.others = nn.Embedding.from_pretrained(values.flatten(0, 1), freeze=False)

    @property
    def queries(self) -> Tensor:
        """The other groups' queries, [K - 1, Q, D]."""
        return self.others.weight.view(self.shape)

    def check_gradient(self) -> None:
        """After a step, make sure that the criterion has read `group_outputs`. Waits for the device.

        Raises:
            UserError: it has not; the other groups do not train.
        """
        gradient = self.others.weight.grad
        if gradient is None or not gradient.any():
            raise UserError(
                f"--query_groups {1 + len(self.queries)}: the criterion does not read `group_outputs`, so "
                "that the other groups get no gradient; leave the flag out, or see models/criterion.py"
            )

    def forward(self, samples: Any, **options: Any) -> dict[str, Any]:
        """What the model gives, with `group_outputs`."""
        return self.module(samples, other_queries=self.queries, **options)
