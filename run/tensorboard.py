"""TensorBoard's files of a run (`--tensorboard`): the scalars of log.txt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.errors import UserError

COCO_FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def open_board(folder: Path | None) -> Any:
    """A SummaryWriter for a run's folder.

    Raises:
        UserError: there is no folder, or TensorBoard is not installed.
    """
    if folder is None:
        raise UserError("--tensorboard needs --output_dir: its files go to OUTPUT_DIR/tensorboard")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard: TensorBoard is not installed; run pip install tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))


def add_scalars(board: Any, line: Mapping[str, Any]) -> None:
    """Write an epoch's line of log.txt as train/loss, test/loss, test/bbox_AP50, ..."""
    scalars: dict[str, float] = {}
    for key, value in line.items():
        split, _, name = key.partition("_")
        if split not in ("train", "test"):
            continue
        averaged = "ema_" if name.startswith("ema_") else ""
        if name.removeprefix(averaged).startswith("coco_eval_"):
            kind = averaged + name.removeprefix(f"{averaged}coco_eval_")
            scalars |= {f"{split}/{kind}_{figure}": v for figure, v in zip(COCO_FIGURES, value, strict=True)}
        elif isinstance(value, Mapping):  # PQ_all and its like
            scalars |= {f"{split}/{name}_{k}": v for k, v in value.items() if isinstance(v, (int, float))}
        elif isinstance(value, (int, float)):
            scalars[f"{split}/{name}"] = value
    for name, value in scalars.items():
        board.add_scalar(name, value, line["epoch"])
    board.flush()
