"""What the losses are divided by: over ranks, in evaluation, and in steps of several batches."""

import pytest
import torch

import models.criterion
from models.criterion import SetCriterion
from models.matcher import HungarianMatcher
from tests.models.losses_by_layer import (
    EOS,
    QUERIES,
    assert_same,
    layer_by_layer,
    make_criterion,
    make_outputs,
    make_targets,
)


@pytest.fixture
def second_rank(monkeypatch):
    """As if a second process took part; its sums of objects and of class weights are the list's entries."""
    theirs: list[float] = []

    def all_reduce(tensor):
        tensor += torch.tensor(theirs[: tensor.numel()]).view_as(tensor)

    monkeypatch.setattr(models.criterion, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return theirs


def test_training_divides_by_the_mean_number_of_boxes_over_ranks(second_rank, batch):
    outputs, targets = batch
    second_rank[:] = [10.0]
    losses = make_criterion().train()(outputs, targets)
    assert_same(losses, layer_by_layer(outputs, targets, HungarianMatcher(1, 5, 2), 8))
    targets = make_targets((1, 0))
    second_rank[:] = [0.0]  # a mean of a half becomes 1
    losses = make_criterion().train()(outputs, targets)
    assert_same(losses, layer_by_layer(outputs, targets, HungarianMatcher(1, 5, 2), 1))


def test_evaluation_divides_by_its_own_boxes_and_asks_no_other_rank(second_rank, batch, monkeypatch):
    def asked(tensor):
        raise AssertionError("a collective in evaluation")

    monkeypatch.setattr(torch.distributed, "all_reduce", asked)
    outputs, targets = batch
    losses = make_criterion(sync_ce=True).eval()(outputs, targets)
    assert_same(losses, layer_by_layer(outputs, targets, HungarianMatcher(1, 5, 2), 6))
    with pytest.raises(AssertionError, match="a collective in evaluation"):
        make_criterion().train()(outputs, targets)


class LayerByLayer(SetCriterion):
    """A fork whose losses are computed one layer at a time."""

    def get_loss(self, *args, **kwargs):
        return super().get_loss(*args, **kwargs)


@pytest.mark.parametrize("kind", [SetCriterion, LayerByLayer])
def test_a_step_of_several_batches_is_the_step_of_their_union(kind):
    """With the normalizers of both batches, their losses add up to those of one batch of all images."""
    first, second = make_targets((3, 0), "a"), make_targets((5, 11), "b")
    outputs, _ = make_outputs(4)
    halves = [
        {k: v[part] for k, v in outputs.items() if k != "aux_outputs"}
        | {"aux_outputs": [{k: v[part] for k, v in aux.items()} for aux in outputs["aux_outputs"]]}
        for part in (slice(0, 2), slice(2, 4))
    ]
    criterion = make_criterion(kind)
    normalizers = criterion.normalizers([first, second], halves[0])
    parts = [
        criterion(half, targets, normalizers=normalizers)
        for half, targets in zip(halves, (first, second), strict=True)
    ]
    whole = criterion(outputs, first + second)
    for name, value in whole.items():
        if name.startswith("loss_"):
            assert (parts[0][name] + parts[1][name]).item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("kind", [SetCriterion, LayerByLayer])
def test_sync_ce_divides_the_classification_loss_by_the_mean_over_ranks(second_rank, kind, batch):
    outputs, targets = batch
    own = 6 + EOS * (2 * QUERIES - 6)
    second_rank[:] = [10.0, 3.0]
    criterion = make_criterion(kind, sync_ce=True).train()
    losses = criterion(outputs, targets)
    expected = layer_by_layer(outputs, targets, HungarianMatcher(1, 5, 2), 8)
    for name in expected:
        if name.startswith("loss_ce"):
            expected[name] = expected[name] * own / ((own + 3) / 2)
    assert_same(losses, expected)
