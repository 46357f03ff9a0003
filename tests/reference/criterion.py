"""Matching, the small functions under the losses, and what forks put in their place."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference.compare import Values
from tests.reference.model import tensors
from tests.reference.settings import SMALL, build
from tests.reference.streams import float_tensor, picture, stream, target

# objects in each image of a batch; with 100 queries the fourth has more objects than queries
MATCHED_BATCHES = ((5,), (0, 7), (30, 1, 0, 9), (120, 3), (0, 0))


def _normal_tensors(key: str, seed: int) -> tuple[np.random.Generator, Callable[..., Tensor]]:
    random = stream(key, seed)
    return random, lambda *shape: float_tensor(random.normal(0, 1, shape))


def matching(seed: int) -> Values:
    """Pairs of query and object, [2, N] for each image."""
    from models.matcher import HungarianMatcher

    random = stream("matcher", seed)
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    values: Values = {}
    for i, counts in enumerate(MATCHED_BATCHES):
        logits = random.normal(0, 2, (len(counts), 100, 92))
        boxes = random.uniform(0.1, 0.5, (len(counts), 100, 4))
        outputs = {"pred_logits": float_tensor(logits), "pred_boxes": float_tensor(boxes)}
        targets = [target(f"m{i}{j}", count, 10, 10, seed) for j, count in enumerate(counts)]
        for j, (queries, objects) in enumerate(matcher(outputs, targets)):
            values[f"match{i}/{j}"] = torch.stack([queries, objects]).numpy()
    return values


def box_functions(seed: int) -> Values:
    """Box geometry, the boxes of masks, and top-1 accuracy."""
    from util import box_ops
    from util.misc import accuracy

    random, normal = _normal_tensors("functions", seed)
    centres = random.uniform(0.2, 0.8, (6, 2))
    sizes = random.uniform(0.05, 0.4, (6, 2))
    corners = box_ops.box_cxcywh_to_xyxy(float_tensor(np.hstack([centres, sizes])))
    first, last = corners[:4], corners[2:]
    masks = normal(4, 9, 11) > 0.8
    masks[2] = False
    masks[2, 4, 5] = True  # a single pixel
    scores = normal(9, 5)
    iou, union = box_ops.box_iou(first, last)
    return tensors(
        "functions",
        {
            "xyxy": corners,
            "back": box_ops.box_xyxy_to_cxcywh(corners),
            "iou": iou,
            "union": union,
            "giou": box_ops.generalized_box_iou(first, last),
            "mask_boxes": box_ops.masks_to_boxes(masks),
            "accuracy": accuracy(scores, torch.arange(9) % 5)[0],
        },
    )


def mask_losses(seed: int) -> Values:
    """Dice and focal loss of three masks of seven pixels, divided by two or three boxes."""
    from models.segmentation import dice_loss, sigmoid_focal_loss

    _, normal = _normal_tensors("mask_functions", seed)
    logits = normal(3, 7)
    masks = (normal(3, 7) > 0).float()
    return tensors(
        "mask_functions",
        {
            "dice": dice_loss(logits, masks, 2.0),
            "focal": sigmoid_focal_loss(logits, masks, 2.0),
            "focal_even": sigmoid_focal_loss(logits, masks, 3.0, alpha=-1, gamma=1),
        },
    )


class GreedyMatcher(nn.Module):
    """Gives each object in turn the nearest query (L1 of boxes) that is still free."""

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> list:
        pairs = []
        for boxes, each in zip(outputs["pred_boxes"], targets, strict=True):
            distances = (boxes[:, None] - each["boxes"]).abs().sum(-1)  # [Q, N]
            queries: list[int] = []
            for column in distances.T:
                column[queries] = torch.inf
                queries.append(int(column.argmin()))
            pairs.append((torch.tensor(queries), torch.arange(len(queries))))
        return pairs


def extension(seed: int) -> Values:
    """What forks do first: a matcher or a loss of their own, or fewer losses, in every decoder layer."""
    from models.detr import SetCriterion

    class FocalCriterion(SetCriterion):
        def loss_labels(self, outputs, targets, indices, num_boxes, log=True):
            logits = outputs["pred_logits"]  # [B, Q, C]
            batch, queries = self._get_src_permutation_idx(indices)
            labels = [each["labels"][objects] for each, (_, objects) in zip(targets, indices, strict=True)]
            truth = torch.zeros_like(logits)
            truth[batch, queries, torch.cat(labels)] = 1
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            return {"loss_ce": (entropy * (logits.sigmoid() - truth) ** 2).sum() / num_boxes}

    model, criterion, _ = build(SMALL, seed)
    outputs = model.eval()([picture(f"ext{i}", 64, 96, seed) for i in range(2)])
    targets = [target(f"ext{i}", 3 + i, 64, 96, seed) for i in range(2)]
    weights: dict[str, float] = criterion.weight_dict
    usual_losses = ["labels", "boxes", "cardinality"]
    variants = {
        "matcher": SetCriterion(91, GreedyMatcher(), weights, 0.1, usual_losses),
        "focal": FocalCriterion(91, criterion.matcher, weights, 0.1, usual_losses),
        "boxes_only": SetCriterion(91, criterion.matcher, weights, 0.1, ["boxes"]),
    }
    box_weight = model.bbox_embed.layers[0].weight
    values: Values = {}
    for name, variant in variants.items():
        losses = variant(outputs, targets)
        total = torch.stack([loss for key, loss in losses.items() if key in weights]).sum()
        (gradient,) = torch.autograd.grad(total, box_weight, retain_graph=True)
        values.update(tensors(f"extension/{name}", {**losses, "grad": gradient.norm()}))
    return values
