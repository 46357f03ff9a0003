"""What goes wrong inside a training step, told in one line with the images concerned.

A loss or gradient that is not finite never reaches the weights. On a CPU the flag is simply looked at. On a
GPU looking would wait for the device, so the fused optimizer is told on the device to leave the step out, and
the flag is read one step later, when it has arrived by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from util.errors import UserError

IMAGES_NAMED = 8


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
        optimizer: its fused CUDA form is told on the device to leave a step out.
        device: where the model is.
        epoch: for messages.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, epoch: int):
        self.optimizer = optimizer
        self.epoch = epoch
        self.deferred = device.type == "cuda" and bool(optimizer.defaults.get("fused"))
        self.finite = torch.ones((), dtype=torch.bool, pin_memory=self.deferred)
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
        if error is not None and _is_out_of_memory(error):
            shapes = ", ".join(str(tuple(samples.shape)) for samples in self.now["samples"])
            raise UserError(
                f"out of memory at epoch {self.epoch}, step {self.now['step']}, with a batch of shape "
                f"{shapes} ({self._images(self.now)}): lower --batch_size, --max_size or --scales"
            ) from error

    def guard(self, loss: Tensor, norm: Tensor | None) -> None:
        """Let the next optimizer step happen only if loss and gradient norm, scalars, are finite.

        Raises:
            NotFinite: they are not, and the device need not be waited for to know.
        """
        finite = torch.isfinite(loss) if norm is None else torch.isfinite(loss) & torch.isfinite(norm)
        self.norm = norm
        if self.deferred:
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.finite.copy_(finite, non_blocking=True)
        elif not bool(finite):
            raise self._not_finite("the loss or its gradient is not finite", self.now, norm)

    def verify_previous(self, wait: bool = False) -> None:
        """Look at the flag of the step before this one; `wait` for the device, behind the last step.

        Raises:
            NotFinite: it was not finite.
        """
        if wait and self.deferred:
            torch.cuda.synchronize()
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        if not bool(self.finite):
            where = self.now if wait else self.before
            raise self._not_finite("the loss or its gradient is not finite", where, self.norm)

    def _not_finite(self, what: str, where: dict[str, Any], norm: Tensor | None) -> NotFinite:
        value = math.nan if norm is None else float(norm)
        if self.deferred:
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        message = (
            f"{what} at epoch {self.epoch}, step {where['step']} ({self._images(where)}); the weights are as "
            "they were before that step. Lower --lr, or look for faulty boxes among the annotations"
        )
        ids = [int(target["image_id"]) for target in where["targets"] if "image_id" in target]
        return NotFinite(message, where | {"what": what, "gradient_norm": value, "image_ids": ids})

    @staticmethod
    def _images(where: dict[str, Any]) -> str:
        return _list([int(target["image_id"]) for target in where["targets"] if "image_id" in target])


def _list(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - IMAGES_NAMED} more" if len(ids) > IMAGES_NAMED else ""
    return f"image ids {', '.join(map(str, ids[:IMAGES_NAMED]))}{more}"


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
