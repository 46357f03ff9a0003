"""models.linear, models.dropout and models.folded_conv compute what torch's own functions do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.dropout import Dropout, dropout
from models.folded_conv import folded_conv2d
from models.linear import Linear, linear


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return list(torch.autograd.grad(out, inputs, weights, retain_graph=True))


@pytest.mark.parametrize("shape", [(7, 2, 8), (3, 16), (1, 4, 5, 6), (0, 2, 8)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("outputs", [3, 40])
def test_linear_is_torchs(shape: tuple[int, ...], biased: bool, outputs: int) -> None:
    torch.manual_seed(0)
    given = [torch.randn(shape), torch.randn(outputs, shape[-1])] + [torch.randn(outputs)] * biased
    inputs = tuple(x.requires_grad_() for x in given)
    bias = inputs[2] if biased else None
    found, expected = (f(inputs[0], inputs[1], bias) for f in (linear, functional.linear))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pairs = zip(gradients(found, inputs), gradients(expected, inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        turned = inputs[0].transpose(0, 1)
        if turned.shape[-1] == shape[-1]:
            torch.testing.assert_close(linear(turned, inputs[1], bias), expected.transpose(0, 1))


def test_linear_has_second_derivatives() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    second = []
    for function in (linear, functional.linear):
        (first,) = torch.autograd.grad(function(x, weight, None).pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.pow(2).sum(), weight)[0])
    torch.testing.assert_close(second[0], second[1], rtol=1e-4, atol=1e-3)


def test_linear_under_autocast_gives_its_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 4)(torch.ones(2, 8)).dtype == torch.bfloat16


def test_dropout_draws_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        x = torch.ones(1001, 999, requires_grad=True)
        out = dropout(x, p)
        spread = math.sqrt(p * (1 - p) / out.numel())
        assert abs((out == 0).double().mean().item() - p) < 5 * spread
        assert out.detach().max().item() == pytest.approx(1 / (1 - p), rel=1e-6)
        halves = (out == 0).flatten()[: 2 * (out.numel() // 2)].view(-1, 2)  # of one random word
        assert abs(halves.all(1).double().mean().item() - p * p) < 5 * math.sqrt(p * p / len(halves))
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], out)


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    layer, x = Dropout(0.3), torch.ones(40)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(layer.eval()(x), x)
    assert not dropout(x, 1.0).any()


@pytest.mark.parametrize("groups, stride", [(1, 1), (2, 2)])
def test_folded_convolution_is_the_plain_one(groups: int, stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    weight = torch.randn(6, 4 // groups, 3, 3, requires_grad=True)
    scale, shift = torch.randn(6), torch.randn(6)
    geometry = ([stride] * 2, [1, 1], [1, 1], groups)
    found = folded_conv2d(x, weight, scale, shift, geometry)
    scaled = functional.conv2d(x, weight, None, stride, 1, 1, groups) * scale[:, None, None]
    expected = scaled + shift[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(found, (x, weight)), gradients(expected, (x, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    (alone,) = gradients(folded_conv2d(x.detach(), weight, scale, shift, geometry), (weight,))
    torch.testing.assert_close(alone, gradients(expected, (weight,))[0], rtol=1e-4, atol=1e-4)
