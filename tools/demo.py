"""`make demo`: train a small DETR on the built-in pictures, evaluate it, and draw what it sees.

python -m tools.demo           train through main.py, then draw; everything lies under demo/
python -m tools.demo --check   exit with 1 if the last demo's AP is lower than a working model's
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "@recipes/shapes.args"
LEAST_AP = 0.45  # a full run reaches more than 0.50; below this something is broken
PICTURES = 12
SHOWN_FROM = 0.5  # score
NEXT = """What to try next:
  .venv/bin/python main.py @recipes/shapes.args --eval --resume demo/run/checkpoint.pth
  .venv/bin/python main.py @recipes/shapes.args --resume demo/run/checkpoint.pth --epochs 8
  .venv/bin/python main.py --coco_path YOUR_DATA --output_dir outputs/mine      (COCO's layout)
  .venv/bin/python main.py --help"""


def train(folder: Path) -> None:
    """Run main.py on the recipe, as a user would."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "main.py", RECIPE, "--output_dir", str(run)]
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def final_figures(run: Path) -> dict:
    """The last line of a run's log."""
    return json.loads((run / "log.txt").read_text().splitlines()[-1])


def draw(folder: Path) -> list[Path]:
    """Draw detections beside the ground truth, and the curves of the run."""
    from util.plot_utils import draw_curves

    curves = folder / "curves.png"
    draw_curves([folder / "run"], curves)
    return [draw_detections_beside_truth(folder / "run", folder / "detections.png"), curves]


def draw_detections_beside_truth(run: Path, output: Path) -> Path:
    """The first validation pictures: what is there, and what the run's last checkpoint finds."""
    import torch

    from datasets import build_dataset
    from models import build_model
    from util.box_ops import box_cxcywh_to_xyxy
    from util.checkpoint import load_checkpoint
    from util.nested_tensor import ByteBatch
    from util.visualize import draw_detections, save_png, side_by_side

    checkpoint = load_checkpoint(run / "checkpoint.pth")
    args = argparse.Namespace(**checkpoint["args"])
    model, _, postprocessors = build_model(args)
    model.load_state_dict(checkpoint["model"])
    data = build_dataset("val", args, normalize_images=False)
    images, targets = zip(*(data[i] for i in range(PICTURES)), strict=True)
    sizes = torch.stack([target["size"] for target in targets])
    with torch.no_grad():
        outputs = model.eval()(ByteBatch.from_images(images).to("cpu"))
    found = postprocessors["bbox"](outputs, sizes)

    names = checkpoint["categories"]
    truth, detected = [], []
    for image, target, result in zip(images, targets, found, strict=True):
        height, width = target["size"].tolist()
        boxes = box_cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        truth.append(draw_detections(image, boxes, target["labels"], names=names))
        sure = result["scores"] > SHOWN_FROM
        boxes, labels, scores = (result[key][sure] for key in ("boxes", "labels", "scores"))
        detected.append(draw_detections(image, boxes, labels, scores, names=names))
    # Each row of the sheet: two pictures, each with its ground truth on the left.
    pairs = [picture for pair in zip(truth, detected, strict=True) for picture in pair]
    rows = [pairs[i : i + 4] for i in range(0, len(pairs), 4)]
    save_png(side_by_side(rows, titles=["ground truth", "detected"] * 2), output)
    return output


def main() -> int:
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="where everything goes")
    parser.add_argument("--check", action="store_true", help="only look at the AP of what is there")
    options = parser.parse_args()
    if not options.check:
        train(options.folder)
        drawn = draw(options.folder)
    ap, ap50 = final_figures(options.folder / "run")["test_coco_eval_bbox"][:2]
    if options.check:
        print(f"demo: AP {ap:.3f}, AP50 {ap50:.3f}; at least {LEAST_AP} wanted")
        return 0 if ap >= LEAST_AP else 1
    print(f"\nAP {ap:.3f}, AP50 {ap50:.3f} on the validation pictures. Look at:")
    for path in (*drawn, options.folder / "run"):
        print(f"  {os.path.relpath(path)}")
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
