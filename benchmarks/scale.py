"""What an annotation file of COCO's size asks for: time to start, and memory of eight data workers.

  python -m benchmarks.scale                    this tree
  python -m benchmarks.scale --against PATH     a checkout of the published code, too

start   seconds from `python main.py` to the line of the first step of a small model: imports, this tree's
        checks of the data, both annotation files, one step
memory  what the file adds to the memory (PSS, in MiB) of a process and its 8 workers, compared with a file of
        64 images and the same pictures: at the first batches, and some hundred later

The file is made up: 118,287 images, about 860,000 objects with polygons, 0.4 GB. `load` runs in either tree,
called by this file's path, so nothing of this tree is imported at the top.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 118_287  # COCO train2017
WORKERS = 8
MODEL = (
    "--backbone resnet18 --hidden_dim 32 --nheads 4 --dim_feedforward 32 --enc_layers 1 --dec_layers 1"
    " --epochs 1 --batch_size 1 --num_workers 0 --device cpu"
)
# The published code would fetch the backbone's weights in the main process.
START = (
    "import runpy, models.backbone as b; vars(b)['is_main_process'] = lambda: False;"
    "runpy.run_path('main.py', run_name='__main__')"
)


def start(tree: Path, data: Path) -> dict[str, float]:
    """Seconds until main.py of a tree prints its first step."""
    ours = ["--backbone_weights", "none"] if (tree / "doctor").exists() else []
    words = [sys.executable, "-u", "-c", START, *MODEL.split(), "--coco_path", str(data), *ours]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, cwd=tree, stdout=subprocess.PIPE, stderr=errors, text=True)
        begun = any(line.startswith("Epoch: [0]") for line in process.stdout or ())  # the first one ends it
        taken = time.perf_counter() - begin
        process.kill()
        process.communicate()
        if not begun:
            errors.seek(0)
            raise RuntimeError(f"{tree}: main.py ended before its first step: {errors.read()[-500:]}")
    return {"start, s": taken}


def memory(tree: Path, data: Path, few: Path, batches: int) -> dict[str, float]:
    """What the annotations of `data` add to those of `few`."""
    found = []
    for folder in (few, data):
        words = [sys.executable, __file__, "--inside", str(folder), str(batches)]
        done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{tree}: {done.stderr[-500:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {f"memory added {when}, MiB": found[1][when] - found[0][when] for when in found[0]}


def load(folder: Path, batches: int) -> dict[str, float]:
    """In a process of its own, in either tree: PSS of it and its workers while they load, in MiB."""
    import torch

    import main
    from datasets import build_dataset
    from util.misc import collate_fn  # where both trees have it

    torch.set_num_threads(1)
    args = main.get_args_parser().parse_args(["--coco_path", str(folder)])
    dataset = build_dataset("train", args)
    # With replacement, so that the workers live as long with 64 images as with all.
    sampler = torch.utils.data.RandomSampler(
        dataset, replacement=True, num_samples=2 * (2 * WORKERS + batches)
    )
    loader = torch.utils.data.DataLoader(
        dataset, 2, sampler=sampler, num_workers=WORKERS, collate_fn=collate_fn, drop_last=True
    )
    loaded = iter(loader)
    found = {}
    for when, count in (("at first", WORKERS), ("later", batches)):
        for _ in islice(loaded, count):
            pass
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        found[when] = sum(map(pss, [str(os.getpid()), *children]))
    return found


def pss(process: str) -> float:
    """MiB, shared pages divided by the number of processes that share them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    from benchmarks.inputs import write_coco, write_instances
    from util.command_line import HelpWithDefaults, OneLineParser

    parser = OneLineParser(
        "python -m benchmarks.scale", description=__doc__, formatter_class=HelpWithDefaults
    )
    flag = parser.add_argument
    flag("--only", choices=("start", "memory"), help="left out: both")
    flag("--against", type=Path, metavar="PATH", help="a checkout of the published code")
    flag("--images", type=int, default=IMAGES, help="of the file")
    flag("--batches", type=int, default=400, help="between the two looks at memory")
    flag("--json", type=Path, metavar="OUT", help="write the figures")
    args = parser.parse_args(argv)
    results = {}
    with tempfile.TemporaryDirectory() as root:
        large, few = Path(root, "large"), Path(root, "few")
        for folder in (large, few):
            write_coco(folder, 64, (64, 64), pictures=64)
        train = large / "annotations" / "instances_train2017.json"
        write_instances(train, args.images, (64, 64), pictures=64)
        for tree in [ROOT, *([args.against.resolve()] if args.against else [])]:
            figures: dict[str, float] = {}
            if args.only != "memory":
                figures |= start(tree, large)
            if args.only != "start":
                figures |= memory(tree, large, few, args.batches)
            results[tree.name] = figures
            said = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())
            print(f"{tree.name}: {said}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:  # in a tree, which comes first in the import path
        sys.path[0] = os.getcwd()
        print(json.dumps(load(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        sys.exit(main())
