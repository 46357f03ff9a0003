"""Loss functions and figures against torch's, torchvision's and plain formulas."""

import pytest
import torch
import torchvision
from torch.nn import functional

from models.losses import MatchedPairs, cardinality_error, classification_loss
from models.mask_losses import dice_loss, sigmoid_focal_loss
from util.metrics import accuracy

LAYERS, BATCH, QUERIES, CLASSES = 3, 2, 4, 5


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def test_classification_loss_is_a_weighted_mean_in_each_layer(draw):
    logits = torch.randn(LAYERS, BATCH, QUERIES, CLASSES + 1, generator=draw, dtype=torch.float64)
    classes = torch.randint(0, CLASSES + 1, (LAYERS, BATCH, QUERIES), generator=draw)
    weight = torch.rand(CLASSES + 1, generator=draw, dtype=torch.float64)
    losses = classification_loss(logits, classes, weight)
    expected = [
        functional.cross_entropy(logits[i].flatten(0, 1), classes[i].flatten(), weight) for i in range(LAYERS)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_cardinality_error_counts_predicted_objects():
    logits = torch.zeros(2, 2, 3, 3)  # classes 0 and 1, and "no object"
    logits[..., 2] = 1
    logits[0, 0, :2, 0] = 2  # layer 0: two objects in the first image, none in the second
    logits[1, :, :, 1] = 2  # layer 1: three in each
    assert cardinality_error(logits, torch.tensor([1.0, 2.0])).tolist() == [1.5, 1.5]
    assert cardinality_error(logits, torch.tensor([2.0, 0.0])).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("shape", [(3, 7), (3, 4, 5), (0, 7)])
def test_dice_loss_equals_its_formula(draw, shape):
    logits = torch.randn(shape, generator=draw, dtype=torch.float64)
    masks = (torch.rand(shape, generator=draw) > 0.5).double()
    total = torch.zeros((), dtype=torch.float64)
    for each, mask in zip(logits, masks, strict=True):
        soft = 1 / (1 + torch.exp(-each))
        total += 1 - (2 * (soft * mask).sum() + 1) / (soft.sum() + mask.sum() + 1)
    torch.testing.assert_close(dice_loss(logits, masks, 2.0), total / 2)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.7, 1.5), (-1.0, 3.0)])
def test_focal_loss_equals_torchvision(draw, alpha, gamma):
    logits = 3 * torch.randn(4, 9, generator=draw, dtype=torch.float64)
    masks = (torch.rand(4, 9, generator=draw) > 0.5).double()
    expected = torchvision.ops.sigmoid_focal_loss(logits, masks, alpha, gamma).mean(1).sum() / 3
    torch.testing.assert_close(sigmoid_focal_loss(logits, masks, 3.0, alpha, gamma), expected)
    if (alpha, gamma) == (0.25, 2.0):
        torch.testing.assert_close(sigmoid_focal_loss(logits, masks, 3.0), expected)


def test_pairs_of_all_layers_index_predictions_and_concatenated_objects():
    # objects: three in image 0, none in image 1, two in image 2
    as_lists = [
        [([1, 3, 6], [2, 0, 1]), ([], []), ([0, 5], [1, 0])],
        [([0, 2, 4], [0, 1, 2]), ([], []), ([3, 6], [0, 1])],
    ]
    matches = [[(torch.tensor(q).long(), torch.tensor(o).long()) for q, o in layer] for layer in as_lists]
    pairs = MatchedPairs.from_matches(matches, [3, 0, 2], torch.device("cpu"))
    assert pairs.image.tolist() == [[0, 0, 0, 2, 2]] * 2
    assert pairs.query.tolist() == [[1, 3, 6, 0, 5], [0, 2, 4, 3, 6]]
    assert pairs.object.tolist() == [[2, 0, 1, 4, 3], [0, 1, 2, 3, 4]]
    predictions = torch.arange(2 * 3 * 7).view(2, 3, 7, 1)
    assert predictions[pairs.index][..., 0].tolist() == [[1, 3, 6, 14, 19], [21, 23, 25, 38, 41]]


def test_accuracy_equals_counting(draw):
    scores = torch.randn(30, 6, generator=draw)
    classes = torch.randint(0, 6, (30,), generator=draw)
    for k, value in zip((1, 3), accuracy(scores, classes, (1, 3)), strict=True):
        ranks = [int((row > row[c]).sum()) for row, c in zip(scores, classes, strict=True)]
        assert float(value) == pytest.approx(100 * sum(rank < k for rank in ranks) / 30)
    (nothing,) = accuracy(scores[:0], classes[:0])
    assert float(nothing) == 0
