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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import nn
from torch.optim import Optimizer

from run.state import Best, build_schedules, override_lr, warn_of_other_rates
from util.checkpoint_file import stored_flags
from util.distributed import get_rank, get_world_size, is_main_process
from util.errors import UserError, warn

if TYPE_CHECKING:
    from models.query_groups import QueryGroups
    from run.ema import WeightAverage

# What to do with a file whose training cannot go on.
ONLY_ITS_WEIGHTS = "pass --finetune in place of --resume to start from its weights"


class Source(NamedTuple):
    """A checkpoint to go on from: what it holds and where it was found."""

    checkpoint: dict[str, Any]
    path: str


class RunState:
    """All that changes while a run trains, with what a checkpoint says of the run.

    It begins anew, or where `source` left off; the model has its weights already. `--override_lr` gives the
    optimizer new rates.

    Args:
        args: the run's flags.
        categories: of the data, id -> name.
        is_thing: of panoptic data, id -> bool; None for others.
        model: as trained, without DistributedDataParallel around it.
        groups: further groups of queries, with `--query_groups`. Of these no average is kept: the averaged
            model is evaluated, with its own queries, and never trains.
        optimizer: AdamW.
        scaler: of the loss, under fp16.
        source: the checkpoint of `--resume`; it may be let go of afterwards.

    Attributes:
        drops, warmup: schedules by epoch and by step; the latter may be None. Of a warm-up that the
            checkpoint is in the middle of, it has the length; one that is over there does not come again.
        average: of the weights, with `--ema`.
        best: the best epoch so far.

    Raises:
        UserError: an entry of the checkpoint is not what this run has.
    """

    def __init__(
        self,
        args: Namespace,
        categories: dict[int, str],
        is_thing: dict[int, bool] | None,
        model: nn.Module,
        groups: QueryGroups | None,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler | None,
        source: Source | None,
    ):
        self.args, self.categories, self.is_thing = args, categories, is_thing
        self.model, self.groups, self.optimizer, self.scaler = model, groups, optimizer, scaler
        self.average: WeightAverage | None = None
        if args.ema:
            from run.ema import WeightAverage

            self.average = WeightAverage(model, args.ema)
        self.best = Best() if source is None else Best(**source.checkpoint.get("best", {}))
        warmup_steps = args.warmup_steps
        if resumes(source):
            warmup, warmup_steps = source.checkpoint.get("warmup"), 0
            if warmup is not None and warmup["last_epoch"] < warmup["total_iters"]:
                warmup_steps = warmup["total_iters"]
        self.drops, self.warmup = build_schedules(optimizer, args.lr_drop, warmup_steps)
        if resumes(source):
            self._restore(*source)

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

    def _restore(self, checkpoint: dict[str, Any], path: str) -> None:
        from run.optimizer_state import load_adamw

        queries = checkpoint.get("query_groups")
        before = 1 if queries is None else 1 + len(queries)
        now = 1 if self.groups is None else 1 + len(self.groups.queries)
        if before != now:
            raise UserError(
                f"--resume {path}: it was trained with --query_groups {before}, not {now}: pass "
                f"--query_groups {before}, or {ONLY_ITS_WEIGHTS}"
            )
        if self.groups is not None and queries is not None:
            with torch.no_grad():
                self.groups.queries.copy_(queries)
        wanted = [group["initial_lr"] for group in self.optimizer.param_groups]
        try:
            load_adamw(self.optimizer, checkpoint["optimizer"])
        except ValueError as error:
            raise UserError(f"--resume {path}: {error}: {ONLY_ITS_WEIGHTS}") from error
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


def resumes(source: Source | None) -> TypeGuard[Source]:
    """Whether there is a checkpoint that training goes on from: one that holds more than weights."""
    return source is not None and {"optimizer", "lr_scheduler", "epoch"} <= source.checkpoint.keys()


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
        resumed_from: the checkpoint that says so; None in a new run.
    """

    epoch: int
    step: int = 0
    meters: dict | None = None
    train_stats: dict | None = None
    random: dict | None = None
    resumed_from: str | None = None


def position_of(source: Source | None, args: Namespace, steps: int) -> Position:
    """Where training begins; a file of weights alone begins at `--start_epoch`.

    Args:
        source: the checkpoint of `--resume`.
        steps: optimizer steps of an epoch.

    Raises:
        UserError: the run is over, or the checkpoint does not say where it stands.
    """
    if not resumes(source):
        return Position(args.start_epoch - 1)
    checkpoint, path = source
    epoch, step = _whole_number(source, "epoch", -1), _whole_number(source, "step", 0)
    position = Position(epoch, step, resumed_from=path)
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
