"""The one-to-one assignment of predictions to objects (paper, section 3.1).

Shapes: B batch, Q queries, C classes, T most objects in an image of the batch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from util import box_ops
from util.amp import at_least_float32
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from util.originals import is_original, original

from .losses import Matches


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

    @original
    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Matches:
        """Match predictions, with one copy to the host.

        Args:
            outputs: `pred_logits` [B, Q, C + 1] and `pred_boxes` [B, Q, 4] (cxcywh).
            targets: for each image `labels` [n] and `boxes` [n, 4] (cxcywh).

        Returns:
            For each image (queries [m], objects [m]), m = min(Q, n), queries in ascending order.

        Raises:
            FloatingPointError: a cost is not finite.
        """
        logits, boxes = at_least_float32(outputs["pred_logits"]), at_least_float32(outputs["pred_boxes"])
        counts = [len(target["boxes"]) for target in targets]
        # Each image's objects are padded to T, so that the costs of the whole batch are one tensor.
        labels = pad_sequence([target["labels"] for target in targets], batch_first=True)  # [B, T]
        target_boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)  # [B, T, 4]
        target_boxes = target_boxes.to(boxes)

        cost_class = -logits.softmax(-1).gather(-1, labels[:, None].expand(-1, logits.shape[1], -1))
        cost_bbox = torch.cdist(boxes, target_boxes, p=1)
        cost_giou = -self._giou(boxes, target_boxes, counts)
        cost = self.cost_bbox * cost_bbox + self.cost_class * cost_class + self.cost_giou * cost_giou
        on_host = cost.cpu().numpy()  # [B, Q, T]

        matches = []
        for padded, count in zip(on_host, counts, strict=True):
            cost_of_image = padded[:, :count]  # [Q, n]
            if not np.isfinite(cost_of_image).all():
                raise FloatingPointError("the matching cost of a query and an object is not finite")
            pairs = linear_sum_assignment(cost_of_image)
            queries, objects = (torch.as_tensor(x, dtype=torch.int64) for x in pairs)
            matches.append((queries, objects))
        return matches

    def match_layers(
        self, layers: Sequence[dict[str, Tensor]], targets: list[dict[str, Tensor]]
    ) -> list[Matches]:
        """The matches of several layers' outputs with the same targets, found in one pass.

        With a user-defined GIoU each layer is matched by itself, as published.
        """
        if not is_original(sys.modules[__name__], "generalized_box_iou"):
            return [self(layer, targets) for layer in layers]
        # Side by side, the images of all layers are one batch, whose costs are copied to the host once.
        every = {name: torch.cat([layer[name] for layer in layers]) for name in ("pred_logits", "pred_boxes")}
        matches = self(every, [*targets] * len(layers))
        return [matches[i : i + len(targets)] for i in range(0, len(matches), len(targets))]

    def _giou(self, boxes: Tensor, wanted: Tensor, counts: list[int]) -> Tensor:
        """GIoU of an image's queries and its own objects, cxcywh [B, Q, 4] and [B, T, 4] -> [B, Q, T]."""
        own, theirs = box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(wanted)
        if is_original(sys.modules[__name__], "generalized_box_iou"):
            return box_ops.paired_generalized_box_iou(own[:, :, None], theirs[:, None])
        # A user-defined one is called as published, for all queries of the batch with all of its objects.
        objects = torch.cat([each[:count] for each, count in zip(theirs, counts, strict=True)])
        every = generalized_box_iou(own.flatten(0, 1), objects).view(*own.shape[:2], -1)  # [B, Q, sum of n]
        of_images = [each[i] for i, each in enumerate(every.split(counts, -1))]  # B times [Q, n]
        return pad_sequence([each.T for each in of_images], batch_first=True).transpose(1, 2)


def build_matcher(args: argparse.Namespace) -> HungarianMatcher:
    """The matcher with the costs that the flags give."""
    return HungarianMatcher(args.set_cost_class, args.set_cost_bbox, args.set_cost_giou)
