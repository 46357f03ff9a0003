"""Whether a module computes exactly what its class says, so that an equal but quicker way may be taken."""

from torch import nn
from torch.nn.modules import module as torch_module

from .frozen_norm import FrozenBatchNorm2d

ORIGINAL_FORWARD: dict[type[nn.Module], object] = {
    kind: kind.forward for kind in (nn.Conv2d, nn.MultiheadAttention, FrozenBatchNorm2d)
}
"""Captured at import, so that a `forward` put on the class later is seen."""


def is_plain(module: nn.Module) -> bool:
    """Whether a module is of exactly one of the classes above, unchanged, and nobody listens to it.

    A subclass, a hook of any kind (pruning and old-style weight norm set them), a parametrised weight (the
    class changes) and a `forward` of somebody's own, on the instance or on the class, make it False.
    """
    return (
        ORIGINAL_FORWARD.get(type(module)) is type(module).forward  # type: ignore[comparison-overlap]
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or torch_module._global_forward_hooks
            or torch_module._global_forward_pre_hooks
            or torch_module._global_backward_hooks
            or torch_module._global_backward_pre_hooks
        )
    )
