"""Weights that behave in panoptic inference as trained ones do.

A model with random weights finds nothing, and its queries all draw the same mask: there would be no segment
to draw and no pixel to share out. So queries are spread until they look at different places, the attention is
made to count in the mask, and the classification head is solved for: on one picture, a chosen number of
queries gets a class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SPREAD = 10.0  # of the query embedding; random ones have 1
ATTENTION = 10_000.0  # how much more the attention maps count in the mask head's first layer


@torch.no_grad()
def spread_queries(query_embed: Tensor, first_layer: Tensor, heads: int) -> None:
    """Change two weights of a random segmenter in place.

    Args:
        query_embed: [Q, D].
        first_layer: the mask head's first convolution, [D + n, D + n, 3, 3], attention maps last.
        heads: n.
    """
    query_embed.mul_(SPREAD / query_embed.std())
    first_layer[:, -heads:] *= ATTENTION


@torch.no_grad()
def make_confident(head: nn.Linear, run: Callable[[], object], queries: int, logit: float) -> None:
    """Replace a classification head's weights.

    Args:
        head: from [..., Q, D] to classes, the last of which is "no object".
        run: runs the model on the picture; the head is called inside.
        queries: how many shall have a class: two thirds of them things, each of its own class, and one
            third stuff (ids above 90), of two classes.
        logit: of each query's class; all others have 0.
    """
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run()
    hook.remove()
    count, width = seen[-1].shape[-2:]
    features = seen[-1].reshape(-1, width)[-count:].double()  # [Q, D], the last layer's
    wanted = features.new_zeros(count, head.out_features)
    wanted[:, -1] = logit
    things = queries - queries // 3
    for place in range(queries):
        wanted[place, -1] = 0
        wanted[place, place + 1 if place < things else 100 + place % 2] = logit
    solved = torch.linalg.lstsq(features, wanted, driver="gelsd" if not features.is_cuda else "gels").solution
    head.weight.copy_(solved.t())
    head.bias.zero_()
