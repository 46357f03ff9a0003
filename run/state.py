"""The learning rates of a run, warmed up by step and dropped by epoch; and its best epoch so far."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, StepLR

from util.errors import warn

# --- Learning rates: drops by epoch, a warm-up by step, new rates on resume ----------------------------


def build_schedules(optimizer: Optimizer, lr_drop: int, warmup_steps: int) -> tuple[StepLR, LinearLR | None]:
    """StepLR over epochs, and the warm-up over steps or None; each scales what the other leaves."""
    drops = StepLR(optimizer, lr_drop)
    if warmup_steps <= 0:
        return drops, None
    return drops, LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps)


def override_lr(
    optimizer: Optimizer, drops: StepLR, warmup: LinearLR | None, rates: list[float], lr_drop: int
) -> None:
    """Give each group a new rate, at the point of the schedule that it has reached; moments are kept."""
    factor = 1.0
    if warmup is not None:
        done = min(warmup.last_epoch / warmup.total_iters, 1.0)
        factor = warmup.start_factor + (warmup.end_factor - warmup.start_factor) * done
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * drops.gamma ** (drops.last_epoch // lr_drop) * factor
    drops.step_size = lr_drop
    for schedule in (drops, warmup):
        if schedule is not None:
            schedule.base_lrs = list(rates)


def warn_of_other_rates(old: Mapping[str, Any], args: Namespace) -> None:
    """Say where the rates of a checkpoint's flags, `old`, go on although other ones were given."""
    for name in ("lr", "lr_backbone", "lr_drop"):
        if name in old and old[name] != getattr(args, name):
            warn(
                f"--{name} {getattr(args, name)} is not used: the checkpoint goes on with {old[name]}; pass "
                "--override_lr to change it"
            )
    if old.get("weight_decay", args.weight_decay) != args.weight_decay:
        warn(
            f"--weight_decay {args.weight_decay} is not used: the checkpoint goes on with "
            f"{old['weight_decay']}"
        )


# --- The best epoch, by the metric that a user would choose a checkpoint by ----------------------------


def score(line: Mapping[str, Any]) -> float | None:
    """The figure that tells which epoch is better: PQ where there is one, else box AP; None without either.

    Where weights are averaged (`--ema`), the averaged weights' figure: it is them that one then uses.

    Args:
        line: an epoch's line of log.txt.
    """
    averaged = any(name in line for name in ("test_ema_PQ_all", "test_ema_coco_eval_bbox"))
    prefix = "test_ema_" if averaged else "test_"
    if f"{prefix}PQ_all" in line:
        figure = line[f"{prefix}PQ_all"]["pq"]
    else:
        figure = line.get(f"{prefix}coco_eval_bbox", [None])[0]
    return None if figure is None or math.isnan(figure) else figure


class Best:
    """Follows the scores of a run's epochs.

    Attributes:
        value: the highest score, -1 before the first.
        epoch: where it was reached, None before the first.
    """

    def __init__(self, value: float = -1.0, epoch: int | None = None):
        self.value = value
        self.epoch = epoch

    def improves(self, line: Mapping[str, Any]) -> bool:
        """Take an epoch's log line; whether it is the best so far (an equal later one is not)."""
        new = score(line)
        if new is None or (self.epoch is not None and new <= self.value):
            return False
        self.value, self.epoch = new, line["epoch"]
        return True

    def follow(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take the log lines of earlier epochs."""
        for line in lines:
            self.improves(line)

    def out_of_patience(self, epoch: int, patience: int) -> bool:
        """Whether `patience` epochs up to and with this one brought nothing better; 0: never."""
        return patience > 0 and self.epoch is not None and epoch - self.epoch >= patience
