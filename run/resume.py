"""Which checkpoint a run goes on from, and what it does differently from the run that wrote it."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from run.checkpoint import Source
from util.checkpoint_file import load_checkpoint, predecessors, stored_categories, stored_flags
from util.coco_names import plain_name
from util.distributed import all_gather, is_main_process
from util.errors import UserError, warn
from util.files import link_whole


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


def newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint of a run, `checkpoint.pth` or one of its predecessors; None if none is.

    Damaged ones are named on stderr.

    Raises:
        UserError: there are some, and none is readable; or the system denies one, which may be whole.
    """
    newest = folder / "checkpoint.pth"
    paths = [path for path in (newest, *predecessors(newest)) if path.exists()]
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except UserError as error:
            if isinstance(error.__cause__, PermissionError):
                raise UserError(f"{error}: let this user read it, or move it away") from error
            if is_main_process():
                print(f"{error}; looking for the one before it", file=sys.stderr)
    if paths:
        raise UserError(f"no checkpoint in {folder} is readable: move them away to start afresh")
    return None


def make_newest(path: Path) -> None:
    """Let an earlier version, the newest readable one, be `checkpoint.pth` again; it keeps its old name too.

    Otherwise the next rotation would drop it in favour of the damaged one, which becomes
    `checkpoint.damaged.pth`.
    """
    newest = path.with_name("checkpoint.pth")
    if newest != path:
        if newest.exists():
            link_whole(newest, path.with_name("checkpoint.damaged.pth"))
        link_whole(path, newest)


# Settings of which weights say nothing, and which change what a model finds.
UNSEEN_IN_WEIGHTS = ("nheads", "dilation", "eval_scale", "max_size")


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
