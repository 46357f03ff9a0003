"""How far a model here and its counterpart in transformers lie apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

TOLERANCE = 1e-4
SIZES = ((150, 198), (190, 131))  # height, width of the images that are compared on; each is padded


def differences(ours: nn.Module, theirs: Any) -> dict[str, float]:
    """The largest absolute differences: `logits`, `boxes` (in units of the image), `masks` (logits).

    Both see the same two images of different sizes, in one padded batch, and compute in double precision. In
    single precision a trained model's mask logits, which reach 100, lie 3e-4 from their own exact values: a
    limit would judge rounding, not the function.
    """
    batch = nested_tensor_from_tensor_list([_picture(*size, seed) for seed, size in enumerate(SIZES)])
    assert batch.mask is not None
    pixels = batch.tensors.double()
    with torch.no_grad():
        here = copy.deepcopy(ours).double()(NestedTensor(pixels, batch.mask))
        there = copy.deepcopy(theirs).double()(pixel_values=pixels, pixel_mask=(~batch.mask).long())
    pairs = {"logits": (here["pred_logits"], there.logits), "boxes": (here["pred_boxes"], there.pred_boxes)}
    if "pred_masks" in here:
        pairs["masks"] = here["pred_masks"], there.pred_masks
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def _picture(height: int, width: int, seed: int) -> Tensor:
    """Smooth colours as a normalised image [3, height, width]."""
    colours = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(colours, (height, width), mode="bicubic")[0]


def checked(ours: nn.Module, theirs: Any, target: str) -> dict[str, float]:
    """`differences`, which are small.

    Args:
        target: what is not to be written otherwise, for messages.

    Raises:
        UserError: one is more than TOLERANCE.
    """
    found = differences(ours, theirs)
    if not all(value <= TOLERANCE for value in found.values()):  # not a number differs, too
        raise UserError(f"{target}: not written, because both models differ: {told(found)}")
    return found


def told(found: dict[str, float]) -> str:
    """Differences in words."""
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())
