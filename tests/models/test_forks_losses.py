"""Whatever is put in place of a part of criterion or matcher is called as published, layer by layer.

Wherever it is put: on the object, in a subclass, on the class, in the module, in the file.
"""

import types
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import models.criterion
import models.detr
import models.losses
import models.matcher
import models.segmentation
from models.criterion import SetCriterion
from models.matcher import HungarianMatcher
from tests.models.losses_by_layer import (
    COUNTS,
    LAYERS,
    InOrder,
    assert_same,
    make_criterion,
    make_outputs,
    make_targets,
)
from util import box_ops
from util.originals import is_original

METHODS = ("loss_labels", "loss_cardinality", "loss_boxes", "get_loss", "_get_src_permutation_idx")


def counted(function: Any, calls: list[tuple]) -> Any:
    """The same function, which notes its arguments but for `self`."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return function(self, *args, **kwargs)

    return call


# --- The one question ----------------------------------------------------------------------------------


def test_is_original_sees_a_replacement_wherever_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = make_criterion()
    assert is_original(criterion, "loss_boxes") and is_original(box_ops, "generalized_box_iou")
    assert not is_original(criterion, "train") and not is_original(criterion, "no such name")

    on_the_object = make_criterion()
    on_the_object.loss_boxes = types.MethodType(lambda *args: {}, on_the_object)
    in_a_subclass = make_criterion(type("Sub", (SetCriterion,), {"loss_boxes": lambda *args: {}}))
    renamed = make_criterion(type("Sub", (SetCriterion,), {"loss_boxes": SetCriterion.loss_cardinality}))
    for one in (on_the_object, in_a_subclass, renamed):
        assert not is_original(one, "loss_boxes") and is_original(one, "loss_labels")
    monkeypatch.setattr(SetCriterion, "loss_boxes", counted(SetCriterion.loss_boxes, []))
    assert not is_original(criterion, "loss_boxes")
    # A file that is laid over ours marks nothing.
    monkeypatch.setattr(box_ops, "generalized_box_iou", lambda a, b: box_ops.box_iou(a, b)[0])
    assert not is_original(box_ops, "generalized_box_iou")


# --- Methods of the criterion --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["object", "subclass", "class"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_called_for_each_layer(
    name: str, place: str, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_criterion()(*batch)
    calls: list[tuple] = []
    mine = counted(getattr(SetCriterion, name), calls)
    criterion = make_criterion(
        type("Sub", (SetCriterion,), {name: mine}) if place == "subclass" else SetCriterion
    )
    if place == "object":
        setattr(criterion, name, types.MethodType(mine, criterion))
    elif place == "class":
        monkeypatch.setattr(SetCriterion, name, mine)
    assert_same(criterion(*batch), expected)
    losses = {"get_loss": 3, "_get_src_permutation_idx": 2}.get(name, 1)
    assert len(calls) == LAYERS * losses
    if name.startswith("loss_"):
        outputs, targets, indices, num_boxes = calls[0][0]
        assert outputs.keys() == {"pred_logits", "pred_boxes"} and targets is batch[1] and num_boxes == 6
        assert [len(queries) for queries, _ in indices] == [2, 4]
    if name == "loss_labels":  # the last layer first
        assert [options for _, options in calls] == [{}, {"log": False}, {"log": False}]


def test_what_a_method_gives_is_the_loss(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = make_criterion()
    expected = criterion(*batch)
    monkeypatch.setattr(SetCriterion, "loss_labels", lambda *args, **kwargs: {"loss_ce": torch.tensor(7.0)})
    losses = criterion(*batch)
    assert [losses[name].item() for name in ("loss_ce", "loss_ce_0", "loss_ce_1")] == [7.0] * LAYERS
    assert "class_error" not in losses
    others = {name: value for name, value in expected.items() if not name.startswith(("loss_ce", "class"))}
    assert_same({name: losses[name] for name in others}, others)


def test_losses_come_in_the_published_order(batch: Any) -> None:
    one_layer = ["loss_ce", "loss_bbox", "loss_giou", "cardinality_error"]
    expected = ["loss_ce", "class_error", *one_layer[1:], *(f"{n}_{i}" for i in (0, 1) for n in one_layer)]
    assert list(make_criterion()(*batch)) == expected


# --- Matcher -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["object", "subclass", "class", "another matcher"])
def test_a_matcher_is_called_for_each_layer(place: str, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_criterion(matcher=InOrder())(*batch)
    calls: list[tuple] = []
    mine = counted(InOrder.forward, calls)
    matcher: Any = HungarianMatcher()
    if place == "object":
        matcher.forward = types.MethodType(mine, matcher)
    elif place == "class":
        monkeypatch.setattr(HungarianMatcher, "forward", mine)
    else:
        base = HungarianMatcher if place == "subclass" else nn.Module
        matcher = type("Mine", (base,), {"forward": mine})()
    assert_same(make_criterion(matcher=matcher)(*batch), expected)
    assert len(calls) == LAYERS
    assert all("aux_outputs" not in outputs and targets is batch[1] for (outputs, targets), _ in calls)


# --- GIoU ----------------------------------------------------------------------------------------------


def only_iou(calls: list) -> Any:
    def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        calls.append((len(boxes1), len(boxes2)))
        return box_ops.box_iou(boxes1, boxes2)[0]

    return iou


def test_giou_of_box_ops_is_the_losses(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called for the matched pairs of each layer; the matcher holds a name of its own, as published."""
    outputs, targets = batch
    criterion = make_criterion()
    expected, matches = criterion(outputs, targets), criterion.match(outputs, targets)
    calls: list = []
    monkeypatch.setattr(box_ops, "generalized_box_iou", only_iou(calls))
    losses = criterion(outputs, targets)
    assert calls == [(6, 6)] * LAYERS
    layers = [outputs, *outputs["aux_outputs"]]
    for layer, matched, name in zip(
        layers, matches, ("loss_giou", "loss_giou_0", "loss_giou_1"), strict=True
    ):
        total = 0.0
        for i, (queries, objects) in enumerate(matched):
            own = box_ops.box_cxcywh_to_xyxy(layer["pred_boxes"][i, queries])
            wanted = box_ops.box_cxcywh_to_xyxy(targets[i]["boxes"][objects])
            total += float((1 - box_ops.box_iou(own, wanted)[0].diag()).sum().detach())
        expected[name] = torch.tensor(total / 6)
    assert_same(losses, expected)


def test_giou_of_the_matcher_is_called_for_all_queries_with_all_objects(
    batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, targets = batch
    calls: list = []
    criterion = make_criterion(matcher=HungarianMatcher(0, 0, 1))
    before = criterion.match(outputs, targets)
    monkeypatch.setattr(models.matcher, "generalized_box_iou", lambda a, b: -only_iou(calls)(a, b))
    matches = criterion.match(outputs, targets)
    assert calls == [(14, 6)] * LAYERS
    for layer, of_layer in zip([outputs, *outputs["aux_outputs"]], matches, strict=True):
        for i, (queries, objects) in enumerate(of_layer):
            wanted = box_ops.box_cxcywh_to_xyxy(targets[i]["boxes"])
            iou = box_ops.box_iou(box_ops.box_cxcywh_to_xyxy(layer["pred_boxes"][i]), wanted)[0]
            least = linear_sum_assignment(iou.detach())
            assert (queries.tolist(), objects.tolist()) == tuple(index.tolist() for index in least)
    assert [[q.tolist() for q, _ in layer] for layer in before] != [
        [q.tolist() for q, _ in m] for m in matches
    ]


def test_the_original_checks_nothing_and_looks_at_pairs_alone(batch: Any) -> None:
    """A check would wait for a GPU."""
    outputs, targets = batch
    outputs["pred_boxes"] = torch.cat([outputs["pred_boxes"][..., :2], -outputs["pred_boxes"][..., 2:]], -1)
    make_criterion()(outputs, targets)
    with pytest.raises(AssertionError):
        box_ops.generalized_box_iou(*[box_ops.box_cxcywh_to_xyxy(outputs["pred_boxes"][0])] * 2)


# --- Functions of modules ------------------------------------------------------------------------------


def test_accuracy_of_the_criterion_counts(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def mine(output: Tensor, target: Tensor) -> list[Tensor]:
        seen.append((tuple(output.shape), tuple(target.shape)))
        return [torch.tensor(40.0)]

    monkeypatch.setattr(models.criterion, "accuracy", mine)
    assert make_criterion()(*batch)["class_error"] == 60 and seen == [((6, 92), (6,))]


def test_cross_entropy_of_torch_counts(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_criterion()(*batch)
    cross_entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(models.losses.F, "cross_entropy", lambda *a, **k: 3 * cross_entropy(*a, **k))
    torch.testing.assert_close(make_criterion()(*batch)["loss_ce_0"], 3 * expected["loss_ce_0"])


def mask_batch() -> tuple[Any, Any]:
    outputs, targets = make_outputs(2)[0], make_targets(COUNTS)
    draw = torch.Generator().manual_seed(3)
    outputs["pred_masks"] = torch.randn(2, 7, 10, 12, generator=draw, requires_grad=True)
    sizes = ((40, 44), (36, 48))
    for target, size in zip(targets, sizes, strict=True):
        target["masks"] = torch.rand(len(target["labels"]), *size, generator=draw) > 0.5
    return outputs, targets


@pytest.mark.parametrize(("name", "loss"), [("sigmoid_focal_loss", "loss_mask"), ("dice_loss", "loss_dice")])
def test_mask_losses_of_the_segmentation_module_count(
    name: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called once, for all matched masks at full size, with the number of boxes."""
    outputs, targets = mask_batch()
    criterion = make_criterion(losses=["masks"])
    expected = criterion(outputs, targets)
    calls = []
    function = getattr(models.segmentation, name)

    def mine(inputs: Tensor, true: Tensor, num_boxes: float) -> Tensor:
        calls.append((tuple(inputs.shape), tuple(true.shape), num_boxes))
        return 2 * function(inputs, true, num_boxes)

    monkeypatch.setattr(models.segmentation, name, mine)
    losses = criterion(outputs, targets)
    assert calls == [((6, 40 * 48), (6, 40 * 48), 6)]
    for each in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(losses[each], (2 if each == loss else 1) * expected[each])


@pytest.mark.parametrize("name", ["_get_src_permutation_idx", "_get_tgt_permutation_idx"])
def test_indices_of_masks_count(name: str) -> None:
    outputs, targets = mask_batch()
    criterion = make_criterion(losses=["masks"])
    expected = criterion(outputs, targets)
    original = getattr(criterion, name)

    def first_image_alone(indices: Any) -> tuple[Tensor, Tensor]:
        image, place = original(indices)
        return image * 0, place * 0

    setattr(criterion, name, first_image_alone)
    assert criterion(outputs, targets)["loss_mask"] != expected["loss_mask"]
    assert (criterion.matched_queries(targets) is None) == (name == "_get_src_permutation_idx")


def test_masks_of_a_batch_that_is_padded_further() -> None:
    """--compile pads batches to a multiple of 32: masks cover more than the largest image."""
    outputs, targets = mask_batch()
    criterion = make_criterion(losses=["masks"])
    expected = criterion(outputs, targets)
    outputs["pred_masks"] = nn.functional.pad(outputs["pred_masks"], (0, 4, 0, 6), mode="replicate")
    assert_same(criterion(outputs, targets), expected)


# --- What is handed out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [SetCriterion, type("Sub", (SetCriterion,), {"get_loss": counted(SetCriterion.get_loss, [])})]
)
def test_losses_may_be_scaled_in_place(kind: Any) -> None:
    """As detectron2's wrapper does it; backward then gives the scaled gradients."""
    outputs, targets = mask_batch()
    leaves = [outputs["pred_logits"], outputs["aux_outputs"][0]["pred_boxes"], outputs["pred_masks"]]
    criterion = make_criterion(kind, losses=["labels", "boxes", "cardinality", "masks"])

    def gradients(in_place: bool) -> tuple[Tensor, ...]:
        losses = criterion(outputs, targets)
        values = {name: value.item() for name, value in losses.items()}
        for i, name in enumerate(losses):
            if in_place:
                losses[name] *= i + 1
            else:
                losses[name] = losses[name] * (i + 1)
        for i, (name, value) in enumerate(values.items()):
            assert losses[name].item() == pytest.approx(value * (i + 1)), "no loss shares memory with another"
        return torch.autograd.grad(sum(x for n, x in losses.items() if n.startswith("loss_")), leaves)

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected)


def test_double_precision_stays_double(batch: Any) -> None:
    outputs, targets = make_outputs(2, layers=1)[0], make_targets(COUNTS)
    outputs = {name: outputs[name].double() for name in ("pred_logits", "pred_boxes")}
    losses = make_criterion()(outputs, [{**t, "boxes": t["boxes"].double()} for t in targets])
    assert losses["loss_ce"].dtype == losses["loss_giou"].dtype == torch.float64


def test_names_that_would_do_nothing_are_not_there() -> None:
    """docs/forking.md says where each is looked up. F is torch's module."""
    for name in ("accuracy", "box_ops", "get_world_size", "dice_loss", "sigmoid_focal_loss", "DETRsegm"):
        assert not hasattr(models.detr, name)
    assert models.detr.F is torch.nn.functional
