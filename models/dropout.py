"""Dropout that draws its random numbers quickly on a CPU, and keeps little for the gradient.

torch draws there by bernoulli_, one conversion after the other, and keeps a float for each element until the
gradient is computed. Comparing random words takes a third of the time, and a byte is kept.

Whatever follows dropout keeps dropout's result, and whatever stands before it may keep its own: two tensors
that differ in the dropped places alone. `relu_dropout` and `dropped_product` join dropout with its neighbour,
give the same numbers, and keep one of the two.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import relu

from .eager import in_transform, is_batch_of_gradients

VALUES = 1 << 16  # of an int16
_WORDS = {torch.float64: torch.int64, torch.float32: torch.int32} | dict.fromkeys(
    (torch.bfloat16, torch.float16), torch.int16
)


class Dropout(nn.Dropout):
    """torch's module, computed by `dropout`; never in place."""

    def forward(self, x: Tensor, behind_relu: bool = False) -> Tensor:  # type: ignore[override]
        """A tensor of any shape -> another; with behind_relu of its positive part."""
        p = self.p if self.training else 0.0
        return relu_dropout(x, p) if behind_relu else dropout(x, p)


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each element to zero with probability p, and divide the others by 1 - p."""
    if not torch.jit.is_scripting():
        return _dropout(x, p)
    return functional.dropout(x, p)


def relu_dropout(x: Tensor, p: float) -> Tensor:
    """dropout(relu(x), p), of which the result alone is kept."""
    if not torch.jit.is_scripting():
        return _relu_dropout(x, p)
    return functional.dropout(relu(x), p)


def dropped_product(weights: Tensor, values: Tensor, p: float) -> Tensor:
    """dropout(weights, p) @ values, of which the dropped weights are not kept: [..., L, S], [..., S, d]."""
    if not torch.jit.is_scripting():
        return _dropped_product(weights, values, p)
    return functional.dropout(weights, p) @ values


@torch.jit.unused
def _dropout(x: Tensor, p: float) -> Tensor:
    if x.device.type != "cpu" or not _acts(p):
        return functional.dropout(x, p)
    return _Dropout.apply(x, _drawn(x, p), p)


@torch.jit.unused
def _relu_dropout(x: Tensor, p: float) -> Tensor:
    return _ReluDropout.apply(x, p) if _acts(p) else dropout(relu(x), p)


@torch.jit.unused
def _dropped_product(weights: Tensor, values: Tensor, p: float) -> Tensor:
    if not _acts(p) or weights.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return dropout(weights, p) @ values
    return _DroppedProduct.apply(weights, values, _drawn(weights, p), p)


def _acts(p: float) -> bool:
    """Whether something will be dropped, not all, and nobody records the graph or transforms it."""
    return (
        not torch.compiler.is_compiling()  # first: the compiler cannot follow what is asked next
        and not torch.jit.is_tracing()
        and not in_transform()
        and 0 < p < 1
    )


def _drawn(x: Tensor, p: float) -> Tensor:
    """bool of x's shape: True, with probability p, where an element is to be dropped.

    16 random bits decide on each, four elements share a word. What p lacks or has beyond a multiple of 2^-16
    is made up by the limit: it is one higher as often as that makes p of them all.
    """
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: x.numel()].view(x.shape)
    whole, remainder = divmod(p * VALUES, 1)
    limit = int(whole) + bool(torch.rand(()) < remainder)  # values of which elements are dropped
    if limit == VALUES:  # no int16
        return torch.ones(x.shape, dtype=torch.bool)
    # Compared in place: a comparison that gives bools takes ten times as long.
    return numbers.lt_(limit - VALUES // 2).to(torch.int8).view(torch.bool)


def _without(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    return _zeroed(x * (1 / (1 - p)), dropped)


def _zeroed(x: Tensor, dropped: Tensor) -> Tensor:
    """x itself, zero where an element is dropped, whatever it was."""
    if x.dtype not in _WORDS or torch.is_grad_enabled() or is_batch_of_gradients(x):
        return x.masked_fill_(dropped, 0.0)
    # All bits of what is kept and none of what is dropped: a sixth of masked_fill_'s time.
    words = _WORDS[x.dtype]
    x.view(words).bitwise_and_(dropped.view(torch.int8).to(words).sub_(1))
    return x


class _Dropout(torch.autograd.Function):
    """x and bools of its shape -> x without what is dropped."""

    @staticmethod
    def forward(x, dropped, p):
        return _without(x, dropped, p)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, dropped, ctx.p = inputs
        ctx.save_for_backward(dropped)

    @staticmethod
    def backward(ctx, grad):
        (dropped,) = ctx.saved_tensors
        return _without(grad, dropped, ctx.p), None, None


class _ReluDropout(torch.autograd.Function):
    """An element of the result is positive where relu let it pass and dropout kept it, and only there."""

    @staticmethod
    def forward(x, p):
        return dropout(relu(x), p)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.p = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(1 / (1 - ctx.p)), None


class _DroppedProduct(torch.autograd.Function):
    """Weights, which softmax keeps anyhow, and bools [..., L, S], values [..., S, d] -> [..., L, d]."""

    @staticmethod
    def forward(weights, values, dropped, p):
        return _without(weights, dropped, p) @ values

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.p = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        weights, values, dropped = ctx.saved_tensors
        of_weights = _zeroed(grad @ values.transpose(-2, -1), dropped).mul_(1 / (1 - ctx.p))
        of_values = _without(weights, dropped, ctx.p).transpose(-2, -1) @ grad
        return of_weights, of_values, None, None
