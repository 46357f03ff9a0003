"""Whether functions and modules run as they are written, unseen, so that they may take a shorter road."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks


def in_transform() -> bool:
    """Inside a transform of torch.func, or in forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_batch_of_gradients(x: Tensor) -> bool:
    """Whether x stands for several tensors, as in a backward pass with `is_grads_batched`."""
    return torch._C._functorch.is_legacy_batchedtensor(x) or torch._C._functorch.is_functorch_wrapped_tensor(
        x
    )


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see what the module takes or gives, or a function stands in its forward's place."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
        or "forward" in vars(module)
    )
