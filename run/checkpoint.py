"""What a checkpoint holds, and how a run is brought back from it. run/saving.py adds where training stands
(`epoch`, `step`, `ranks`, `train_stats`).

| entry | what it is |
|---|---|
| `model` | the model's state_dict |
| `optimizer`, `lr_scheduler` | state of AdamW, and of the drops by epoch (StepLR) |
| `epoch` | the last finished epoch, from 0; -1 before the first |
| `args` | every flag, name -> value, with what was left open decided; a Namespace in published files |
| `step` | optimizer steps done in the epoch after that one |
| `ranks` | of each process: `random` (util.random_state) and `meters` of the unfinished epoch, or None |
| `train_stats` | averages of the finished epoch, which may not be evaluated yet; absent inside an epoch |
| `warmup` | state of the warm-up by step (LinearLR); None without one |
| `best` | `value` and `epoch` of the best score so far |
| `categories` | id -> name, of the data |
| `is_thing` | id -> bool, of panoptic data |
| `scaler` | state of fp16's loss scale, with `--amp fp16` |
| `query_groups` | queries of the groups that train beside the model's own, [K - 1, Q, D] |
| `ema`, `ema_updates` | the averaged weights' state_dict and how often it was updated, with `--ema` |

`model`, `optimizer`, `lr_scheduler`, `epoch` and `args` are the published ones. A file needs `model` to be
evaluated or fine-tuned, and `optimizer`, `lr_scheduler` and `epoch` to be resumed; all others may be missing.
Code that does not train reads `model`, `args` and `categories` through util.checkpoint_file.
"""

from __future__ import annotations

import dataclasses
import operator
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, StepLR

from run.resume import Source
from run.state import Best, WeightAverage, override_lr, warn_of_other_rates
from util.checkpoint_file import stored_flags
from util.distributed import get_rank, get_world_size, is_main_process
from util.errors import UserError, warn
from util.random_state import random_state

if TYPE_CHECKING:
    from models.query_groups import QueryGroups

# What to do with a file whose training cannot go on.
ONLY_ITS_WEIGHTS = "pass --finetune in place of --resume to start from its weights"


@dataclasses.dataclass
class RunState:
    """All that changes while a run trains, with what a checkpoint says of the run.

    Attributes:
        args: the run's flags.
        categories: of the data, id -> name.
        is_thing: of panoptic data, id -> bool; None for others.
        model: as trained, without DistributedDataParallel around it.
        groups: further groups of queries, with `--query_groups`. Of these no average is kept: the averaged
            model is evaluated, with its own queries, and never trains.
        optimizer: AdamW.
        drops, warmup: schedules by epoch and by step; the latter may be None.
        average: of the weights, with `--ema`.
        scaler: of the loss, under fp16.
        best: the best epoch so far.
    """

    args: Namespace
    categories: dict[int, str]
    is_thing: dict[int, bool] | None
    model: nn.Module
    groups: QueryGroups | None
    optimizer: Optimizer
    drops: StepLR
    warmup: LinearLR | None
    average: WeightAverage | None
    scaler: torch.amp.GradScaler | None
    best: Best

    def entries(self) -> dict[str, Any]:
        """What a checkpoint holds besides the position; the tensors are those of the run, not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.drops.state_dict(),
            "warmup": None if self.warmup is None else self.warmup.state_dict(),
            "best": vars(self.best),
            "args": vars(self.args),
            "categories": self.categories,
            **({} if self.is_thing is None else {"is_thing": self.is_thing}),
            **({} if self.groups is None else {"query_groups": self.groups.queries.detach()}),
            **({} if self.scaler is None else {"scaler": self.scaler.state_dict()}),
            **({} if self.average is None else self.average.state_dict()),
        }

    def restore(self, source: Source) -> None:
        """Continue from a checkpoint that `can_resume`; the model has its weights already.

        `--override_lr` gives the optimizer new rates.

        Raises:
            UserError: an entry is not what this run has.
        """
        checkpoint, path = source
        _load_groups(self.groups, checkpoint.get("query_groups"), path)
        wanted = [group["initial_lr"] for group in self.optimizer.param_groups]
        _load_optimizer(self.optimizer, checkpoint["optimizer"], path)
        if not isinstance(checkpoint["lr_scheduler"], dict):
            raise UserError(f"--resume {path}: its entry `lr_scheduler` is not a state: {ONLY_ITS_WEIGHTS}")
        self.drops.load_state_dict(checkpoint["lr_scheduler"])
        if self.warmup is not None:
            self.warmup.load_state_dict(checkpoint["warmup"])
        if self.args.override_lr:
            override_lr(self.optimizer, self.drops, self.warmup, wanted, self.args.lr_drop)
        elif is_main_process():
            warn_of_other_rates(stored_flags(checkpoint), self.args)
        has_average = self.average is not None and self.average.load_state_dict(checkpoint, path)
        if self.average is not None and not has_average and is_main_process():
            print(f"--ema: {path} holds no averaged weights: the average begins with its weights")
        if self.average is None and "ema" in checkpoint and is_main_process():
            warn(f"the averaged weights in {path} are dropped; pass --ema to go on")
        if self.scaler is not None and "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])


def can_resume(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds what a run goes on with, and not weights alone."""
    return {"optimizer", "lr_scheduler", "epoch"} <= checkpoint.keys()


def best_so_far(source: Source | None) -> Best:
    """The best epoch of the run that goes on; none yet for a new one."""
    return Best() if source is None else Best(**source.checkpoint.get("best", {}))


def warmup_length(source: Source | None, asked_for: int) -> int:
    """Whole length of the warm-up: the checkpoint's if it is unfinished there, 0 if it is over or had none.

    Args:
        source: the checkpoint of `--resume`, None for a new run.
        asked_for: `--warmup_steps`, for a new run.
    """
    if source is None or not can_resume(source.checkpoint):
        return asked_for
    state = source.checkpoint.get("warmup")
    return state["total_iters"] if state is not None and state["last_epoch"] < state["total_iters"] else 0


@torch.no_grad()
def _load_groups(groups: QueryGroups | None, saved: Tensor | None, path: str) -> None:
    """Continue the further groups of queries.

    Raises:
        UserError: the checkpoint has another number of them.
    """
    before = 1 if saved is None else 1 + len(saved)
    now = 1 if groups is None else 1 + len(groups.queries)
    if before != now:
        raise UserError(
            f"--resume {path}: it was trained with --query_groups {before}, not {now}: pass "
            f"--query_groups {before}, or {ONLY_ITS_WEIGHTS}"
        )
    if groups is not None and saved is not None:
        groups.queries.copy_(saved)


# --- The position --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Position:
    """Where training stands.

    Attributes:
        epoch: the last finished one, -1 before the first.
        step: optimizer steps done in the one after it.
        meters: this process's meters inside that epoch.
        train_stats: averages of the last finished epoch, which may not have been evaluated yet.
        random: this process's random number generators.
    """

    epoch: int
    step: int = 0
    meters: dict | None = None
    train_stats: dict | None = None
    random: dict | None = None


def rank_state(meters: dict | None) -> dict[str, Any]:
    """A process's own part of a checkpoint, its element of `ranks`."""
    return {"random": random_state(), "meters": meters}


def position_of(source: Source | None, args: Namespace, steps: int) -> Position:
    """Where training begins; a file of weights alone begins at `--start_epoch`.

    Args:
        source: the checkpoint of `--resume`.
        steps: optimizer steps of an epoch.

    Raises:
        UserError: the run is over, or the checkpoint does not say where it stands.
    """
    if source is None or not can_resume(source.checkpoint):
        return Position(args.start_epoch - 1)
    checkpoint, path = source
    position = Position(_whole_number(source, "epoch", -1), _whole_number(source, "step", 0))
    if position.epoch + 1 >= args.epochs and args.resume != "auto":
        raise UserError(
            f"--resume {path}: it has finished {position.epoch + 1} epochs, and --epochs "
            f"{args.epochs} asks for no more: raise --epochs, or pass --eval to evaluate it"
        )
    ranks = checkpoint.get("ranks", [])
    before = {"group_by_aspect": False, **stored_flags(checkpoint)}  # older files lack the flag
    same = len(ranks) == get_world_size() and all(
        before.get(name) == getattr(args, name) for name in ("batch_size", "accum_steps", "group_by_aspect")
    )
    if same and position.step <= steps:
        position.random, position.meters = ranks[get_rank()]["random"], ranks[get_rank()]["meters"]
    elif position.step:
        position.step = 0
        if is_main_process():
            warn(
                "the checkpoint was written inside an epoch, with another number of processes, other batches "
                "or more images: that epoch starts anew"
            )
    if args.output_dir and Path(path).resolve().parent == Path(args.output_dir).resolve():
        position.train_stats = checkpoint.get("train_stats")
    return position


def _whole_number(source: Source, name: str, least: int) -> int:
    """A checkpoint's `epoch` or `step`, 0 where it has none.

    Raises:
        UserError: it is no whole number, or below `least`.
    """
    try:
        value = operator.index(source.checkpoint.get(name, 0))
    except TypeError:
        value = None
    if value is None or value < least:
        raise UserError(
            f"--resume {source.path}: its entry `{name}`, where it left off, is no whole number from {least} "
            f"on: {ONLY_ITS_WEIGHTS}"
        )
    return value


# --- The optimizer -------------------------------------------------------------------------------------


def _load_optimizer(optimizer: Optimizer, saved: Any, path: str) -> None:
    """Continue AdamW's moments and rates.

    Raises:
        UserError: what is saved is not AdamW's state, or that of other parameters.
    """
    if not _is_adamw(saved):
        raise UserError(f"--resume {path}: its optimizer is not AdamW: {ONLY_ITS_WEIGHTS}")
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
    optimizer.load_state_dict({**saved, "param_groups": groups})


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
            if not isinstance(state, Mapping):
                return False
            if not state:
                continue
            step = state.get("step")
            if not (isinstance(step, int | float) or (isinstance(step, Tensor) and step.numel() == 1)):
                return False
            if any(getattr(state.get(name), "shape", None) != parameter.shape for name in moments):
                return False
    return True
