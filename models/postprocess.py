"""From a model's outputs to what users and evaluators read: boxes. Of masks see segmentation.py.

Shapes: B batch, Q queries, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from util.box_ops import box_cxcywh_to_xyxy


class PostProcess(nn.Module):
    """Turns relative boxes and logits into absolute boxes, classes and scores, one for each query."""

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Post-process a batch.

        Args:
            outputs: `pred_logits` [B, Q, C + 1] and `pred_boxes` [B, Q, 4] (cxcywh in [0, 1]).
            target_sizes: (height, width) [B, 2] in which boxes are wanted: the original image's for
                evaluation, the augmented one's without its padding for drawing.

        Returns:
            For each image `scores` [Q] and `labels` [Q], the most probable class other than "no object",
            and `boxes` [Q, 4] in pixels, xyxy.

        Raises:
            ValueError: target_sizes does not hold one pair for each image.
        """
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if target_sizes.shape != (len(logits), 2):
            raise ValueError(
                f"target_sizes: {tuple(target_sizes.shape)} where (height, width) of {len(logits)} images "
                "are expected"
            )
        found = zip(*scored_boxes(logits, boxes, target_sizes.to(boxes.device)), strict=True)
        return [{"scores": s, "labels": c, "boxes": b} for s, c, b in found]


def scored_boxes(logits: Tensor, boxes: Tensor, target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PostProcess on tensors alone, without its checks.

    Args:
        logits: [B, Q, C + 1].
        boxes: cxcywh in [0, 1], [B, Q, 4].
        target_sizes: (height, width) [B, 2].

    Returns:
        Scores [B, Q], labels [B, Q] and boxes [B, Q, 4], xyxy in pixels.
    """
    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # [B, Q]
    height, width = target_sizes.unbind(1)
    scale = torch.stack([width, height, width, height], dim=1)  # [B, 4]
    return scores, labels, box_cxcywh_to_xyxy(boxes.float()) * scale[:, None]
