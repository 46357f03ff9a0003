"""The losses of masks as plain functions of tensors (paper, section 4.4).

Shapes: N matched pairs, h w the masks' size, H W that of the true ones, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from util.amp import at_least_float32
from util.originals import original

PIXELS_AT_ONCE = 1 << 21  # of masks at full size


def mask_losses(
    masks: Tensor,
    wanted: Sequence[Tensor],
    size: tuple[int, int],
    canvas: tuple[int, int],
    num_boxes: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of matched masks, enlarged to the size of the true ones; a few masks at a time.

    As published, both average over the padding too.

    Args:
        masks: logits [N, h, w].
        wanted: N true masks, bool or uint8 [H, W], each from the upper left of its image.
        size: the largest H and the largest W of the batch.
        canvas: (height, width) that the logits cover, at least `size`.
        num_boxes: the divisor of the sums over masks.
    """

    def summed(masks: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        logits, true = at_one_size(masks, wanted, size, canvas)
        return torch.stack([sigmoid_focal_loss(logits, true, 1), dice_loss(logits, true, 1)])

    step = max(PIXELS_AT_ONCE // (canvas[0] * canvas[1]), 1)
    parts = []
    for first in range(0, max(len(wanted), 1), step):  # at least once: an empty batch has gradients, too
        part = masks[first : first + step], wanted[first : first + step]
        # The many pixels between masks and losses are computed anew for the gradient, not kept.
        parts.append(checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False))
    sums = torch.stack(parts).sum(0)
    return sums[0] / num_boxes, sums[1] / num_boxes


def at_one_size(
    masks: Tensor, wanted: Sequence[Tensor], size: tuple[int, int], canvas: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Masks and true ones at full size, logits and 0 or 1, both [N, P]; the arguments are mask_losses'."""
    true = torch.zeros((len(masks), *size), device=masks.device)
    for row, own in zip(true, wanted, strict=True):
        row[: own.shape[0], : own.shape[1]] = own
    logits = F.interpolate(
        at_least_float32(masks)[:, None], size=canvas, mode="bilinear", align_corners=False
    )
    return logits[:, 0, : size[0], : size[1]].flatten(1), true.to(logits.dtype).flatten(1)


@original
def dice_loss(inputs: Tensor, targets: Tensor, num_boxes: Tensor | float) -> Tensor:
    """Dice loss (Milletari et al. 2016), one minus the overlap of soft masks, with 1 added to both sides.

    Args:
        inputs: logits [N, ...].
        targets: 0 or 1, the same number of values for each mask.
        num_boxes: the divisor of the sum over masks.
    """
    soft = inputs.sigmoid().flatten(1)
    targets = targets.flatten(1)
    overlap = 2 * (soft * targets).sum(1)
    total = soft.sum(-1) + targets.sum(-1)
    return (1 - (overlap + 1) / (total + 1)).sum() / num_boxes


@original
def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, num_boxes: Tensor | float, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Focal loss (Lin et al. 2017): binary cross-entropy that fades where the prediction is right already.

    Args:
        inputs: logits [N, P].
        targets: 0 or 1, [N, P].
        num_boxes: the divisor of the sum over masks of the mean over pixels.
        alpha: weight of positives against negatives; negative to weigh both alike.
        gamma: how fast easy pixels fade.
    """
    probability = inputs.sigmoid()
    loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    wrong = (probability - targets).abs()
    loss = loss * wrong**gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean(1).sum() / num_boxes
