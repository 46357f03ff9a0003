"""The folder of a run, and what it leaves there beside checkpoints: log.txt, evaluations, ...

One run holds the folder, since two would spoil each other's files. Every file appears whole (util.files).
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from util.distributed import all_gather
from util.errors import UserError, warn
from util.files import write_table, write_whole
from util.machine import get_sha, package_versions

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

EVERY = 50  # epochs between evaluations that are kept under their own number
WAIT_SECONDS = 30  # a run that was killed or requeued may still be ending, its data workers above all
POLL_SECONDS = 0.5


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


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Hold a folder as long as the context lasts; the system lets go of it where the process dies.

    The folder itself is locked, so that nothing is left in it. Where the system locks no folders (Windows,
    some network file systems) nothing is held.

    Args:
        folder: of `--output_dir`; None: this process writes nothing.

    Raises:
        UserError: another run holds it, and still does after WAIT_SECONDS.
    """
    if folder is None or fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline, said = time.monotonic() + WAIT_SECONDS, False
        while not _locked(handle):
            if time.monotonic() >= deadline:
                raise UserError(
                    f"--output_dir {folder}: another run writes there; end that one, or pass another folder"
                )
            if not said:
                warn(f"another run writes to {folder}: waiting up to {WAIT_SECONDS} s for its end")
                said = True
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Take the lock, unless another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that locks no folders
        pass
    return True


def _set_aside(folder: Path, names: Sequence[str]) -> None:
    """Give those of an earlier run's files that are there the next free name.1.suffix, name.2.suffix, ..."""
    kept = []
    for path in (folder / name for name in names):
        free = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
        if path.exists():
            aside = next(name for name in free if not name.exists())
            path.rename(aside)
            kept.append(f"{path.name} is kept as {aside.name}")
    print(
        f"{folder} holds an earlier run: {', '.join(kept)}; its checkpoints and report will be replaced. To "
        "keep them, stop this run now and pass another --output_dir, or continue it with --resume auto"
    )


class RunRecords:
    """Writes the records of one run; without a folder it does nothing.

    Args:
        folder: the run's --output_dir, or None.
        tensorboard: also write TensorBoard's files, to `folder/tensorboard`.

    Raises:
        UserError: TensorBoard is asked for and not installed, or there is no folder for its files.
    """

    def __init__(self, folder: Path | None, tensorboard: bool = False):
        self.folder = folder
        self.board: Any = None
        if tensorboard:
            from run.tensorboard import open_board

            self.board = open_board(folder)

    def write_args(self, args: Mapping[str, Any], **facts: Any) -> None:
        """args.json: every flag, package versions, git state, and further facts."""
        if self.folder is not None:
            content = {"args": dict(args), **facts, "versions": package_versions(), "git": get_sha()}
            write_whole(self.folder / "args.json", json.dumps(content, indent=2, default=str) + "\n")

    def begin(self, epoch: int, args: Namespace, categories: Mapping[int, str]) -> list[dict[str, Any]]:
        """Start at an epoch: write args.json, and drop from log.txt what will come again.

        That is lines of this epoch and later ones, and a half-written last one. Temporary files that a killed
        process left go, too. A run that starts at epoch 0 where another has logged keeps the other's log and
        flags under the next free name, log.1.txt, args.1.json, ...

        Returns:
            The lines that stay, on the process that writes; the same on the others.
        """
        if self.folder is not None:
            for leftover in [*self.folder.glob(".*.part"), *self.folder.glob("eval/.*.part")]:
                leftover.unlink(missing_ok=True)
        path = None if self.folder is None else self.folder / "log.txt"
        kept: list[dict[str, Any]] = []
        if path is not None and path.exists() and epoch == 0:
            _set_aside(path.parent, ("log.txt", "args.json"))
        elif path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            kept = [line for line in map(_parsed, text.splitlines()) if line and line["epoch"] < epoch]
            whole = "".join(json.dumps(line) + "\n" for line in kept)
            if whole != text:
                write_whole(path, whole)
        self.write_args(vars(args), categories=categories)
        return all_gather(kept)[0]

    def finish_epoch(self, line: Mapping[str, Any]) -> None:
        """Append an epoch's line to log.txt, and its scalars to TensorBoard.

        Raises:
            UserError: the log cannot be written.
        """
        if self.folder is not None:
            path = self.folder / "log.txt"
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(_without_nan(line)) + "\n")
                    file.flush()
                    os.fsync(file.fileno())  # before the next checkpoint is
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be written ({error.strerror}); check --output_dir"
                ) from error
        if self.board is not None:
            from run.tensorboard import add_scalars

            add_scalars(self.board, line)

    def write_stats(self, stats: Mapping[str, Any]) -> None:
        """eval.json: the figures of an evaluation alone."""
        if self.folder is not None:
            write_whole(self.folder / "eval.json", json.dumps(_without_nan(stats), indent=2) + "\n")

    def save_evaluation(self, evaluator: Any, epoch: int | None = None) -> None:
        """The precision and recall arrays, and the per-class figures as CSV.

        Args:
            evaluator: a CocoEvaluator.
            epoch: of training: `eval/latest.pth` and every 50 epochs `eval/{epoch:03}.pth`; None for an
                evaluation alone: `eval.pth`. Masks go to the same names with `_segm`.
        """
        if self.folder is None:
            return
        import torch

        folder = self.folder if epoch is None else self.folder / "eval"
        folder.mkdir(exist_ok=True)
        for iou_type, result in evaluator.coco_eval.items():
            suffix = "" if iou_type == "bbox" else f"_{iou_type}"
            buffer = io.BytesIO()
            torch.save(result.eval, buffer)
            names = (
                ["eval"] if epoch is None else ["latest", *([f"{epoch:03}"] if epoch % EVERY == 0 else [])]
            )
            for name in names:
                write_whole(folder / f"{name}{suffix}.pth", buffer.getvalue())
            write_table(folder / f"per_class{suffix}.csv", _per_class(evaluator, iou_type))

    def close(self) -> None:
        """Finish TensorBoard's files."""
        if self.board is not None:
            self.board.close()


def write_crash_report(folder: Path | None, report: Mapping[str, Any], rank: int) -> str:
    """Keep what is known of a step that failed, with its batch -> a remark on where, for the message."""
    if folder is None:
        return ""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(report), buffer)
    path = folder / f"crash_rank{rank}.pth"
    write_whole(path, buffer.getvalue())
    return f". The batch, its image ids, learning rates and gradient norm are in {path}"


def _per_class(evaluator: Any, iou_type: str) -> list[dict[str, Any]]:
    """An evaluator's figures by class; none of a user-defined one that does not tell any."""
    return evaluator.per_class(iou_type) if hasattr(evaluator, "per_class") else []


def per_class_table(evaluator: Any) -> str:
    """Per-class figures of boxes as a table for the screen; n/a where there is no ground truth."""
    lines = [f"{'id':>6}  {'class':<24}{'AP':>8}{'AP50':>8}{'AR':>8}"]
    for row in _per_class(evaluator, "bbox"):
        figures = "".join(
            f"{'n/a' if row[k] is None else format(row[k], '.3f'):>8}" for k in ("AP", "AP50", "AR")
        )
        lines.append(f"{row['id']:>6}  {row['name'][:24]:<24}{figures}")
    return "\n".join(lines)


def _parsed(line: str) -> dict[str, Any] | None:
    """A log line; None for one that is cut off."""
    try:
        parsed = json.loads(line)
        return parsed if isinstance(parsed.get("epoch"), int) else None
    except (ValueError, AttributeError):
        return None


def _without_nan(value: Any) -> Any:
    """The same with None in place of NaN, which strict JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
