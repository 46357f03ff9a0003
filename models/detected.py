"""What a detector hands on to a mask head.

Shapes: B batch, Q queries, D width, h w feature map.
"""

from typing import NamedTuple

from torch import Tensor

from util.nested_tensor import NestedTensor


class Detected(NamedTuple):
    """How an image's detections came about, for a head that goes on from there."""

    features: list[NestedTensor]
    """Backbone feature maps, fine to coarse."""
    src: Tensor
    """The last one projected, [B, D, h, w]."""
    mask: Tensor | None
    """Its padding, bool [B, h, w]; None if there is none."""
    hs: Tensor
    """The last decoder layer's output, [B, Q, D]."""
    memory: Tensor
    """The encoder's output, [B, D, h, w]."""
