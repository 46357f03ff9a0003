"""Learning rates over a run: drops by epoch, a warm-up by step, and both carried over on resume."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, StepLR

from run.resume import ONLY_ITS_WEIGHTS, Source
from util.distributed import is_main_process
from util.errors import UserError, warn
from util.stored import stored_flags


def build_schedules(optimizer: Optimizer, lr_drop: int, warmup_steps: int) -> tuple[StepLR, LinearLR | None]:
    """StepLR over epochs, and the warm-up over steps or None; each scales what the other leaves."""
    drops = StepLR(optimizer, lr_drop)
    if warmup_steps <= 0:
        return drops, None
    return drops, LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps)


def warmup_steps_of(source: Source | None, asked_for: int) -> int:
    """The warm-up that a run goes on with: a checkpoint's own, none where that had none or is over.

    Args:
        source: the checkpoint of `--resume`, None for a new run.
        asked_for: `--warmup_steps`, for a new run.
    """
    if source is None or "optimizer" not in source.checkpoint:
        return asked_for
    state = source.checkpoint.get("warmup")
    return state["total_iters"] if state is not None and state["last_epoch"] < state["total_iters"] else 0


def resume_optimisation(
    source: Source, optimizer: Optimizer, drops: StepLR, warmup: LinearLR | None, args: Namespace
) -> None:
    """Continue optimizer and schedules where a checkpoint left off; `--override_lr` gives them new rates.

    Raises:
        UserError: the checkpoint's optimizer is no AdamW or trains other parameters, or its schedule is none.
    """
    checkpoint, path = source
    saved = checkpoint["optimizer"]
    if not _is_adamw(saved):
        raise UserError(f"--resume {path}: its optimizer is not AdamW: {ONLY_ITS_WEIGHTS}")
    if not isinstance(checkpoint["lr_scheduler"], dict):
        raise UserError(f"--resume {path}: its entry `lr_scheduler` is not a state: {ONLY_ITS_WEIGHTS}")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group["params"]) for group in saved["param_groups"]] != sizes:
        raise UserError(
            f"--resume {path}: its optimizer trains other parameters than this run (is --lr_backbone "
            "0 in one of them, or --frozen_weights?); pass the flags it was trained with, or --finetune"
        )
    if not _moments_fit(saved, optimizer):
        raise UserError(
            f"--resume {path}: its optimizer's moments are not those that AdamW has of this model's "
            f"parameters: {ONLY_ITS_WEIGHTS}"
        )
    # How a step is computed is this run's choice, not the old one's.
    groups = [
        {**group, "fused": ours["fused"]} if "fused" in ours else group
        for group, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    wanted = [group["initial_lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    drops.load_state_dict(checkpoint["lr_scheduler"])
    if warmup is not None:
        warmup.load_state_dict(checkpoint["warmup"])
    if args.override_lr:
        override_lr(optimizer, drops, warmup, wanted, args.lr_drop)
    elif is_main_process():
        warn_of_other_rates(checkpoint, args)


def _is_adamw(saved: Any) -> bool:
    """Whether a state is laid out as AdamW's, whatever it trains."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return False
    groups = saved.get("param_groups")
    return isinstance(groups, list) and all(
        isinstance(group, Mapping)
        and isinstance(group.get("params"), list)
        and {"lr", "betas", "eps", "weight_decay"} <= group.keys()
        for group in groups
    )


def _moments_fit(saved: Mapping[str, Any], optimizer: Optimizer) -> bool:
    """Whether every stored state belongs to the parameter in its place.

    The optimizer does not look: it reads and writes beyond the end of moments that are too short.
    """
    for group, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        moments = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group.get("amsgrad") else ()))
        for key, parameter in zip(group["params"], ours["params"], strict=True):
            state = saved["state"].get(key, {})  # none of a parameter that had no gradient yet
            if not isinstance(state, Mapping) or (state and not _is_number(state.get("step"))):
                return False
            if state and any(_shape(state.get(name)) != parameter.shape for name in moments):
                return False
    return True


def _is_number(value: Any) -> bool:
    """Whether it is one, or a tensor of one."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)


def _shape(value: Any) -> torch.Size | None:
    """A tensor's; None of anything else."""
    return value.shape if isinstance(value, Tensor) else None


def override_lr(
    optimizer: Optimizer, drops: StepLR, warmup: LinearLR | None, rates: list[float], lr_drop: int
) -> None:
    """Give each group a new rate, at the point of the schedule that it has reached; moments are kept."""
    factor = 1.0 if warmup is None else _warmed_up(warmup)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * drops.gamma ** (drops.last_epoch // lr_drop) * factor
    drops.step_size = lr_drop
    for schedule in (drops, warmup):
        if schedule is not None:
            schedule.base_lrs = list(rates)


def _warmed_up(warmup: LinearLR) -> float:
    """The share of the full rate that a warm-up has reached."""
    done = min(warmup.last_epoch / warmup.total_iters, 1.0)
    return warmup.start_factor + (warmup.end_factor - warmup.start_factor) * done


def warn_of_other_rates(checkpoint: Mapping[str, Any], args: Namespace) -> None:
    """Say where the checkpoint's rates go on although other ones were given."""
    old = stored_flags(checkpoint)
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
