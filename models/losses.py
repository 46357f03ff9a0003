"""The losses as plain functions of tensors (paper, section 3.1, appendix A.2); of masks see mask_losses.py.

Shapes: L decoder layers (of K groups of queries, K * L), B batch, Q queries, C classes, N matched pairs in a
layer; `...` is L or nothing, so that one pass serves all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

Matches = list[tuple[Tensor, Tensor]]
"""For each image the matched queries and, in the same order, their objects: int64 vectors on the host."""


@dataclass
class MatchedPairs:
    """Every layer's matched pairs on the device, with the objects of all images in one row.

    Attributes:
        image, query: int64 [L, N], which prediction.
        object: int64 [L, N], which row of the concatenated targets.
    """

    image: Tensor
    query: Tensor
    object: Tensor

    @classmethod
    def from_matches(
        cls,
        matches: Sequence[Matches],
        counts: Sequence[int],
        device: torch.device,
    ) -> MatchedPairs:
        """Gather the matches of all layers, N in each, and bring them over in one copy.

        Args:
            matches: for each layer, for each image, the matched queries and their objects.
            counts: objects of each image.
            device: where the outputs are.
        """
        first_object = list(accumulate(counts, initial=0))[:-1]
        rows: list[Tensor] = []
        for layer in matches:
            image = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(layer)])
            query = torch.cat([queries for queries, _ in layer])
            row = torch.cat(
                [objects + first for (_, objects), first in zip(layer, first_object, strict=True)]
            )
            rows.append(torch.stack([image, query, row]))
        packed = torch.stack(rows, dim=1)  # [3, L, N]
        return cls(*to_device(packed, device))

    @property
    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """(layer, image, query), to index predictions [L, B, Q, ...] with."""
        layer = torch.arange(len(self.query), device=self.query.device)[:, None]  # [L, 1]
        return layer, self.image, self.query


def flat_index(selection: Sequence[Tensor], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(image, query) of queries chosen in each image, two vectors [N], to index [B, Q, ...] with.

    With a device they are brought there, in one copy that nothing waits for.
    """
    image = torch.cat([torch.full_like(queries, i) for i, queries in enumerate(selection)])
    index = torch.stack([image, torch.cat(list(selection))])
    if device is not None:
        index = to_device(index, device)
    return index[0], index[1]


def to_device(index: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, without waiting for the device."""
    if device.type == "cuda" and not index.is_cuda:
        index = index.pin_memory()
    return index.to(device, non_blocking=True)


def classification_loss(
    logits: Tensor, classes: Tensor, weight: Tensor, divisor: Tensor | None = None
) -> Tensor:
    """Cross-entropy, averaged with each class's weight as torch's cross_entropy does it.

    Args:
        logits: [..., B, Q, C + 1].
        classes: int64 [..., B, Q], the class of the matched object or C.
        weight: [C + 1].
        divisor: in place of the summed weights of these classes.

    Returns:
        [...].
    """
    weight = weight.to(logits.dtype)
    loss = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), weight, reduction="none")
    summed = weight[classes].sum((-2, -1)) if divisor is None else divisor
    return loss.view_as(classes).sum((-2, -1)) / summed


@torch.no_grad()
def cardinality_error(logits: Tensor, counts: Tensor) -> Tensor:
    """How far the number of predicted objects is from the true one, averaged over images; for logging only.

    Args:
        logits: [..., B, Q, C + 1].
        counts: true numbers [B].

    Returns:
        [...].
    """
    no_object = logits.shape[-1] - 1
    predicted = (logits.argmax(-1) != no_object).sum(-1)  # [..., B]
    return (predicted.float() - counts.float()).abs().mean(-1)
