"""Whether functions run as they are written, so that they may overwrite memory and look at bits."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Inside a transform of torch.func, or in forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_batch_of_gradients(x: Tensor) -> bool:
    """Whether x stands for several tensors, as in a backward pass with `is_grads_batched`."""
    return torch._C._functorch.is_legacy_batchedtensor(x) or torch._C._functorch.is_functorch_wrapped_tensor(
        x
    )
