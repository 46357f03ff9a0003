"""The losses as plain functions of tensors (paper, section 3.1 and appendix A.2).

Shapes: L decoder layers, B batch, Q queries, C classes, N matched pairs in a layer. Every function that
takes a leading L gives one value a layer, so that one pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate
from torch.utils.checkpoint import checkpoint

from util.box_ops import box_cxcywh_to_xyxy, paired_generalized_box_iou

PIXELS_AT_ONCE = 1 << 21  # of masks at full size, in the losses of masks


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
        matches: Sequence[Sequence[tuple[Tensor, Tensor]]],
        counts: Sequence[int],
        device: torch.device,
    ) -> MatchedPairs:
        """Gather the matches of all layers, as many in each, and bring them over in one copy.

        Args:
            matches: for each layer, for each image, the matched queries and their objects.
            counts: objects of each image.
            device: where the outputs are.
        """
        first_object = [sum(counts[:i]) for i in range(len(counts))]
        rows = [
            torch.stack(
                [
                    torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(layer)]),
                    torch.cat([q for q, _ in layer]),
                    torch.cat([o + first for (_, o), first in zip(layer, first_object, strict=True)]),
                ]
            )
            for layer in matches
        ]
        packed = torch.stack(rows, dim=1)  # [3, L, N]
        if device.type == "cuda" and not packed.is_cuda:
            packed = packed.pin_memory()
        return cls(*packed.to(device, non_blocking=True))

    def of(self, predictions: Tensor) -> Tensor:
        """The matched rows of predictions [L, B, Q, ...] -> [L, N, ...]."""
        layer = torch.arange(len(self.query), device=self.query.device)[:, None]
        return predictions[layer, self.image, self.query]


def classification_loss(
    logits: Tensor, classes: Tensor, weight: Tensor, divisor: Tensor | None = None
) -> Tensor:
    """Cross-entropy, averaged with each class's weight as torch's cross_entropy does it.

    Args:
        logits: [L, B, Q, C + 1].
        classes: int64 [L, B, Q], the class of the matched object or C.
        weight: [C + 1].
        divisor: in place of the summed weights of these classes.

    Returns:
        [L].
    """
    layers = len(logits)
    loss = cross_entropy(logits.flatten(0, 2), classes.flatten(), weight, reduction="none")
    summed = weight[classes].view(layers, -1).sum(1) if divisor is None else divisor
    return loss.view(layers, -1).sum(1) / summed


def box_losses(boxes: Tensor, wanted: Tensor, num_boxes: Tensor | float) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of matched boxes, summed and divided by the number of boxes.

    Args:
        boxes, wanted: cxcywh [L, N, 4].
        num_boxes: the divisor.

    Returns:
        Two times [L].
    """
    l1 = (boxes - wanted).abs().sum((1, 2))
    giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(wanted))  # [L, N]
    return l1 / num_boxes, (1 - giou).sum(1) / num_boxes


@torch.no_grad()
def cardinality_error(logits: Tensor, counts: Tensor) -> Tensor:
    """How far the number of predicted objects is from the true one, averaged over images; for logging only.

    Args:
        logits: [L, B, Q, C + 1].
        counts: true numbers [B].

    Returns:
        [L].
    """
    no_object = logits.shape[-1] - 1
    predicted = (logits.argmax(-1) != no_object).sum(-1)  # [L, B]
    return (predicted.float() - counts.float()).abs().mean(1)


def mask_losses(
    masks: Tensor,
    wanted: Sequence[Tensor],
    size: tuple[int, int],
    canvas: tuple[int, int],
    num_boxes: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of matched masks, enlarged to the size of the true ones.

    As published, both average over the padding too.

    Args:
        masks: logits [N, h, w], the first image's first.
        wanted: for each image the true masks, bool or uint8 [n, H, W], in the order of the logits.
        size: the largest H and the largest W of the batch.
        canvas: what the logits cover, at least `size`.
        num_boxes: the divisor of the sums over masks.
    """
    own = [true for of_image in wanted for true in of_image]  # N times [H, W]
    step = max(PIXELS_AT_ONCE // (canvas[0] * canvas[1]), 1)
    parts = []
    for first in range(0, max(len(own), 1), step):  # at least once: an empty batch has gradients, too
        part = masks[first : first + step], own[first : first + step], size, canvas
        # The many pixels between masks and losses are computed anew for the gradient, not kept.
        parts.append(checkpoint(_sums, *part, use_reentrant=False, preserve_rng_state=False))
    focal, dice = torch.stack(parts).sum(0) / num_boxes
    return focal, dice


def _sums(masks: Tensor, wanted: list[Tensor], size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Focal and dice loss of a few masks, summed: [2]."""
    true = torch.zeros((len(masks), *size), device=masks.device)
    for row, own in zip(true, wanted, strict=True):
        row[: own.shape[0], : own.shape[1]] = own
    logits = interpolate(masks[:, None].float(), size=canvas, mode="bilinear", align_corners=False)
    flat, true = logits[:, 0, : size[0], : size[1]].flatten(1), true.flatten(1)
    return torch.stack([sigmoid_focal_loss(flat, true, 1), dice_loss(flat, true, 1)])


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
    loss = binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    wrong = (probability - targets).abs()
    loss = loss * wrong**gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean(1).sum() / num_boxes
