"""What training does where a loss, a gradient or a prediction is not finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import train_one_epoch
from models.criterion import SetCriterion
from models.matcher import HungarianMatcher
from tests.reference.settings import quiet
from tests.stand_in import (
    CLASSES,
    WEIGHTS,
    assert_equal_weights,
    make_batch,
    make_detector,
    train,
    weights_of,
)
from util.errors import UserError


class Spoilt(SetCriterion):
    """Multiplies loss_bbox by a factor at one of its calls."""

    def __init__(self, factor: float, at: int) -> None:
        super().__init__(CLASSES, HungarianMatcher(1, 5, 2), dict(WEIGHTS), 0.1, ["labels", "boxes"])
        self.factor, self.at, self.calls = factor, at, 0

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().forward(*args, **kwargs)
        self.calls += 1
        if self.calls == self.at:
            losses["loss_bbox"] = losses["loss_bbox"] * self.factor
        return losses


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * math.inf


class SpoiltGradient(SetCriterion):
    """Finite losses with a gradient that is not."""

    def __init__(self) -> None:
        super().__init__(CLASSES, HungarianMatcher(1, 5, 2), dict(WEIGHTS), 0.1, ["labels", "boxes"])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().forward(*args, **kwargs)
        return {**losses, "loss_bbox": _BadGradient.apply(losses["loss_bbox"])}  # type: ignore[no-untyped-call]


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {
        "SGD": torch.optim.SGD(model.parameters(), lr=0.05),
        "fused": torch.optim.AdamW(model.parameters(), lr=0.05, fused=True),
    }


@pytest.mark.parametrize("optimizer", ["SGD", "fused"])
@pytest.mark.parametrize("max_norm", [0, 0.1])
@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_training_before_the_step(
    factor: float, max_norm: float, optimizer: str
) -> None:
    """The weights are those that two good steps alone give."""
    batches = [make_batch(1, 2, seed=i) for i in range(4)]
    model, other = make_detector(), make_detector()
    with pytest.raises(UserError, match=r"not finite.* step 3\b"):
        train(model, batches, optimizers(model)[optimizer], max_norm=max_norm, criterion=Spoilt(factor, at=3))
    train(other, batches[:2], optimizers(other)[optimizer], max_norm=max_norm)
    assert_equal_weights(weights_of(model), weights_of(other))


def test_the_last_step_is_checked_too() -> None:
    model = make_detector()
    with pytest.raises(UserError, match=r"not finite.* step 2\b"):
        train(model, [make_batch(1), make_batch(2)], criterion=Spoilt(math.nan, at=2))


@pytest.mark.parametrize("max_norm", [0.1, 0])
def test_a_gradient_that_is_not_finite_ends_training_before_the_step(max_norm: float) -> None:
    model = make_detector()
    before = weights_of(model)
    with pytest.raises(UserError, match=r"not finite.* step 1\b"):
        train(model, [make_batch(2)], max_norm=max_norm, criterion=SpoiltGradient())
    assert_equal_weights(weights_of(model), before)


def test_predictions_that_are_not_finite_end_training_with_a_message() -> None:
    """What a diverged model gives: the matcher sees it before there is a loss."""
    model = make_detector()
    with torch.no_grad():
        model.locate.weight.fill_(math.nan)
    before = weights_of(model)
    with pytest.raises(UserError, match="not finite"):
        train(model, [make_batch(2)])
    torch.testing.assert_close(weights_of(model), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("max_norm", [0.1, 0])
def test_on_a_gpu_the_optimizer_leaves_out_the_step(max_norm: float) -> None:
    device = torch.device("cuda")
    batches = [make_batch(1, 2, seed=i) for i in range(4)]
    weights = []
    for spoilt, count in ((True, 4), (False, 2)):
        model = make_detector().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
        criterion = Spoilt(math.nan, at=3 if spoilt else 0).to(device)
        arguments = (model, criterion, batches[:count], optimizer, device, 0, max_norm)
        with quiet():
            if spoilt:
                with pytest.raises(UserError, match=r"not finite.* step 3\b"):
                    train_one_epoch(*arguments)
            else:
                train_one_epoch(*arguments)
        weights.append(weights_of(model))
    assert_equal_weights(*weights)
