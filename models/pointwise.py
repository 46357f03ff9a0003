"""1 × 1 convolutions by oneDNN, on one thread too.

Where torch has a single thread, which is what torchrun leaves to each process, it gives undilated 1 × 1
convolutions to another library, which takes twice the time (measured on an AMD processor). Dilation is
nothing to a kernel of one pixel, so that a dilated one computes the same.

Shapes: B batch, C and C' channels in and out, h w.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .linear import suits_onednn

SMALL = 20_480  # numbers; an image of fewer is not given to oneDNN, dilated or not


class PointwiseConv2d(nn.Conv2d):
    """torch's module of kernel size 1, without padding, stride or groups."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[B, C, h, w] -> [B, C', h, w]."""
        # Through the matrix the weight's gradient comes back in the weight's own layout, which DDP wants.
        return pointwise(x, self.weight.flatten(1), self.bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map of the channels: x [B, C, h, w], weight [C', C], bias [C'] or None -> [B, C', h, w]."""
    kernel = weight[:, :, None, None]
    if not torch.jit.is_scripting():
        return _pointwise(x, kernel, bias)
    return conv2d(x, kernel, bias)


@torch.jit.unused
def _pointwise(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    return conv2d(x, kernel, bias, dilation=2 if gains_by_dilation(x, kernel) else 1)


def gains_by_dilation(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x [B, C, h, w] by weight [C', C, k, k] is quicker, and the same, dilated."""
    return (
        suits_onednn(x, weight)  # first: the compiler cannot follow what is asked next
        and torch.get_num_threads() == 1
        and weight.shape[2:] == (1, 1)
        and (x.shape[0] > 1 or x.numel() > SMALL)
    )
