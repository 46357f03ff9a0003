"""The one-to-one assignment of predictions to objects (paper, section 3.1).

Shapes: L decoder layers, B batch, Q queries, C classes, T most objects in an image of the batch.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from util.box_ops import box_cxcywh_to_xyxy, paired_generalized_box_iou

Matches = list[tuple[Tensor, Tensor]]
"""For each image the matched queries and, in the same order, their objects: int64 vectors on the host."""


class HungarianMatcher(nn.Module):
    """Finds for each image the assignment of least total cost, exactly.

    A query takes at most one object, an object exactly one query (or none, if there are fewer queries
    than objects). The cost of a pair is
    `cost_class * -p(class) + cost_bbox * |box - box'|_1 + cost_giou * -GIoU(box, box')`.

    Args:
        cost_class, cost_bbox, cost_giou: the weights; not all may be zero.
    """

    def __init__(self, cost_class: float = 1, cost_bbox: float = 1, cost_giou: float = 1):
        super().__init__()
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError(
                "all three matching costs are zero: nothing would tell one assignment from another"
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Matches:
        """Match one layer's predictions.

        Args:
            outputs: `pred_logits` [B, Q, C + 1] and `pred_boxes` [B, Q, 4] (cxcywh).
            targets: for each image `labels` [n] and `boxes` [n, 4] (cxcywh).

        Returns:
            For each image (queries [m], objects [m]), m = min(Q, n), queries in ascending order.

        Raises:
            FloatingPointError: a cost is not finite.
        """
        return self.match_layers(outputs["pred_logits"][None], outputs["pred_boxes"][None], targets)[0]

    @torch.no_grad()
    def match_layers(self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> list[Matches]:
        """Match several layers' predictions, [L, B, Q, C + 1] and [L, B, Q, 4], with one copy to the host."""
        counts = [len(target["labels"]) for target in targets]
        if max(counts, default=0) == 0:
            nothing = torch.zeros(0, dtype=torch.int64)
            return [[(nothing, nothing) for _ in targets] for _ in range(len(logits))]
        # Padding objects to one number makes the costs of the whole batch one tensor; the padding is cut off
        # before the assignment is solved.
        pad = nn.utils.rnn.pad_sequence
        labels = pad([target["labels"] for target in targets], batch_first=True)  # [B, T]
        wanted = pad([target["boxes"] for target in targets], batch_first=True)  # [B, T, 4]
        costs = self._costs(logits.float(), boxes.float(), labels, wanted.float()).cpu().numpy()
        return [
            [self._assign(costs[layer, image, :, :n], layer, image) for image, n in enumerate(counts)]
            for layer in range(len(costs))
        ]

    def _costs(self, logits: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """Costs between the queries of an image and its own objects -> [L, B, Q, T]."""
        layers, _, queries, _ = logits.shape
        picked = labels[None, :, None].expand(layers, -1, queries, -1)  # [L, B, Q, T]
        cost_class = -logits.softmax(-1).gather(-1, picked)
        cost_bbox = torch.cdist(boxes, wanted.expand(layers, -1, -1, -1), p=1)
        own = box_cxcywh_to_xyxy(boxes)[:, :, :, None]  # [L, B, Q, 1, 4]
        theirs = box_cxcywh_to_xyxy(wanted)[None, :, None]  # [1, B, 1, T, 4]
        cost_giou = -paired_generalized_box_iou(own, theirs)
        return self.cost_bbox * cost_bbox + self.cost_class * cost_class + self.cost_giou * cost_giou

    @staticmethod
    def _assign(cost: np.ndarray, layer: int, image: int) -> tuple[Tensor, Tensor]:
        if not np.isfinite(cost).all():
            raise FloatingPointError(
                f"the matching cost of image {image} in this batch, decoder layer {layer}, is not finite"
            )
        queries, objects = linear_sum_assignment(cost)
        return torch.from_numpy(queries.astype(np.int64)), torch.from_numpy(objects.astype(np.int64))


def build_matcher(args: argparse.Namespace) -> HungarianMatcher:
    """The matcher with the costs that the flags give."""
    return HungarianMatcher(args.set_cost_class, args.set_cost_bbox, args.set_cost_giou)
