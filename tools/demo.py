"""`make demo` and `make demo-panoptic`: train on the built-in pictures, evaluate, and draw what is found.

  python -m tools.demo                      boxes, everything under demo/
  python -m tools.demo --panoptic           boxes, then masks over them, everything under demo-panoptic/
  python -m tools.demo [--panoptic] --short   half as long or less, as .ci/run has it: it learns, but not well
  python -m tools.demo [--panoptic] [--short] --check
                                            exit with 1 if the last demo falls short of a working model

The training is main.py's own, started as a user would start it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
LEAST_AP = 0.45  # below this something is broken
LEAST_PQ = 0.79  # a full run reached 0.840; five points under that
SHORT_LEAST = 0.1  # AP or PQ: --short shows that everything trains and fits together, not how far it gets
PICTURES = 12
PANOPTIC_TRAIN = 14_000  # training pictures: with 16,000 it takes more than 15 minutes on two cores
SHORT_TRAIN = 3_000  # the same for --short
SHORT_EPOCHS = "--epochs", "2", "--lr_drop", "1"  # of boxes
SHOWN_FROM = 0.8  # score
NEXT = """What to try next:
  .venv/bin/python main.py @recipes/shapes.args --eval --resume demo/run/checkpoint.pth
  .venv/bin/python main.py @recipes/shapes.args --output_dir outputs/longer --epochs 6 --lr_drop 5
  .venv/bin/python main.py @recipes/finetune.args --coco_path YOUR_DATA --output_dir outputs/mine \\
      --finetune PATH|URL      (of an R50; data in COCO's layout: see recipes/finetune.args)
  .venv/bin/python main.py --help"""
NEXT_PANOPTIC = """What to try next:
  .venv/bin/python main.py @recipes/shapes_panoptic.args --eval --resume demo-panoptic/run/checkpoint.pth
  .venv/bin/python main.py --help"""


def train(recipe: str, run: Path, *flags: str) -> None:
    """Run main.py on a recipe, afresh."""
    shutil.rmtree(run, ignore_errors=True)
    command = ["main.py", f"@recipes/{recipe}.args", "--output_dir", os.path.relpath(run, ROOT), *flags]
    print("$ " + " ".join(["python", *command]), flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def draw_detections_beside_truth(run: Path, output: Path) -> Path:
    """The first validation pictures: what is there, and what the run's last checkpoint finds."""
    from datasets import build_dataset
    from inference.drawing import draw
    from inference.predicting import predict
    from inference.trained import load_trained
    from inference.visualize import save_picture, side_by_side

    trained = load_trained(run / "checkpoint.pth")
    os.chdir(ROOT)  # the recipe's paths start here
    data = build_dataset("val", trained.args, normalize_images=False)
    images, targets = zip(*(data[i] for i in range(PICTURES)), strict=True)
    sizes = [image.shape[1:] for image in images]
    found = predict(trained, images, sizes, None if trained.args.masks else SHOWN_FROM)
    pairs = []  # ground truth, detected, ground truth, detected, ...
    for image, target, result in zip(images, targets, found, strict=True):
        pairs += [draw_truth(image, target, trained.names), draw(image, result, trained.names)]
    rows = [pairs[i : i + 4] for i in range(0, len(pairs), 4)]
    save_picture(side_by_side(rows, titles=["ground truth", "detected"] * 2), output)
    return output


def draw_truth(image: Tensor, target: dict[str, Tensor], names: dict[int, str]) -> Tensor:
    """A picture with its target's boxes, or its segments where it has masks."""
    from datasets.shapes_drawing import STUFF
    from inference.drawing import draw_panoptic
    from inference.visualize import draw_detections
    from util.box_ops import box_cxcywh_to_xyxy

    if "masks" in target:
        ids = (target["masks"] > 0).int().argmax(0)  # each pixel belongs to one segment
        labels = target["labels"].tolist()
        segments = [{"id": i, "category_id": c, "isthing": c not in STUFF} for i, c in enumerate(labels)]
        return draw_panoptic(image, ids, segments, names)
    height, width = target["size"].tolist()
    boxes = box_cxcywh_to_xyxy(target["boxes"]) * target["boxes"].new_tensor([width, height, width, height])
    return draw_detections(image, boxes, target["labels"], names=names)


def detection(folder: Path, *flags: str) -> list[Path]:
    """The demo of boxes, with some flags beside the recipe's -> what was drawn."""
    from util.plot_utils import draw_curves

    train("shapes", folder / "run", *flags)
    pictures = draw_detections_beside_truth(folder / "run", folder / "detections.png")
    return [pictures, draw_curves([folder / "run"], folder / "curves.png")]


def panoptic(folder: Path, pictures: int) -> list[Path]:
    """The demo of masks: boxes of things and stuff, then the mask head over them -> what was drawn."""
    from datasets.shapes import write_shapes
    from util.plot_utils import draw_curves

    write_shapes(ROOT / "data" / "shapes_varied", train=pictures, vary_size=True)
    train("shapes_panoptic_boxes", folder / "boxes")
    boxes = os.path.relpath(folder / "boxes" / "checkpoint.pth", ROOT)
    train("shapes_panoptic", folder / "run", "--frozen_weights", boxes)
    drawn = draw_detections_beside_truth(folder / "run", folder / "panoptic.png")
    return [drawn, draw_curves([folder / "boxes", folder / "run"], folder / "curves.png")]


def main() -> int:
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--panoptic", action="store_true", help="train masks, too")
    parser.add_argument("--short", action="store_true", help="train less")
    parser.add_argument("--check", action="store_true", help="only look at the figures of what is there")
    options = parser.parse_args()
    folder = ROOT / ("demo-panoptic" if options.panoptic else "demo")
    drawn = []
    if not options.check and options.panoptic:
        drawn = panoptic(folder, SHORT_TRAIN if options.short else PANOPTIC_TRAIN)
    elif not options.check:
        drawn = detection(folder, *(SHORT_EPOCHS if options.short else ()))
    figures = json.loads((folder / "run" / "log.txt").read_text().splitlines()[-1])
    ap, ap50 = figures["test_coco_eval_bbox"][:2]
    if options.panoptic:
        value, least = figures["test_PQ_all"]["pq"], LEAST_PQ
        result = f"PQ {value:.3f}, box AP {ap:.3f}"
    else:
        value, least = ap, LEAST_AP
        result = f"AP {ap:.3f}, AP50 {ap50:.3f}"
    least = SHORT_LEAST if options.short else least
    print(f"\n{result} on the validation pictures; a working model has at least {least}")
    if options.check:
        return 0 if value >= least else 1
    print("Look at:")
    for path in (*drawn, folder / "run"):
        print(f"  {os.path.relpath(path)}")
    print(NEXT_PANOPTIC if options.panoptic else NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
