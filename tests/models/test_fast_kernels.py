"""models.linear, models.dropout and models.folded_conv compute what torch's own functions do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from models.dropout import Dropout, dropout, dropped_product, relu_dropout
from models.folded_conv import Geometry, added_to_shortcut, folded_conv2d
from models.linear import Linear, linear
from models.pointwise import PointwiseConv2d
from models.resnet import RESNETS, ResNetBody
from models.transformer import TransformerEncoderLayer


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
        quarters = (out == 0).flatten()[: 4 * (out.numel() // 4)].view(-1, 4).double()  # of one random word
        together = quarters.T @ quarters / len(quarters)  # how often two of them are dropped at once
        together.fill_diagonal_(p * p)
        assert (together - p * p).abs().max().item() < 5 * math.sqrt(p * p / len(quarters))
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], out)


def test_probabilities_that_16_bits_cannot_give_are_met_on_average() -> None:
    torch.manual_seed(0)
    p = 3.5 / 65536
    draws, size = 400, 1 << 16
    dropped = sum(int((dropout(torch.ones(size), p) == 0).sum()) for _ in range(draws))
    assert not dropout(torch.ones(1000), 1 - 1e-9).any() and dropout(torch.ones(1000), 1e-9).all()
    expected = p * draws * size
    assert abs(dropped - expected) < 4 * math.sqrt(expected) < expected / 7, "3 or 4 in 65,536 are off more"


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    layer, x = Dropout(0.3), torch.ones(40)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(layer.eval()(x), x)
    assert not dropout(x, 1.0).any()


P = 0.3
JOINED: dict[str, tuple[Callable, Callable, list[tuple[int, ...]]]] = {
    "nothing": (
        lambda x: dropout(x, P),
        lambda x: x * (dropout(torch.ones(x.shape), P) != 0) * (1 / (1 - P)),
        [(7, 3, 5)],
    ),
    "relu": (lambda x: relu_dropout(x, P), lambda x: dropout(functional.relu(x), P), [(7, 3, 5)]),
    "product": (
        lambda w, v: dropped_product(w, v, P),
        lambda w, v: dropout(w, P) @ v,
        [(2, 3, 7, 5), (2, 3, 5, 4)],
    ),
}
"""Dropout and a neighbour, as one function and as two, and the shapes of what they take."""


def after_seed(function: Callable, *inputs: Tensor) -> Tensor:
    torch.manual_seed(5)
    return function(*inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", JOINED)
def test_dropout_and_its_neighbour_keep_their_bits(kind: str, dtype: torch.dtype) -> None:
    joined, apart, shapes = JOINED[kind]
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)
    found, expected = after_seed(joined, *inputs), after_seed(apart, *inputs)
    assert torch.equal(found, expected) and (found != 0).any()
    for a, b in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert torch.equal(a, b) and (a != 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_dropped_is_zero_whatever_it_was(dtype: torch.dtype) -> None:
    extreme = torch.tensor([math.nan, math.inf, -math.inf, -0.0, -1.5, 6e-5], dtype=dtype)
    x = extreme.repeat(3, 50, 1).transpose(0, 2)  # [6, 50, 3], not in the order of its axes
    out = after_seed(lambda x: dropout(x, P), x)
    dropped = after_seed(lambda x: dropout(x, P), torch.ones(x.shape)) == 0
    assert dropped.any() and torch.equal(out[dropped], torch.zeros_like(out[dropped]))
    assert not out[dropped].signbit().any()
    torch.testing.assert_close(out[~dropped], (x / (1 - P))[~dropped], equal_nan=True)


@pytest.mark.parametrize("function", [dropout, relu_dropout])
def test_dropout_inside_transforms_of_torch_func(function: Callable) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 9)
    gradient = torch.func.grad(lambda x: function(x, P).sum())
    for randomness in ("different", "same"):
        found = torch.func.vmap(gradient, randomness=randomness)(x)
        assert found.unique().tolist() == [0.0, pytest.approx(1 / (1 - P))]
    dual = torch.func.jvp(lambda x: function(x, P), (x,), (torch.ones_like(x),))  # the result, its tangent
    torch.testing.assert_close(dual[0], x * dual[1])
    with forward_ad.dual_level():
        out, tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)), P))
        torch.testing.assert_close(out, x * tangent)


@pytest.mark.parametrize("kind", JOINED)
def test_gradients_of_dropout_may_be_asked_for_in_batches(kind: str) -> None:
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape, requires_grad=True) for shape in JOINED[kind][2])
    out = after_seed(JOINED[kind][0], *inputs)
    wanted = torch.randn(3, *out.shape)

    def gradients_of(one: Tensor, batched: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, inputs, one, retain_graph=True, is_grads_batched=batched)

    expected = [torch.stack(rows) for rows in zip(*map(gradients_of, wanted), strict=True)]
    for found in (gradients_of(wanted, batched=True), torch.func.vmap(gradients_of)(wanted)):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", JOINED)
def test_dropout_and_its_neighbour_have_the_gradients_of_differences(kind: str) -> None:
    joined, _, shapes = JOINED[kind]
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    assert torch.autograd.gradcheck(lambda *given: after_seed(joined, *given), inputs)
    assert torch.autograd.gradgradcheck(lambda *given: after_seed(joined, *given), inputs)


def test_relu_and_dropout_treat_extreme_numbers_as_apart() -> None:
    extreme = [-math.inf, -1.0, -0.0, 0.0, 1e-45, 3e38, math.inf, math.nan]
    x = torch.tensor(extreme * 20, requires_grad=True)
    found, expected = (after_seed(function, x) for function in JOINED["relu"][:2])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(*(gradients(out, (x,))[0] for out in (found, expected)))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything_joins_as_apart(p: float) -> None:
    torch.manual_seed(0)
    x, values = torch.randn(6, 5), torch.randn(5, 4)
    assert torch.equal(relu_dropout(x, p), functional.dropout(x.relu(), p))
    torch.testing.assert_close(dropped_product(x, values, p), functional.dropout(x, p) @ values)


def test_an_encoder_layer_keeps_one_tensor_around_each_dropout() -> None:
    """Of attention the weights and a byte for each, of the feed-forward network what its second map takes."""
    cells, images, width, heads, inner = 60, 2, 16, 4, 96
    layer = TransformerEncoderLayer(width, heads, inner, dropout=P)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, or its address would come back
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        layer(torch.randn(cells, images, width), pos=torch.randn(cells, images, width))
    sizes = [storage.nbytes() for storage in kept.values()]
    weights = images * heads * cells * cells
    assert sizes.count(4 * weights) == 1 and sizes.count(weights) == 1
    assert sizes.count(4 * cells * images * inner) == 1


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


def end_of_a_block(stride: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Geometry]]:
    """A shortcut, an input, a weight, and what else folded_conv2d wants."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last)
    weight, scale, shift = torch.randn(6, 4, 1, 1), torch.randn(6), torch.randn(6)
    geometry: Geometry = ([stride] * 2, [0, 0], [1, 1], 1)
    shortcut = torch.randn_like(functional.conv2d(x, weight, None, stride))
    return shortcut, x, weight, (scale, shift, geometry)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spare", [False, True])
def test_a_shortcut_is_added_and_overwritten_only_where_it_may_be(stride: int, spare: bool) -> None:
    shortcut, x, weight, rest = end_of_a_block(stride)
    shortcut[0, 0, 0, 0] = math.nan
    expected = (shortcut + folded_conv2d(x, weight, *rest)).relu()
    assert (expected == 0).any() and expected.isnan().sum() == 1
    with torch.no_grad():
        given = shortcut.clone(memory_format=torch.preserve_format)
        found = added_to_shortcut(given, x, weight, *rest, spare=spare)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert spare or torch.equal(given.nan_to_num(), shortcut.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_a_shortcut_is_added_before_the_sum_is_rounded(dtype: torch.dtype) -> None:
    shortcut, x, weight, rest = end_of_a_block(1)
    shortcut, x = shortcut.to(dtype), x.to(dtype)
    scale, shift, geometry = rest
    conv = folded_conv2d(x.double(), weight.double(), scale.double(), shift.double(), geometry)
    exact = (shortcut.double() + conv).relu()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        apart = (shortcut + folded_conv2d(x, weight, *rest)).relu()
        found = added_to_shortcut(shortcut, x, weight, *rest, spare=True)
    assert found.dtype == dtype
    error, usual = ((result - exact).abs().mean().item() for result in (found, apart))
    assert 0 < error <= usual < 0.02


def test_a_shortcut_is_kept_where_its_gradient_may_be_wanted() -> None:
    shortcut, x, weight, rest = end_of_a_block(1)
    given, weight = shortcut.clone(), weight.requires_grad_()
    found = added_to_shortcut(given, x, weight, *rest, spare=True)
    assert torch.equal(given, shortcut)
    (gradient,) = gradients(found, (weight,))
    expected = (shortcut + folded_conv2d(x, weight, *rest)).relu()
    torch.testing.assert_close(gradient, gradients(expected, (weight,))[0], rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["resnet18", "resnet50"])
def stage(request: pytest.FixtureRequest) -> Any:
    """The second stage of a ResNet in evaluation, its input, and what each block gives, called alone."""
    torch.manual_seed(0)
    blocks = ResNetBody(RESNETS[request.param], False, True, 2, False).eval().layer2
    channels = 64 * RESNETS[request.param].block.expansion
    x = torch.randn(2, channels, 6, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        outputs = [x]
        for block in blocks:  # alone, no block overwrites anything
            outputs.append(block(outputs[-1]))
    return blocks, x, [out.clone() for out in outputs]


def test_a_stage_overwrites_what_its_blocks_alone_hold(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, x, expected = stage
    spared = []

    def recording(*given: Any) -> Tensor:
        spared.append(given[-1])
        return added_to_shortcut(*given)

    monkeypatch.setattr("models.resnet.added_to_shortcut", recording)
    with torch.no_grad():
        torch.testing.assert_close(blocks(x), expected[-1])
    assert torch.equal(x, expected[0]) and all(spared) and len(spared) == len(blocks)
    first = ResNetBody(RESNETS["resnet18"], False, True, 1, False).eval().layer1
    spared.clear()
    with torch.no_grad():
        first(torch.randn(1, 64, 4, 4))
    assert spared == [False, True], "the first block's shortcut is the stage's input"


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_keep_what_they_are_given(stage: Any, kind: str) -> None:
    blocks, x, expected = stage
    given: list[Tensor] = []
    for block in blocks:
        getattr(block, f"register_{kind}_hook")(lambda module, inputs, *out: given.append((*out, *inputs)[0]))
    inner: list[tuple[Tensor, Tensor]] = []
    hook = blocks[1].conv1.register_forward_pre_hook(lambda module, inputs: inner.append(inputs[0]))
    with torch.no_grad():
        blocks(x)
        hook.remove()
    for found, wanted in zip(given, expected[1:] if kind == "forward" else expected[:-1], strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(inner[0], expected[1])


def test_blocks_may_be_replaced_and_transformed(stage: Any) -> None:
    blocks, x, expected = stage
    with torch.no_grad():
        together = torch.vmap(blocks)(
            torch.stack([x, x])
        )  # some of torch's transforms refuse oneDNN's kernels
        torch.testing.assert_close(together[1], expected[-1])
        tangent = torch.func.jvp(blocks, (x,), (torch.ones_like(x),))[1]
    wanted = torch.func.jvp(blocks.requires_grad_(False), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, wanted)
    assert tangent.any()
    blocks[1] = torch.nn.Identity()
    with torch.no_grad():
        assert blocks(x).shape == expected[-1].shape


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolutions_are_torchs(
    layout: torch.memory_format, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    conv = PointwiseConv2d(5, 7)
    x = torch.randn(2, 5, 6, 4).to(memory_format=layout).requires_grad_()
    expected = functional.conv2d(x, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected)
    assert conv.bias is not None
    inputs = x, conv.weight, conv.bias
    for a, b in zip(gradients(conv(x), inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    conv(x).sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.stride() == conv.weight.stride()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert conv.state_dict().keys() == {"weight", "bias"}
