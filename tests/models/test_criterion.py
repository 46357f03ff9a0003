"""The set loss in one pass against the same losses layer by layer, and what forks put in its place."""

import pytest
import torch
from torch import nn

from models.criterion import SetCriterion
from models.matcher import HungarianMatcher
from tests.models.losses_by_layer import (
    BATCHES,
    LAYERS,
    LOSSES,
    QUERIES,
    InOrder,
    assert_same,
    layer_by_layer,
    make_criterion,
    make_outputs,
    make_targets,
    total,
)


@pytest.mark.parametrize("matcher", [HungarianMatcher(1, 5, 2), InOrder()])
@pytest.mark.parametrize("name", BATCHES)
def test_one_pass_equals_the_losses_of_each_layer(name, matcher):
    counts = BATCHES[name]
    targets = make_targets(counts)
    outputs, leaves = make_outputs(len(counts))
    losses = make_criterion(matcher=matcher)(outputs, targets)
    expected = layer_by_layer(outputs, targets, matcher, max(sum(counts), 1))
    assert_same(losses, expected)
    flat = [leaf for pair in leaves for leaf in pair]
    gradients = torch.autograd.grad(total(losses), flat)
    for gradient, wanted in zip(gradients, torch.autograd.grad(total(expected), flat), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_a_model_without_auxiliary_outputs():
    targets = make_targets((2, 4))
    outputs, _ = make_outputs(2, layers=1)
    expected = layer_by_layer(outputs, targets, HungarianMatcher(1, 5, 2), 6)
    del outputs["aux_outputs"]
    assert_same(make_criterion()(outputs, targets), expected)


def test_what_the_caller_passed_is_left_alone(batch):
    outputs, targets = batch
    keys = set(outputs), [set(each) for each in targets]
    make_criterion()(outputs, targets)
    assert (set(outputs), [set(each) for each in targets]) == keys


@pytest.mark.parametrize("losses", [("boxes",), ("labels",), ("cardinality", "labels")])
def test_only_the_listed_losses_are_computed(losses, batch):
    outputs, targets = batch
    prefixes = {"boxes": ["loss_bbox", "loss_giou"], "labels": ["loss_ce", "class_error"]}
    wanted = [prefix for loss in losses for prefix in prefixes.get(loss, ["cardinality_error"])]
    everything = make_criterion()(outputs, targets)
    expected = {name: value for name, value in everything.items() if name.startswith(tuple(wanted))}
    assert_same(make_criterion(losses=losses)(outputs, targets), expected)


class NewLoss(SetCriterion):
    def get_loss(self, loss, outputs, targets, indices, num_boxes, **kwargs):
        if loss == "spread":
            return {"loss_spread": outputs["pred_boxes"].std()}
        return super().get_loss(loss, outputs, targets, indices, num_boxes, **kwargs)


def test_a_subclass_may_add_a_loss_of_its_own(batch):
    losses = make_criterion(NewLoss, losses=(*LOSSES, "spread"))(*batch)
    expected = make_criterion()(*batch)
    for i, layer in enumerate([*batch[0]["aux_outputs"], batch[0]]):
        expected["loss_spread" + (f"_{i}" if i < LAYERS - 1 else "")] = layer["pred_boxes"].std()
    assert_same(losses, expected)


class Thrifty(nn.Module):
    """A foreign matcher that finds one pair fewer in the last layer than in the earlier ones."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, outputs, targets):
        assert "aux_outputs" not in outputs
        self.calls += 1
        pairs = HungarianMatcher(1, 5, 2)(outputs, targets)
        return [(q[1:], o[1:]) for q, o in pairs] if self.calls % LAYERS == 1 else pairs


def test_a_matcher_may_find_other_numbers_of_pairs_in_each_layer(batch):
    """The last layer is matched first, as published."""
    outputs, targets = batch
    matcher = Thrifty()
    losses = make_criterion(matcher=matcher)(outputs, targets)
    assert matcher.calls == LAYERS
    assert_same(losses, layer_by_layer(outputs, targets, Thrifty(), 6))


def test_a_hook_on_the_matcher_sees_all_layers_side_by_side(batch):
    outputs, targets = batch
    criterion = make_criterion()
    expected = criterion(outputs, targets)
    seen = []
    criterion.matcher.register_forward_hook(lambda module, given, found: seen.append((given, found)))
    assert_same(criterion(outputs, targets), expected)
    (((side_by_side, objects), found),) = seen
    assert side_by_side["pred_logits"].shape == (LAYERS * 2, QUERIES, 92)
    assert len(objects) == len(found) == LAYERS * 2


def test_matches_found_before_are_used(batch):
    outputs, targets = batch
    criterion = make_criterion()
    matches = criterion.match(outputs, targets)
    assert len(matches) == LAYERS
    expected = criterion(outputs, targets)
    criterion.matcher = None
    assert_same(criterion(outputs, targets, matches=matches), expected)


def test_half_precision_outputs_give_float32_losses(batch):
    outputs, targets = batch
    half = {k: v.bfloat16() for k, v in outputs.items() if k != "aux_outputs"}
    losses = make_criterion()(half, targets)
    full = make_criterion()({k: v.float() for k, v in half.items()}, targets)
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert_same(losses, full)


def test_indices_that_forks_use():
    """`_get_src_permutation_idx` and `_get_tgt_permutation_idx` of the published class."""
    criterion = make_criterion()
    pairs = [([1, 4], [0, 1]), ([], []), ([2], [3])]
    indices = [tuple(torch.tensor(x, dtype=torch.int64) for x in pair) for pair in pairs]
    image, query = criterion._get_src_permutation_idx(indices)
    assert (image.tolist(), query.tolist()) == ([0, 0, 2], [1, 4, 2])
    image, obj = criterion._get_tgt_permutation_idx(indices)
    assert (image.tolist(), obj.tolist()) == ([0, 0, 2], [0, 1, 3])


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss 'colour': not one of labels, cardinality, boxes, masks"):
        make_criterion(losses=["colour"])(make_outputs(1)[0], make_targets((1,)))
