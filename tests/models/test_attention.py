"""Attention against torch.nn.MultiheadAttention with the same weights."""

import pytest
import torch

import models.attention
from models.attention import MultiheadAttention

WIDTH, HEADS, TARGETS, SOURCES, BATCH = 24, 4, 5, 7, 3


def pair(dropout=0.0):
    """Ours and torch's, in float64, with the same weights; biases are not zero."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, dropout=dropout).double()
    torch.nn.init.normal_(theirs.in_proj_bias)
    torch.nn.init.normal_(theirs.out_proj.bias)
    ours = MultiheadAttention(WIDTH, HEADS, dropout=dropout).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(kind):
    """query, key, value. `same`: query is key, as in self-attention."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(n, BATCH, WIDTH).double() for n in (TARGETS, SOURCES, SOURCES))
    if kind == "same":
        return query, query, torch.randn_like(query)
    return query, key, value


def masks(kind, targets, sources):
    padding = torch.zeros(BATCH, sources, dtype=torch.bool)
    padding[1, 3:], padding[2, 1:] = True, True
    causal = torch.ones(targets, sources, dtype=torch.bool).triu(1)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "added": {"attn_mask": torch.randn(targets, sources, dtype=torch.float64)},
        "both": {"key_padding_mask": padding, "attn_mask": causal},
    }[kind]


def as_torch_wants(options):
    """torch deprecates a bool and a float mask together; floats say the same."""
    return {
        name: torch.zeros(mask.shape).double().masked_fill(mask, float("-inf"))
        if mask.dtype == torch.bool
        else mask
        for name, mask in options.items()
    }


def test_parameters_and_initial_values_are_those_of_torch():
    torch.manual_seed(3)
    ours = MultiheadAttention(WIDTH, HEADS).state_dict()
    torch.manual_seed(3)
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "added", "both"])
@pytest.mark.parametrize("kind", ["same", "apart"])
def test_values_and_gradients_equal_torch(kind, mask, need_weights):
    ours, theirs = pair()
    arguments = inputs(kind)
    options = masks(mask, len(arguments[0]), len(arguments[1]))
    out, weights = ours(*arguments, need_weights=need_weights, **options)
    expected, expected_weights = theirs(*arguments, **as_torch_wants(options))
    torch.testing.assert_close(out, expected)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights)
    else:
        assert weights is None
    for each in (out, expected):
        (each**2).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("mask", ["none", "padding"])
def test_a_hook_sees_weights_averaged_over_heads(mask):
    ours, theirs = pair()
    arguments = inputs("apart")
    options = masks(mask, TARGETS, SOURCES)
    plain, nothing = ours(*arguments, need_weights=False, **options)
    assert nothing is None
    seen = []
    handle = ours.register_forward_hook(lambda module, args, output: seen.append(output))
    hooked, weights = ours(*arguments, need_weights=False, **options)
    handle.remove()
    assert ours(*arguments, need_weights=False, **options)[1] is None and len(seen) == 1
    assert seen[0][1] is weights and weights.shape == (BATCH, TARGETS, SOURCES)
    torch.testing.assert_close(weights, theirs(*arguments, **options)[1])
    torch.testing.assert_close(weights.sum(2), torch.ones(BATCH, TARGETS).double())
    torch.testing.assert_close(hooked, plain)
    if mask == "padding":
        hidden = options["key_padding_mask"][:, None].expand_as(weights)
        assert not weights[hidden].any()


def test_weights_come_by_default_as_from_torch():
    ours, theirs = pair()
    query, key, value = inputs("apart")
    weights = ours(query=query, key=key, value=value)[1]
    torch.testing.assert_close(weights, theirs(query=query, key=key, value=value)[1])


def test_a_hook_for_all_modules_sees_weights():
    ours, theirs = pair()
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(output) if module is ours else None
    )
    ours(*inputs("apart"), need_weights=False)
    handle.remove()
    torch.testing.assert_close(seen[0][1], theirs(*inputs("apart"))[1])


def test_weights_are_not_computed_when_nobody_looks(monkeypatch):
    def looked(*args, **kwargs):
        raise AssertionError("the weights were computed")

    ours, _ = pair()
    monkeypatch.setattr(models.attention, "softmax", looked)
    ours(*inputs("apart"), need_weights=False)
    with pytest.raises(AssertionError, match="the weights were computed"):
        ours(*inputs("apart"))


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_in_training_is_distributed_as_torch_has_it(need_weights):
    """Mean and deviation of each output value over 6000 draws: dropout on the weights, not on the outputs."""
    ours, theirs = pair(dropout=0.3)
    draws = 6000
    query, key, value = (x[:, :1].expand(-1, draws, -1) for x in inputs("apart"))
    with torch.no_grad():
        out = ours(query, key, value, need_weights=need_weights)[0]
        expected = theirs(query, key, value)[0]
        without = ours.eval()(query[:, :1], key[:, :1], value[:, :1])[0]
        repeated = ours(query[:, :2], key[:, :2], value[:, :2])[0]
    deviation = expected.std(1)  # [L, D]
    assert deviation.min() > 0.01
    assert ((out.mean(1) - without[:, 0]).abs() < 5 * deviation / draws**0.5).all()
    torch.testing.assert_close(out.std(1), deviation, rtol=0.1, atol=0)
    assert torch.equal(repeated[:, 0], repeated[:, 1])  # none in evaluation


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripted_attention_equals_itself():
    ours, _ = pair()
    arguments = inputs("apart")
    options = masks("padding", TARGETS, SOURCES)
    scripted = torch.jit.script(ours)
    for need_weights in (True, False):
        out, weights = ours(*arguments, need_weights=need_weights, **options)
        again, weights_again = scripted(*arguments, need_weights=need_weights, **options)
        torch.testing.assert_close(again, out)
        assert (weights is None) == (weights_again is None)
