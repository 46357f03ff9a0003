"""Batch norm that does not learn, folded into the convolution before it (paper, section 4: norms are frozen).

norm(conv(x, w)) is conv(x, scale * w) + shift. Scaling the weight at every forward costs next to nothing
beside a pass over the activations, and the activations between convolution and norm are neither computed nor
kept for the gradient, which reaches the weight through the scale.

Shapes: B batch, C and C' channels in and out, h w feature map.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.modules import module as torch_module


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine map are constants: buffers that no optimizer sees.

    Args:
        n: channels C.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Checkpoints of an ordinary batch norm carry a counter that has no meaning here.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The norm as y = scale * x + shift: two vectors [C]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]


ORIGINAL_FORWARD: dict[type[nn.Module], object] = {
    kind: kind.forward for kind in (nn.Conv2d, nn.MultiheadAttention, FrozenBatchNorm2d)
}
"""Captured at import, so that a `forward` put on the class later is seen."""


def is_plain(module: nn.Module) -> bool:
    """Whether a module is of exactly one of the classes above, unchanged, and nobody listens to it.

    It then computes what its class says, and an equal but quicker way may be taken. Three ask: folding, here;
    the transformer, for torch's fused attention; and the mask head, whose first convolution, being linear,
    computes an image's share once an image, not once a query.

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


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether `folded` may stand for the two: a bias-free convolution and a frozen norm, both plain."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and isinstance(norm, FrozenBatchNorm2d)
        and is_plain(conv)
        and is_plain(norm)
    )


def folded(
    x: Tensor,
    weight: Tensor,
    affine: tuple[Tensor, Tensor],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """A convolution and the frozen norm after it, of which `affine` is scale and shift, as one.

    [B, C, h, w] -> [B, C', h', w']. TorchScript takes no modules here, hence the convolution's settings.
    """
    scale, shift = affine
    return conv2d(x, weight * scale[:, None, None, None], shift, stride, padding, dilation, groups)
