"""Linear maps that a CPU computes by oneDNN, as it computes convolutions.

torch gives float32 products to MKL, which keeps its widest kernels for Intel's processors; on others oneDNN
takes half the time for the same sums. Wherever it is not at hand, or a graph is recorded, torch's own linear
stands in.
"""

import platform

import torch
from torch import Tensor, nn
from torch.nn import functional

X86 = platform.machine().lower() in ("x86_64", "amd64")


class Linear(nn.Linear):
    """torch's module, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[..., in_features] -> [..., out_features]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.nn.functional.linear: x [..., n], weight [m, n], bias [m] or None -> [..., m]."""
    if not torch.jit.is_scripting():
        return _linear(x, weight, bias)
    return functional.linear(x, weight, bias)


@torch.jit.unused
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not suits_onednn(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is at hand, both are plain float32, and nobody records the graph."""
    return (
        x.dtype == weight.dtype == torch.float32
        and has_onednn(x)
        and not torch.is_autocast_enabled("cpu")  # last: the compiler cannot follow the question
    )


def has_onednn(x: Tensor) -> bool:
    """Whether oneDNN's kernels can be called with x, and nobody records the graph."""
    return bool(
        not torch.compiler.is_compiling()  # first: the compiler cannot follow what is asked next
        and type(x) in (Tensor, nn.Parameter)  # no proxy, and no subclass that watches torch's functions
        and X86
        and x.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch's compiler calls it, too
        and not torch.jit.is_tracing()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """x [..., n], weight [m, n], bias [m] or None -> [..., m], with gradients by the same kernel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # [N, m]
        inputs = x.reshape(-1, x.shape[-1])  # [N, n]
        of_x = linear(grad, weight.t(), None) if to_x else None
        of_weight = _transposed_product(rows, inputs) if to_weight else None
        of_bias = rows.sum(0) if to_bias else None
        return of_x, of_weight, of_bias


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a [N, m], b [N, n] -> a.t() @ b. The kernel copies its first factor: let that be the smaller one."""
    if a.shape[1] <= b.shape[1]:
        return linear(a.t(), b.t(), None)
    return linear(b.t(), a.t(), None).t()
