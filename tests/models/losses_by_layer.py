"""The losses of a set criterion from their definitions, one layer after the other, and inputs for them."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from models.criterion import SetCriterion
from models.matcher import HungarianMatcher
from tests.reference.streams import target

CLASSES, EOS = 91, 0.1
LOSSES = ("labels", "boxes", "cardinality")
# objects in each image; the second has more objects than queries
BATCHES = {"usual": (3, 0, 5), "crowded": (2, 11), "one": (4,), "no objects": (0, 0)}
COUNTS = (2, 4)
QUERIES = 7
LAYERS = 3


def make_targets(counts, name=""):
    return [target(f"{name}{i}", count, 10, 10, 0) for i, count in enumerate(counts)]


def make_outputs(batch, layers=LAYERS, seed=0):
    """Outputs as DETR gives them, and their leaves [logits, boxes] for gradients, one pair a layer."""
    draw = torch.Generator().manual_seed(seed)
    leaves = [
        (
            torch.randn(batch, QUERIES, CLASSES + 1, generator=draw).requires_grad_(),
            (torch.rand(batch, QUERIES, 4, generator=draw) * 0.4 + 0.1).requires_grad_(),
        )
        for _ in range(layers)
    ]
    dicts = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in leaves]
    return {**dicts[-1], "aux_outputs": dicts[:-1]}, leaves


def make_criterion(kind=SetCriterion, matcher=None, losses=LOSSES, **options):
    matcher = matcher or HungarianMatcher(1, 5, 2)
    return kind(CLASSES, matcher, {}, EOS, list(losses), **options)


class InOrder(nn.Module):
    """A foreign matcher: the first object takes the last query, and so on, as far as queries go."""

    def forward(self, outputs, targets):
        counts = [min(QUERIES, len(each["labels"])) for each in targets]
        return [(torch.arange(QUERIES - n, QUERIES).flip(0), torch.arange(n)) for n in counts]


def layer_by_layer(outputs, targets, matcher, num_boxes):
    """Every loss from its definition, one layer after the other."""
    layers = [outputs, *outputs["aux_outputs"]]
    weight = torch.ones(CLASSES + 1)
    weight[-1] = EOS
    losses = {}
    for i, layer in enumerate(layers):
        suffix = f"_{i - 1}" if i else ""
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        pairs = matcher({"pred_logits": logits, "pred_boxes": boxes}, targets)
        classes = torch.full(logits.shape[:2], CLASSES)
        l1 = giou = boxes.sum() * 0
        hits, matched = 0, 0
        for b, (queries, objects) in enumerate(pairs):
            labels, wanted = targets[b]["labels"][objects], targets[b]["boxes"][objects]
            classes[b, queries] = labels
            hits += int((logits[b, queries].argmax(-1) == labels).sum())
            matched += len(queries)
            l1 = l1 + functional.l1_loss(boxes[b, queries], wanted, reduction="sum")
            corners = [torchvision.ops.box_convert(x, "cxcywh", "xyxy") for x in (boxes[b, queries], wanted)]
            giou = giou + (1 - torchvision.ops.generalized_box_iou(*corners).diagonal()).sum()
        losses[f"loss_ce{suffix}"] = functional.cross_entropy(logits.transpose(1, 2), classes, weight)
        losses[f"loss_bbox{suffix}"] = l1 / num_boxes
        losses[f"loss_giou{suffix}"] = giou / num_boxes
        found = (logits.argmax(-1) != CLASSES).sum(1)
        true = torch.tensor([len(each["labels"]) for each in targets])
        losses[f"cardinality_error{suffix}"] = (found - true).abs().float().mean()
        if not suffix:
            losses["class_error"] = torch.tensor(100 - 100 * hits / max(matched, 1))
    return losses


def total(losses):
    return torch.stack([value for name, value in losses.items() if name.startswith("loss_")]).sum()


def assert_same(losses, expected):
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].shape == ()
        assert losses[name].item() == pytest.approx(value.item(), rel=2e-6, abs=2e-6), name
