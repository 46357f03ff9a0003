"""A convolution with the scale and shift of a frozen norm, which keeps no scaled weight for the gradient.

Shapes: B batch, C and C' channels in and out, h w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

Geometry = tuple[Any, Any, Any, int]
"""Stride, padding, dilation (two numbers each), groups."""


def folded_conv2d(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, geometry: Geometry) -> Tensor:
    """Convolve by weight * scale and add shift, where both are constants.

    Scaling the weight a second time for the gradient takes less than keeping a copy of every weight of the
    backbone through the whole of the forward pass.

    Args:
        x: [B, C, h, w].
        weight: [C', C / groups, k, k].
        scale, shift: [C'].
        geometry: of the convolution.

    Returns:
        [B, C', h', w'].
    """
    stride, padding, dilation, groups = geometry
    if _suits(x, weight):
        return _FoldedConvolution.apply(x, weight, scale, shift, stride, padding, dilation, groups)
    return conv2d(x, _scaled(weight, scale), shift, stride, padding, dilation, groups)


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether there will be a gradient to the weight, all is of one type, and nobody records the graph."""
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and x.dtype == weight.dtype
        and x.device.type in ("cpu", "cuda")
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale[:, None, None, None]


class _FoldedConvolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, scale, shift, stride, padding, dilation, groups):
        return conv2d(x, _scaled(weight, scale), shift, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, scale, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight, scale)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_x, of_scaled, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            _scaled(weight, scale),
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )
        of_weight = None if of_scaled is None else _scaled(of_scaled, scale)
        return of_x, of_weight, None, None, None, None, None, None
