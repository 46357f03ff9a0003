"""The matcher against all assignments, tried one by one."""

import itertools

import pytest
import torch
import torchvision

from models.matcher import HungarianMatcher, build_matcher
from tests.reference.settings import parse
from tests.reference.streams import target

CLASSES = 91
WEIGHTS = {"cost_class": 1.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def predictions(batch, queries, seed=0):
    """logits [B, Q, C + 1] and boxes [B, Q, 4]."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, CLASSES + 1, generator=draw)
    boxes = torch.rand(batch, queries, 4, generator=draw) * 0.4 + 0.1
    return logits, boxes


def match(matcher, logits, boxes, targets):
    return matcher({"pred_logits": logits, "pred_boxes": boxes}, targets)


def costs(logits, boxes, wanted, weights):
    """One image's costs [Q, n], pair by pair."""
    own = torchvision.ops.box_convert(boxes, "cxcywh", "xyxy")
    theirs = torchvision.ops.box_convert(wanted["boxes"], "cxcywh", "xyxy")
    giou = torchvision.ops.generalized_box_iou(own, theirs)
    probability = logits.softmax(1)
    cost = torch.zeros(len(boxes), len(wanted["labels"]), dtype=torch.float64)
    for q, o in itertools.product(range(len(boxes)), range(len(wanted["labels"]))):
        distance = (boxes[q] - wanted["boxes"][o]).abs().sum()
        cost[q, o] = (
            weights["cost_bbox"] * distance
            - weights["cost_class"] * probability[q, wanted["labels"][o]]
            - weights["cost_giou"] * giou[q, o]
        )
    return cost


def least_total(cost):
    """The least sum over all one-to-one assignments of the shorter side."""
    short = cost if cost.shape[0] <= cost.shape[1] else cost.T
    rows = range(short.shape[0])
    return min(
        sum(short[row, column].item() for row, column in zip(rows, columns, strict=True))
        for columns in itertools.permutations(range(short.shape[1]), len(rows))
    )


@pytest.mark.parametrize(
    "weights",
    [WEIGHTS, {**WEIGHTS, "cost_giou": 0.0}, {"cost_class": 1.0, "cost_bbox": 0.0, "cost_giou": 0.0}],
)
@pytest.mark.parametrize("queries, counts", [(6, (3, 0, 5)), (3, (5, 2)), (4, (4,)), (1, (6, 1))])
def test_the_total_cost_is_the_least_of_all_assignments(queries, counts, weights):
    logits, boxes = predictions(len(counts), queries)
    targets = [target(f"{i}", count, 10, 10, 0) for i, count in enumerate(counts)]
    matches = match(HungarianMatcher(**weights), logits, boxes, targets)
    assert len(matches) == len(counts)
    for image, (query, matched) in enumerate(matches):
        assert query.dtype == matched.dtype == torch.int64
        assert len(query) == len(matched) == min(queries, counts[image])
        assert query.tolist() == sorted(set(query.tolist())) and len(set(matched.tolist())) == len(matched)
        cost = costs(logits[image], boxes[image], targets[image], weights)
        assert cost[query, matched].sum().item() == pytest.approx(least_total(cost), abs=1e-5)


def test_other_images_of_the_batch_do_not_matter():
    logits, boxes = predictions(4, 8)
    targets = [target(f"{i}", count, 10, 10, 0) for i, count in enumerate((9, 0, 2, 5))]
    matcher = HungarianMatcher(**WEIGHTS)
    together = match(matcher, logits, boxes, targets)
    for i in range(4):
        (alone,) = match(matcher, logits[i : i + 1], boxes[i : i + 1], targets[i : i + 1])
        assert [x.tolist() for x in together[i]] == [x.tolist() for x in alone]


def test_half_precision_is_matched_in_float32():
    logits, boxes = (x.bfloat16() for x in predictions(1, 6))
    targets = [target("half", 4, 10, 10, 0)]
    matcher = HungarianMatcher(**WEIGHTS)
    half = match(matcher, logits, boxes, targets)
    full = match(matcher, logits.float(), boxes.float(), targets)
    assert [x.tolist() for x in half[0]] == [x.tolist() for x in full[0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["logits", "boxes"])
def test_a_cost_that_is_not_finite_stops_training(what, value):
    logits, boxes = predictions(3, 4)
    {"logits": logits, "boxes": boxes}[what][2, 0] = value
    targets = [target(f"{i}", 2, 10, 10, 0) for i in range(3)]
    with pytest.raises(FloatingPointError, match="matching cost .* is not finite"):
        match(HungarianMatcher(**WEIGHTS), logits, boxes, targets)


def test_gradients_do_not_pass():
    logits, boxes = (x.requires_grad_() for x in predictions(1, 4))
    match(HungarianMatcher(), logits, boxes, [target("grad", 2, 10, 10, 0)])
    assert logits.grad is None and boxes.grad is None


def test_some_cost_must_count():
    with pytest.raises(ValueError, match="all three matching costs are zero"):
        HungarianMatcher(0, 0, 0)


def test_flags_give_the_weights():
    matcher = build_matcher(parse("--set_cost_class 3 --set_cost_bbox 4 --set_cost_giou 6"))
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (3, 4, 6)
