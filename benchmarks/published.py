"""The published figures, for whoever has COCO: evaluate the published models and compare.

  python -m benchmarks.published --coco_path data/coco
  python -m benchmarks.published --coco_path data/coco --models r50 dc5-r50
  python -m benchmarks.published --coco_path data/coco --coco_panoptic_path data/coco_panoptic

Each model is downloaded once, its hash verified, and evaluated with one image a batch through main.py, as its
figures were made. What is missing (data, network) is named; the other models go on. Exit status: 0 if every
model asked for lies within 0.1 of its published AP (and PQ), 1 if one does not, 2 if one could not be run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from util.checkpoint_file import verify
from util.command_line import HelpWithDefaults, OneLineParser
from util.download import fetch
from util.errors import UserError
from util.hub_models import HUB_MODELS, PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.1  # AP and PQ points


class Published(NamedTuple):
    """A published model: its weights, the flags that build it, and its figures."""

    weights: str
    flags: tuple[str, ...]
    box_ap: float
    mask_ap: float | None = None
    pq: float | None = None


PANOPTIC = ("--masks", "--dataset_file", "coco_panoptic")
MODELS = {
    "r50": Published(HUB_MODELS["detr_resnet50"].file, (), 42.0),
    "dc5-r50": Published(HUB_MODELS["detr_resnet50_dc5"].file, ("--dilation",), 43.3),
    "r101": Published(HUB_MODELS["detr_resnet101"].file, ("--backbone", "resnet101"), 43.5),
    "dc5-r101": Published(
        HUB_MODELS["detr_resnet101_dc5"].file, ("--backbone", "resnet101", "--dilation"), 44.9
    ),
    "r50-panoptic": Published(HUB_MODELS["detr_resnet50_panoptic"].file, PANOPTIC, 38.8, 31.1, 43.4),
    "dc5-r50-panoptic": Published(
        HUB_MODELS["detr_resnet50_dc5_panoptic"].file, (*PANOPTIC, "--dilation"), 40.2, 31.9, 44.6
    ),
    "r101-panoptic": Published(
        HUB_MODELS["detr_resnet101_panoptic"].file, (*PANOPTIC, "--backbone", "resnet101"), 40.1, 33.0, 45.1
    ),
}


def evaluate(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Evaluate one model through main.py in a process of its own -> box_ap, mask_ap, pq, in points.

    Raises:
        UserError: its weights cannot be fetched, or the evaluation fails.
    """
    model = MODELS[name]
    if model.pq is not None and options.coco_panoptic_path is None:
        raise UserError("needs --coco_panoptic_path")
    weights = fetch(PUBLISHED + model.weights, verify)
    with tempfile.TemporaryDirectory() as folder:
        words = ["main.py", "--eval", "--resume", weights, *model.flags, "--coco_path", options.coco_path]
        words += ["--eval_batch_size", 1, "--num_workers", options.num_workers, "--output_dir", folder]
        for flag in ("coco_panoptic_path", "device"):
            words += [f"--{flag}", getattr(options, flag)] if getattr(options, flag) else []
        output = None if options.verbose else subprocess.DEVNULL
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=output)
        if done.returncode:
            raise UserError(f"main.py ended with status {done.returncode}; its message is above")
        stats = json.loads((Path(folder) / "eval.json").read_text())
    figures = {"box_ap": 100 * stats["test_coco_eval_bbox"][0]}
    if "test_coco_eval_masks" in stats:
        figures["mask_ap"] = 100 * stats["test_coco_eval_masks"][0]
    if "test_PQ_all" in stats:
        figures["pq"] = 100 * stats["test_PQ_all"]["pq"]
    return figures


def compare(name: str, figures: dict[str, float]) -> tuple[str, bool]:
    """A line of the table, and whether every figure lies within the tolerance."""
    cells, good = [], True
    for key in ("box_ap", "mask_ap", "pq"):
        published, ours = getattr(MODELS[name], key), figures.get(key)
        if published is None:
            cells.append(f"{'':>22}")
        elif ours is None:
            cells.append(f"{published:>8.1f}{'missing':>14}")
            good = False
        else:
            cells.append(f"{published:>8.1f}{ours:>7.1f}{ours - published:>+7.2f}")
            good = good and abs(ours - published) <= TOLERANCE
    return f"{name:<18}" + "".join(cells), good


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    parser = OneLineParser(
        "python -m benchmarks.published", description=__doc__, formatter_class=HelpWithDefaults
    )
    flag = parser.add_argument
    flag("--coco_path", type=Path, required=True, help="COCO 2017, with val2017")
    flag("--coco_panoptic_path", type=Path, help="its panoptic annotations")
    flag("--models", nargs="+", choices=MODELS, default=list(MODELS), help="left out: all")
    flag("--device", help="as main.py's")
    flag("--num_workers", type=int, default=4, help="as main.py's")
    flag("--verbose", action="store_true", help="show main.py's output")
    options = parser.parse_args(argv)

    columns = "".join(f"{title:>8}{'here':>7}{'diff.':>7}" for title in ("box AP", "mask AP", "PQ"))
    lines, status = [f"{'published model':<18}{columns}"], 0
    for name in options.models:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            line, good = compare(name, evaluate(name, options))
            status = max(status, 0 if good else 1)
        except UserError as error:
            line, status = f"{name:<18}  not run: {error}", 2
        lines.append(line)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
