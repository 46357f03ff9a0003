"""Matching and losses (paper, section 3.1) of one decoder layer after the other.

Shapes: B batch, Q queries, C classes, N matched pairs, T objects of the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, l1_loss
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

NO_OBJECT = 0.1  # weight of that class
COSTS = {"class": 1, "bbox": 5, "giou": 2}
WEIGHTS = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2, "loss_mask": 1, "loss_dice": 1}

Targets = list[dict[str, Tensor]]
Pairs = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def match(outputs: dict[str, Any], targets: Targets) -> Pairs:
    """For each image the queries and objects of the cheapest assignment, from one matrix [B, Q, T]."""
    batch, queries = outputs["pred_logits"].shape[:2]
    probability = outputs["pred_logits"].flatten(0, 1).softmax(-1)
    boxes = outputs["pred_boxes"].flatten(0, 1)
    labels = torch.cat([target["labels"] for target in targets])
    wanted = torch.cat([target["boxes"] for target in targets])
    cost = COSTS["bbox"] * torch.cdist(boxes, wanted, p=1) - COSTS["class"] * probability[:, labels]
    cost = cost - COSTS["giou"] * generalized_box_iou(corners(boxes), corners(wanted))
    of_images = cost.view(batch, queries, -1).cpu().split([len(t["labels"]) for t in targets], -1)
    pairs = [linear_sum_assignment(own[image]) for image, own in enumerate(of_images)]
    return [(torch.as_tensor(q), torch.as_tensor(o)) for q, o in pairs]


def corners(boxes: Tensor) -> Tensor:
    """Boxes [N, 4] from cxcywh to xyxy."""
    return box_convert(boxes, "cxcywh", "xyxy")


def losses(outputs: dict[str, Any], targets: Targets) -> dict[str, Tensor]:
    """Every loss by name; an earlier layer's end in _0, _1, ... Masks are compared where there are some."""
    last = {name: value for name, value in outputs.items() if name != "aux_outputs"}
    found = of_layer(last, targets)
    for number, layer in enumerate(outputs["aux_outputs"]):
        of_this = of_layer(layer, targets)
        of_this.pop("class_error")
        found.update({f"{name}_{number}": value for name, value in of_this.items()})
    return found


def of_layer(outputs: dict[str, Any], targets: Targets) -> dict[str, Tensor]:
    """The losses of one layer's predictions."""
    logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
    pairs = match(outputs, targets)
    image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(pairs)])
    query = torch.cat([q for q, _ in pairs])
    labels = torch.cat([t["labels"][o] for t, (_, o) in zip(targets, pairs, strict=True)])
    wanted = torch.cat([t["boxes"][o] for t, (_, o) in zip(targets, pairs, strict=True)])
    objects = torch.tensor([len(t["labels"]) for t in targets], device=logits.device)
    divisor = max(objects.sum().item(), 1)

    classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, device=logits.device)
    classes[image, query] = labels
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[-1] = NO_OBJECT
    hits = logits[image, query].argmax(-1) == labels
    predicted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    giou = torch.diag(generalized_box_iou(corners(boxes[image, query]), corners(wanted)))
    found = {
        "loss_ce": cross_entropy(logits.transpose(1, 2), classes, weight),
        "class_error": 100 - 100 * hits.float().mean(),
        "cardinality_error": l1_loss(predicted.float(), objects.float()),
        "loss_bbox": l1_loss(boxes[image, query], wanted, reduction="sum") / divisor,
        "loss_giou": (1 - giou).sum() / divisor,
    }
    if "pred_masks" in outputs:
        true = [t["masks"][o] for t, (_, o) in zip(targets, pairs, strict=True)]
        found |= of_masks(outputs["pred_masks"][image, query], true, divisor)
    return found


def of_masks(masks: Tensor, true: list[Tensor], divisor: float) -> dict[str, Tensor]:
    """Focal and dice loss of logits [N, h, w] at the size of the padded true masks."""
    height, width = max(m.shape[1] for m in true), max(m.shape[2] for m in true)
    canvas = torch.zeros((len(masks), height, width), device=masks.device)
    start = 0
    for of_image in true:
        canvas[start : start + len(of_image), : of_image.shape[1], : of_image.shape[2]] = of_image
        start += len(of_image)
    logits = interpolate(masks[:, None], size=(height, width), mode="bilinear", align_corners=False).flatten(
        1
    )
    wanted = canvas.flatten(1)
    soft = logits.sigmoid()
    overlap = (2 * (soft * wanted).sum(1) + 1) / (soft.sum(1) + wanted.sum(1) + 1)
    focal = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2)
    return {"loss_mask": focal.mean(1).sum() / divisor, "loss_dice": (1 - overlap).sum() / divisor}


def weighted_sum(found: dict[str, Tensor]) -> Tensor:
    """What is minimised."""
    total = torch.zeros((), device=next(iter(found.values())).device)
    for name, value in found.items():
        factor = WEIGHTS.get(name.rstrip("0123456789").rstrip("_"))
        if factor is not None:
            total = total + factor * value
    return total
