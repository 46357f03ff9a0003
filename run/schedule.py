"""Learning rates over a run: drops by epoch, a warm-up by step, and new rates on resume."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, StepLR

from util.errors import warn


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
