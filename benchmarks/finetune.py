"""Fine-tuning against training from scratch, at equal steps, on one set of real pictures.

  make demo
  python -m benchmarks.finetune --data DATA --start demo/run/checkpoint.pth --output_dir outputs/finetune

The pictures are dealt out to two data sets. The first lacks one class; a small DETR, which begins as the one
of `make demo`, learns it. The second has all classes, under other ids and in another spelling. It is trained
from scratch, and from the first one's model at several learning rates: the rows of classes that both know are
carried over by name. Curves and figures of the second go to the output folder.

Cost: half an hour on two CPU cores with the defaults on 364 pictures of blood cells (recipes/README.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.layouts import LAYOUTS, find_split
from doctor.new_folder import link
from util.errors import UserError, exit_status

ROOT = Path(__file__).resolve().parents[1]
# The small model of the demo on small pictures, so that the whole comparison runs without a GPU. Rates and
# their warm-up for training from scratch are the demo's.
SMALL = (
    "@recipes/shapes.args --dataset_file coco --scales 120 128 136 144 --eval_scale 144 --max_size 256"
    " --query_groups 1 --num_queries 40 --batch_size 8 --eval_batch_size 12 --num_workers 1"
)
RATES = ("5e-4", "1e-4", "1e-5")  # of fine-tuning, with the backbone's the same, as in the demo
PANELS = ("loss", "class_error", "AP", "AP50")


def deal_out(data: Path, out: Path) -> tuple[Path, Path]:
    """Write two data sets, each with half of the pictures of either split -> their folders.

    The first lacks the category with the fewest objects in train. The second has all, in lower case, with ids
    that go down from 2 times their number by twos.

    Raises:
        UserError: `data` is no data set in a known layout, or has fewer than two categories.
    """
    contents = {}
    for split in ("train", "val"):
        pictures, annotations = find_split(data, split)
        contents[split] = pictures, json.loads(annotations.read_text(encoding="utf-8"))
    names = {one["id"]: one["name"] for one in contents["train"][1]["categories"]}
    counts = dict.fromkeys(names, 0)
    for one in contents["train"][1]["annotations"]:
        counts[one["category_id"]] += 1
    if len(names) < 2:
        raise UserError(f"--data {data}: two categories are needed; the first model does not know one")
    rarest = min(names, key=lambda number: counts[number])
    known = {number: (number, names[number]) for number in names if number != rarest}
    other = {number: (2 * (len(names) - place), names[number].lower()) for place, number in enumerate(names)}
    folders = out / "first", out / "second"
    for half, (folder, categories) in enumerate(zip(folders, (known, other), strict=True)):
        for split, (pictures, content) in contents.items():
            images = sorted(content["images"], key=lambda image: image["id"])[half::2]
            chosen = {image["id"] for image in images}
            objects = [
                {**one, "category_id": categories[one["category_id"]][0]}
                for one in content["annotations"]
                if one["image_id"] in chosen and one["category_id"] in categories
            ]
            listed = [{"id": number, "name": name} for number, name in sorted(categories.values())]
            new = {"images": images, "annotations": objects, "categories": listed}
            target, file = LAYOUTS["coco"].splits[split]
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(json.dumps(new), encoding="utf-8")
            (folder / target).mkdir(exist_ok=True)
            for image in images:
                link(pictures / image["file_name"], folder / target / image["file_name"])
    return folders


def train(run: Path, data: Path, flags: Sequence[object]) -> Path:
    """Run main.py on the small model, or go on where it was stopped -> the run's folder."""
    run.mkdir(parents=True, exist_ok=True)
    words = [*SMALL.split(), "--coco_path", data, "--output_dir", run, "--lr_drop", 1000, *flags]
    command = [sys.executable, "main.py", *map(str, words)]
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    with open(run / "output.txt", "a", encoding="utf-8") as output:
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        raise UserError(f"{run}: ended with status {ended.returncode}; see {run / 'output.txt'}")
    return run


def table(runs: Sequence[Path]) -> str:
    """Markdown: AP and AP50 of each run after a quarter, half and all of its epochs."""
    lines: list[str] = []
    for run in runs:
        log = [json.loads(line)["test_coco_eval_bbox"] for line in (run / "log.txt").read_text().splitlines()]
        places = sorted({max(len(log) * part // 4, 1) for part in (1, 2, 4)})
        if not lines:
            lines.append("| AP / AP50 after | " + " | ".join(f"{n} epochs" for n in places) + " |")
            lines.append("|---" * (len(places) + 1) + "|")
        figures = [f"{100 * log[n - 1][0]:.1f} / {100 * log[n - 1][1]:.1f}" for n in places]
        lines.append(f"| {run.name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def run(words: Sequence[str] | None = None) -> int:
    """The command -> its exit status."""
    from util.plot_utils import draw_curves

    parser = argparse.ArgumentParser("python -m benchmarks.finetune", description=__doc__.split("\n")[0])
    flag = parser.add_argument
    flag("--data", required=True, help="a data set in COCO's layout, of two classes or more")
    flag("--start", default="demo/run/checkpoint.pth", help="what the first model begins as")
    flag("--output_dir", default="outputs/finetune", help="data sets, runs and curves")
    flag("--first_epochs", type=int, default=40, help="of the model to start from")
    flag("--epochs", type=int, default=20, help="of every other one")
    flag("--rates", nargs="+", default=RATES, help="learning rates of fine-tuning that are tried")
    args = parser.parse_args(words)
    out = Path(args.output_dir).resolve()
    first, second = deal_out(Path(args.data).resolve(), out / "data")
    begin = ["--resume", "auto", "--finetune", Path(args.start).resolve(), "--epochs", args.first_epochs]
    other = train(out / "first_model", first, begin)
    runs = [train(out / "from_scratch", second, ["--resume", "auto", "--epochs", args.epochs])]
    for rate in args.rates:
        flags = ["--lr", rate, "--lr_backbone", rate, "--warmup_steps", 20, "--epochs", args.epochs]
        flags += ["--resume", "auto", "--finetune", other / "checkpoint.pth"]
        runs.append(train(out / f"finetuned_{rate}", second, flags))
    draw_curves(runs, out / "curves.png", PANELS)
    print(f"{table(runs)}\ncurves: {out / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(run))
