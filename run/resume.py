"""Where a run stands and how it goes on: its folder, its checkpoint, its position."""

from __future__ import annotations

import dataclasses
import operator
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from run.ema import WeightAverage
from util.amp import Precision
from util.checkpoint import load_checkpoint, make_newest, newest_whole
from util.coco_names import plain_name
from util.distributed import all_gather, get_rank, get_world_size, is_main_process
from util.errors import UserError, warn
from util.random_state import set_random_state
from util.stored import stored_categories, stored_flags


def output_folder(args: Namespace) -> Path | None:
    """`--output_dir` as a folder that exists and can be written to, None where nothing is to be saved.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    if not args.output_dir:
        return None
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output_dir {folder}: nothing can be written there")
    return folder


class Source(NamedTuple):
    """A checkpoint to go on from: what it holds and where it was found."""

    checkpoint: dict[str, Any]
    path: str


# Settings of which weights say nothing, and which change what a model finds.
UNSEEN_IN_WEIGHTS = ("nheads", "dilation", "eval_scale", "max_size")
# What to do with a file whose training cannot go on.
ONLY_ITS_WEIGHTS = "pass --finetune in place of --resume to start from its weights"


def warn_of_other_settings(source: Source, args: Namespace, categories: Mapping[int, str]) -> None:
    """Say where a model is not used as it was trained, although its weights fit.

    Args:
        source: the checkpoint of `--resume`.
        args: this run's flags.
        categories: of the data, id -> name.
    """
    flags = stored_flags(source.checkpoint)
    for name in UNSEEN_IN_WEIGHTS:
        if name in flags and flags[name] != getattr(args, name):
            warn(f"--{name} is {getattr(args, name)}, and {source.path} was trained with {flags[name]}")
    known = stored_categories(source.checkpoint)
    others = [i for i, name in categories.items() if i in known and plain_name(known[i]) != plain_name(name)]
    if others:
        here, there = categories[others[0]], known[others[0]]
        more = f", and {len(others) - 1} more differ" if len(others) > 1 else ""
        warn(
            f"category {others[0]} is {here!r} in the data and {there!r} in {source.path}{more}: --resume "
            "goes by ids; --finetune carries classes over by name"
        )


def find_checkpoint(args: Namespace) -> Source | None:
    """The checkpoint that `--resume` names; with auto the newest whole one in `--output_dir`, if any.

    Raises:
        UserError: it is missing or damaged, or the flags contradict each other.
    """
    if args.resume and args.finetune and args.resume != "auto":
        raise UserError("--resume continues a run and --finetune starts one: pass only one of them")
    if args.resume != "auto":
        return Source(load_checkpoint(args.resume), args.resume) if args.resume else None
    if not args.output_dir:
        raise UserError("--resume auto looks for a checkpoint in --output_dir: pass that too")
    found = newest_whole(Path(args.output_dir))
    where = None if found is None else f"{found[0]} {found[1].get('epoch')} {found[1].get('step')}"
    if len(set(all_gather(where))) > 1:
        raise UserError(f"--resume auto: hosts see different files in --output_dir {args.output_dir}")
    if found is None:
        if args.eval:
            raise UserError(f"--eval --resume auto: there is no whole checkpoint in {args.output_dir}")
        return None
    if is_main_process() and not args.eval:
        make_newest(found[0])  # every process has read its copy
    return Source(found[1], str(found[0]))


@dataclasses.dataclass
class Position:
    """Where training stands.

    Attributes:
        epoch: the last finished one, -1 before the first.
        step: optimizer steps done in the one behind it.
        meters: this process's meters inside that epoch.
        unrecorded: averages of the last finished epoch, which may not have been evaluated yet.
        random: this process's random number generators.
        resumes: whether a checkpoint brings the state of the optimizer along.
    """

    epoch: int
    step: int = 0
    meters: dict | None = None
    unrecorded: dict | None = None
    random: dict | None = None
    resumes: bool = False

    def restore_random_state(self) -> None:
        """Continue this process's random numbers, where they were saved."""
        if self.random is not None:
            set_random_state(self.random)


def position_of(source: Source | None, args: Namespace, steps: int) -> Position:
    """Where training begins; a file of weights alone begins at `--start_epoch`.

    Args:
        source: what `find_checkpoint` found.
        steps: optimizer steps of an epoch.

    Raises:
        UserError: the run is over, or the checkpoint does not say where it stands.
    """
    if source is None or not {"optimizer", "lr_scheduler", "epoch"} <= source.checkpoint.keys():
        return Position(args.start_epoch - 1)
    checkpoint, path = source
    position = Position(_count(source, "epoch", -1), _count(source, "step", 0), resumes=True)
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
        position.unrecorded = checkpoint.get("train_stats")
    return position


def _count(source: Source, name: str, least: int) -> int:
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


def resume_extras(source: Source, average: WeightAverage | None, precision: Precision) -> None:
    """Continue the averaged weights and the scale of fp16, as far as run and checkpoint both have them."""
    checkpoint, path = source
    if average is not None and not average.load_state_dict(checkpoint, path) and is_main_process():
        print(f"--ema: {path} holds no averaged weights: the average begins with its weights")
    if average is None and "ema" in checkpoint and is_main_process():
        warn(f"the averaged weights in {path} are dropped; pass --ema to go on")
    if precision.scaler is not None and "scaler" in checkpoint:
        precision.scaler.load_state_dict(checkpoint["scaler"])
