"""A convolution with the scale and shift of a frozen norm, and with a shortcut, on little memory.

Shapes: B batch, C and C' channels in and out, h w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

from .eager import in_transform
from .linear import has_onednn
from .pointwise import gains_by_dilation

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
    if gains_by_dilation(x, weight):
        dilation = [2, 2]
    if _suits(x, weight):
        return _FoldedConvolution.apply(x, weight, scale, shift, stride, padding, dilation, groups)
    return conv2d(x, _scaled(weight, scale), shift, stride, padding, dilation, groups)


def added_to_shortcut(
    shortcut: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    geometry: Geometry,
    spare: bool,
) -> Tensor:
    """folded_conv2d, added to a shortcut, and ReLU of the sum: the end of a residual block.

    Memory of the largest maps is fresh each time, and touching it first costs more than the sums do: where
    no gradient is wanted, a shortcut that nobody else holds takes the result.

    Args:
        shortcut: [B, C', h', w'].
        x, weight, scale, shift, geometry: see folded_conv2d.
        spare: nobody else holds the shortcut: it may be overwritten.

    Returns:
        [B, C', h', w'].
    """
    if spare and _overwrites(shortcut, x, weight):
        stride, padding, dilation, groups = geometry
        place = padding, stride, dilation, groups
        kernel = torch.ops.mkldnn._convolution_pointwise_.binary
        scaled, shift = _scaled(weight, scale).to(x.dtype), shift.to(x.dtype)
        out = kernel(shortcut, x, scaled, shift, *place, "add", 1.0, None, [], "")
        return out.relu_()  # the kernel's own would make zeros of NaN
    out = folded_conv2d(x, weight, scale, shift, geometry)
    return relu(out.add_(shortcut), inplace=True)  # a convolution's gradient does not need its output


def _overwrites(shortcut: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's kernel is at hand, and no gradient and no transform of torch.func is wanted."""
    return (
        not torch.is_grad_enabled()
        and has_onednn(x)
        and _computes_in(x.dtype)
        and shortcut.dtype == x.dtype
        and weight.dtype in (x.dtype, torch.float32)
        and type(shortcut) is Tensor
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")  # older builds of torch lack it
        and not in_transform()
        and shortcut.is_contiguous(memory_format=torch.channels_last)
    )


def _computes_in(dtype: torch.dtype) -> bool:
    """Whether convolutions on a CPU compute in a type where they are called, and oneDNN does so, too."""
    if not torch.is_autocast_enabled("cpu"):
        return dtype == torch.float32
    is_bf16 = dtype == torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_bf16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
