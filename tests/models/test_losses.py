"""Loss functions and figures against torch's, torchvision's and plain formulas."""

import pytest
import torch
import torchvision

from models.mask_losses import dice_loss, sigmoid_focal_loss
from util.metrics import accuracy


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


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


def test_accuracy_equals_counting(draw):
    scores = torch.randn(30, 6, generator=draw)
    classes = torch.randint(0, 6, (30,), generator=draw)
    for k, value in zip((1, 3), accuracy(scores, classes, (1, 3)), strict=True):
        ranks = [int((row > row[c]).sum()) for row, c in zip(scores, classes, strict=True)]
        assert float(value) == pytest.approx(100 * sum(rank < k for rank in ranks) / 30)
    (nothing,) = accuracy(scores[:0], classes[:0])
    assert float(nothing) == 0
