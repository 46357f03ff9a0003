"""What goes wrong inside a training step, said in one line with the images concerned.

A loss or gradient that is not finite never reaches the weights. On a CPU the flag is simply looked at. On a
GPU looking would wait for the device, so the fused optimizer learns on the device to leave the step out, and
the flag is read one step later, when it has arrived by itself.

Under fp16 a gradient overflows now and then: such a step is left out, the scale of the loss is halved, and
training goes on. Only where that does not help is it a failure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from util.errors import UserError

IMAGES_NAMED = 8
OVERFLOWS_TOLERATED = 30  # in a row: the scale has then been halved as often, from 65,536 to nothing
OF_LOSS = "the loss or its gradient is not finite"
OF_SCALE = f"the gradient overflows fp16 at any scale, {OVERFLOWS_TOLERATED} times in a row (bf16 may do)"


class NotFinite(UserError):
    """A loss, matching cost or gradient is not finite.

    Attributes:
        report: what is known about the step, tensors and plain values, to be saved for a look at it.
    """

    def __init__(self, message: str, report: dict[str, Any]):
        super().__init__(message)
        self.report = report


@contextmanager
def naming(image_ids: Sequence[int]) -> Iterator[None]:
    """Tell a matching cost that is not finite, outside training, with the images concerned."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"{error} ({_list(image_ids)}): the weights give NaN; are they those of a broken run?"
        ) from error


class StepGuard:
    """Watches the steps of one epoch; a context manager around each forward and backward pass.

    Args:
        optimizer: its fused CUDA form learns on the device to leave a step out.
        device: where the model is.
        epoch: for messages.
        tolerant: a gradient alone that is not finite is left out, not a failure.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: torch.device, epoch: int, tolerant: bool = False
    ):
        self.optimizer = optimizer
        self.epoch = epoch
        self.tolerant = tolerant
        self.overflows = 0
        self.deferred = device.type == "cuda" and bool(optimizer.defaults.get("fused"))
        self.finite = torch.ones(2, dtype=torch.bool, pin_memory=self.deferred)  # loss, gradient
        self.unread = False
        self.norm: Tensor | None = None
        self.now: dict[str, Any] = {}
        self.before: dict[str, Any] = {}

    def begin(self, step: int, samples: Sequence[Any], targets: Sequence[Any]) -> None:
        """Remember the batches of the optimizer step number `step`, which is about to be computed."""
        self.before = self.now
        flat = [target for batch in targets for target in batch]
        self.now = {
            "epoch": self.epoch,
            "step": step,
            "learning_rates": [float(group["lr"]) for group in self.optimizer.param_groups],
            "samples": [getattr(batch, "tensors", batch) for batch in samples],
            "targets": flat,
        }

    def __enter__(self) -> StepGuard:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, FloatingPointError):  # the matcher sees it first: its costs are on the host
            raise self._not_finite(str(error), self.now, None) from error
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        ):
            shapes = ", ".join(str(tuple(getattr(x, "shape", ()))) for x in self.now["samples"])
            raise UserError(
                f"out of memory at epoch {self.epoch}, step {self.now['step']}, with a batch of shape "
                f"{shapes} ({_list(_image_ids(self.now))}): lower --batch_size, --max_size or --scales"
            ) from error

    def allows(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether to take the next optimizer step: loss and gradient norm, scalars, are finite.

        True as well where the optimizer knows it on the device, which leaves the step out by itself.

        Raises:
            NotFinite: they are not, and the device need not be waited for to know.
        """
        finite = torch.stack([loss.isfinite(), norm.isfinite()])
        self.norm = norm
        if self.deferred:
            self.optimizer.found_inf = (~finite.all()).float()  # type: ignore[attr-defined]
            self.finite.copy_(finite, non_blocking=True)
            self.unread = True
            return True
        self._judge(finite, self.now)
        return bool(finite[1])

    def verify_previous(self, wait: bool = False) -> None:
        """Look at the flags of the step before this one; `wait` for the device, after the last step.

        Raises:
            NotFinite: it was not finite.
        """
        if wait and self.deferred:
            torch.cuda.synchronize()
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        if self.unread:
            self.unread = False
            self._judge(self.finite, self.now if wait else self.before)

    def _judge(self, finite: Tensor, where: dict[str, Any]) -> None:
        of_loss, of_gradient = finite.tolist()
        self.overflows = 0 if of_gradient else self.overflows + 1
        if not of_loss or (not of_gradient and not self.tolerant):
            raise self._not_finite(OF_LOSS, where, self.norm)
        if self.overflows >= OVERFLOWS_TOLERATED:
            raise self._not_finite(OF_SCALE, where, self.norm)

    def _not_finite(self, what: str, where: dict[str, Any], norm: Tensor | None) -> NotFinite:
        value = math.nan if norm is None else float(norm)
        if self.deferred:
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        ids = _image_ids(where)
        message = (
            f"{what} at epoch {self.epoch}, step {where['step']} ({_list(ids)}); the weights are as they "
            "were before that step. Lower --lr, or look for faulty boxes among the annotations"
        )
        return NotFinite(message, where | {"what": what, "gradient_norm": value, "image_ids": ids})


def _image_ids(step: Mapping[str, Any]) -> list[int]:
    """Those of a step's targets that tell one."""
    return [int(target["image_id"]) for target in step["targets"] if "image_id" in target]


def _list(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - IMAGES_NAMED} more" if len(ids) > IMAGES_NAMED else ""
    return f"image ids {', '.join(map(str, ids[:IMAGES_NAMED]))}{more}"
