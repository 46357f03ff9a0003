"""Dropout that draws its random numbers quickly on a CPU.

torch draws there by bernoulli_, one conversion after the other, and keeps a float for each element until the
gradient is computed. Comparing random words takes a third of the time, and a byte is kept.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS = 1 << 32  # the values of an int32


class Dropout(nn.Dropout):
    """torch's module, computed by `dropout`; never in place."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """A tensor of any shape -> another."""
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each element to zero with probability p, and divide the others by 1 - p."""
    if not torch.jit.is_scripting():
        return _dropout(x, p)
    return functional.dropout(x, p)


@torch.jit.unused
def _dropout(x: Tensor, p: float) -> Tensor:
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if x.device.type != "cpu" or not 0 < p < 1 or recorded:
        return functional.dropout(x, p)
    words = torch.empty((x.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int32)[: x.numel()].view(x.shape)
    dropped = numbers < round(p * WORDS) - WORDS // 2
    return x.masked_fill(dropped, 0.0).mul_(1 / (1 - p))
