"""Which queries get a mask: those that are used, not all of them.

A selection holds for each image the chosen queries, a vector int64 [n]. The model asks for it between its
boxes and its masks (`DETRsegm.forward(samples, select=...)`) and gives `pred_masks` [N, h, w], the masks of
all chosen queries in the order of images, with the selection itself under `selected`.

Shapes: B batch, Q queries, N chosen queries of all images, h w mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import flat_index, to_device

Outputs = dict[str, Any]
Selection = list[Tensor]
Select = Callable[[Outputs], Selection]


class MatchedQueries:
    """Selects the queries that are matched with objects, and keeps the matching for the criterion.

    Called by the model, so that the matching is found once, and inside the forward that
    DistributedDataParallel wraps.

    Args:
        match: outputs and targets -> the matches of every layer, the last one's first.
        targets: of the batch that the model is about to see.
        also: a further selection whose queries are added.

    Attributes:
        matches: what `match` gave, the last layer's first; None until the model has called.
    """

    def __init__(self, match: Callable[[Outputs, Any], list], targets: Any, also: Select | None = None):
        self.match = match
        self.targets = targets
        self.also = also
        self.matches: list | None = None

    def __call__(self, outputs: Outputs) -> Selection:
        """The matched queries of each image, in the matching's order; with `also` the union, ascending."""
        self.matches = self.match(outputs, self.targets)
        matched = [queries for queries, _ in self.matches[0]]
        if self.also is None:
            return matched
        pairs = zip(matched, self.also(outputs), strict=True)
        return [torch.cat([a.cpu(), b.cpu()]).unique() for a, b in pairs]


def confident_queries(outputs: Outputs, threshold: float) -> Selection:
    """The queries whose most probable class other than "no object" has a probability above `threshold`."""
    scores = outputs["pred_logits"].float().softmax(-1)[..., :-1].amax(-1)  # [B, Q]
    return [row.nonzero()[:, 0] for row in (scores > threshold).cpu()]


def masks_of(outputs: Outputs, wanted: Sequence[Tensor]) -> Tensor:
    """The masks of some queries of each image, one image's after the other's: [N, h, w].

    Args:
        outputs: with `pred_masks` of all queries, [B, Q, h, w], or of those under `selected`.
        wanted: a selection.

    Raises:
        ValueError: a wanted query was not selected.
    """
    masks, selected = outputs["pred_masks"], outputs.get("selected")
    if selected is None:
        return masks[flat_index(wanted, masks.device)]
    if all(a is b for a, b in zip(selected, wanted, strict=True)):
        return masks
    rows, first = [], 0  # where the wanted queries stand among all selected ones
    for image, (chosen, queries) in enumerate(zip(selected, wanted, strict=True)):
        chosen, queries = chosen.cpu(), queries.cpu()
        order = chosen.argsort()
        place = torch.searchsorted(chosen[order], queries).clamp(max=max(len(chosen) - 1, 0))
        if len(queries) and (not len(chosen) or bool((chosen[order][place] != queries).any())):
            raise ValueError(
                f"image {image}: masks were computed for the queries {chosen.tolist()} alone, and "
                f"{queries.tolist()} are wanted"
            )
        rows.append(first + order[place])
        first += len(chosen)
    return masks[to_device(torch.cat(rows), masks.device)]
