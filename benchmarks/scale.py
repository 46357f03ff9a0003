"""What a data set of COCO's size asks for: time to start, memory of all data workers, and epochs that scale.

  python -m benchmarks.scale [start memory evaluation epochs] [--json OUT] [--plot OUT.png]

start       until the first batch of a training, with the doctor's look at the file: read for the first time,
            and again from the cache, each by a new process
memory      what loading the annotations adds to the proportional memory (PSS) of a process with 8 data
            workers, beside the same pictures with one object each; and how much a worker grows in an epoch
evaluation  peak memory of evaluating 5,000 images with 100 boxes each
epochs      loading time over the number of images, and over the number of data workers

The annotation file is made up: 118,287 images, 860,001 objects with polygons, 0.4 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fresh

IMAGES, OBJECTS = 118_287, 860_001  # COCO train2017
PICTURES = 64  # files that the images share; each is read many times
WORKERS = 8
MIB = 1 << 20
CURVE_IMAGES = (500, 1000, 2000, 4000)


# ---- the data


def write_annotations(path: Path, images: int, objects: int) -> None:
    """A COCO instances file with one polygon of 8 to 39 corners an object; images share PICTURES files."""
    from benchmarks.workloads import CATEGORIES

    draw = np.random.default_rng(0)
    owners = np.sort(draw.integers(1, images + 1, objects)).tolist()
    boxes = np.round(draw.random((objects, 4)) * 30 + 2, 2).tolist()
    corners = draw.integers(8, 40, objects).tolist()
    with open(path, "w") as file:
        listed = [
            {"id": i, "file_name": f"{i % PICTURES:012d}.jpg", "height": 64, "width": 64, "license": 1}
            for i in range(1, images + 1)
        ]
        categories = [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in CATEGORIES]
        file.write(f'{{"images": {json.dumps(listed)}, "categories": {json.dumps(categories)}, ')
        file.write('"annotations": [')
        for number, (owner, box, count) in enumerate(zip(owners, boxes, corners, strict=True), start=1):
            polygon = np.round(draw.random(2 * count) * 400, 2).tolist()
            record = {
                "id": number,
                "image_id": owner,
                "category_id": CATEGORIES[number % len(CATEGORIES)],
                "bbox": box,
                "area": round(box[2] * box[3], 3),
                "iscrowd": 0,
                "segmentation": [polygon],
            }
            file.write((", " if number > 1 else "") + json.dumps(record))
        file.write("]}")


def make_data(root: Path, images: int, objects: int, side: int = 64) -> Path:
    """The file, the pictures that its images share, and a validation split; made once."""
    from benchmarks.workloads import picture

    if (root / "annotations" / "instances_val2017.json").exists():
        return root
    draw = np.random.default_rng(1)
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in range(PICTURES):
            picture(draw, side, side).save(root / split / f"{number:012d}.jpg", quality=90)
    (root / "annotations").mkdir(exist_ok=True)
    write_annotations(root / "annotations" / "instances_train2017.json", images, objects)
    write_annotations(root / "annotations" / "instances_val2017.json", 64, 64)
    return root


# ---- what a fresh process does


def start(root: Path) -> dict[str, float]:
    """Seconds until main.py has its first batch, imports included."""
    begin = time.perf_counter()
    import torch  # noqa: F401  # the part of a start that is not ours

    imported = time.perf_counter()
    import training  # noqa: F401

    import main

    started = time.perf_counter()
    args = _flags(root, workers=0)
    main.check_data(args)
    checked = time.perf_counter()
    main.resolve(args, None)
    loader: Any = main.build_data_loaders(args)[0]
    prepared = time.perf_counter()
    next(iter(loader))
    done = time.perf_counter()
    seconds = {"torch": imported - begin, "our modules": started - imported}
    seconds |= {"doctor": checked - started, "annotations": prepared - checked}
    return seconds | {"first batch": done - prepared, "all": done - begin, "images": len(loader.dataset)}


def memory(root: Path) -> dict[str, float]:
    """MiB of PSS over the process and its 8 workers, after 2,000 batches, many for each worker."""
    return _memory(root, batches=2000)


def epoch_memory(root: Path) -> dict[str, float]:
    """The same after a whole epoch."""
    return _memory(root, batches=None)


def _memory(root: Path, batches: int | None) -> dict[str, float]:
    loader = _loader(root, workers=WORKERS)
    loader.batch_sampler.set_epoch(0)
    loaded = iter(loader)
    for _ in range(2 * WORKERS):
        next(loaded)
    children = _children(os.getpid())
    figures = {"start": _pss([os.getpid(), *children]), "worker at start": _pss(children) / WORKERS}
    own = [_private(child) for child in children]
    for _ in islice(loaded, batches):
        pass
    # The workers are persistent: they wait for the next epoch.
    figures |= {"end": _pss([os.getpid(), *children]), "worker at end": _pss(children) / WORKERS}
    grown = [_private(child) - before for child, before in zip(children, own, strict=True)]
    return figures | {"growth of a worker, private": max(grown), "images": len(loader.dataset)}


def evaluation(root: Path) -> dict[str, float]:
    """MiB of peak memory of 5,000 x 100 boxes, beside what the process had before the evaluation."""
    from benchmarks.memory import forget_peak, status
    from benchmarks.settings import Settings
    from benchmarks.stages import all_stages

    work = all_stages()["coco-5000-memory"].build(Settings(root), "ours")
    forget_peak()
    before = status("VmRSS")
    work.run()
    peak = status("VmHWM")
    return {"whole process": peak / MIB, "evaluation alone": (peak - before) / MIB}


def epochs(root: Path) -> dict[str, float]:
    """Seconds of an epoch of loading, in batches of 4: over images with 1 worker, over workers."""
    figures = {}
    cores = len(os.sched_getaffinity(0))
    for images in CURVE_IMAGES:
        figures[f"{images} images, 1 worker"] = _epoch_seconds(root, images, 1)
    for workers in range(2, cores + 1):
        figures[f"{CURVE_IMAGES[-1]} images, {workers} workers"] = _epoch_seconds(
            root, CURVE_IMAGES[-1], workers
        )
    return figures


def _epoch_seconds(root: Path, images: int, workers: int) -> float:
    """Of a second epoch: the first one starts the workers."""
    import torch

    torch.set_num_threads(1)  # the process that trains would be on a GPU
    loader = _loader(root / str(images), workers, small=False)
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        begin = time.perf_counter()
        for _ in loader:
            pass
    return time.perf_counter() - begin


def _loader(root: Path, workers: int, small: bool = True) -> Any:
    """The loader that main.py trains with; see _flags."""
    import main

    loader, _ = main.build_data_loaders(_flags(root, workers, small))
    return loader


def _flags(root: Path, workers: int, small: bool = True) -> argparse.Namespace:
    """main.py's, `small` for pictures of 64 pixels."""
    import main

    scales = "--scales 64 --max_size 64 --eval_scale 64 --no_crop" if small else ""
    words = f"--coco_path {root} --num_classes 91 --device cpu --num_workers {workers} {scales}"
    words += " --batch_size 4 --eval_batch_size 4"
    return main.get_args_parser().parse_args(words.split())


def _children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _pss(processes: list[int]) -> float:
    return sum(_rollup(process)["Pss"] for process in processes)


def _private(process: int) -> float:
    figures = _rollup(process)
    return figures["Private_Dirty"] + figures["Private_Clean"]


def _rollup(process: int) -> dict[str, float]:
    """MiB, by the kernel's names."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


# ---- the command

INSIDE: dict[str, Callable[[Path], dict[str, float]]] = {
    "start": start,
    "memory": memory,
    "epoch-memory": epoch_memory,
    "evaluation": evaluation,
    "epochs": epochs,
}


SECTIONS = ("start", "memory", "evaluation", "epochs")


def in_fresh_process(section: str, root: Path, cache: Path) -> dict[str, float]:
    """A section's figures."""
    words = "--inside", section, "--folder", str(root)
    return fresh.last_line("benchmarks.scale", *words, DETR_CACHE=str(cache))


def measure(sections: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """All sections' figures, each from processes of their own."""
    figures: dict[str, dict[str, float]] = {}
    large = folder / "large"
    if {"start", "memory"} & set(sections):
        make_data(large, IMAGES, OBJECTS)
    if "start" in sections:
        with tempfile.TemporaryDirectory() as cache:
            figures["start, first time"] = in_fresh_process("start", large, Path(cache))
            figures["start, from the cache"] = in_fresh_process("start", large, Path(cache))
    if "memory" in sections:
        small = make_data(folder / "small", 10_000, 10_000)
        with tempfile.TemporaryDirectory() as cache:
            without = in_fresh_process("memory", small, Path(cache))
            first = in_fresh_process("memory", large, Path(cache))
            again = in_fresh_process("epoch-memory", large, Path(cache))
        figures["memory, small file"] = without
        for name, found in (("read for the first time", first), ("from the cache, a whole epoch", again)):
            found["added at the start"] = found["start"] - without["start"]
            found["added at the end"] = found["end"] - without["end"]
            figures[f"memory, {name}"] = found
    if "evaluation" in sections:
        figures["evaluation"] = in_fresh_process("evaluation", folder, folder / "cache")
    if "epochs" in sections:
        pictures = folder / "pictures"
        for images in CURVE_IMAGES:
            make_data(pictures / str(images), images, 7 * images, side=480)
        figures["epochs"] = in_fresh_process("epochs", pictures, folder / "cache")
    return figures


def draw(figures: dict[str, float], path: Path) -> None:
    """The two curves of `epochs` beside what they would be if they were straight."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = [(int(name.split()[0]), int(name.split()[2]), value) for name, value in figures.items()]
    most = max(images for images, _, _ in points)
    panels = (
        ("images", [(images, value) for images, workers, value in points if workers == 1]),
        ("data workers", [(workers, value) for images, workers, value in points if images == most]),
    )
    chart, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (name, curve) in zip(axes, panels, strict=True):
        x, y = (np.array(values, dtype=float) for values in zip(*curve, strict=True))
        ideal = y[-1] * x / x[-1] if name == "images" else y[0] * x[0] / x
        axis.plot(
            x, ideal, color="0.6", linestyle="--", label="linear" if name == "images" else "1 / workers"
        )
        axis.plot(x, y, marker="o", label="measured")
        axis.set(xlabel=name, ylabel="seconds an epoch", xticks=x, ylim=(0, None))
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_title("one data worker")
    axes[1].set_title(f"{most} images")
    chart.savefig(path, dpi=110)
    plt.close(chart)


def main() -> int:
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all")
    parser.add_argument("--folder", type=Path, help="where data is made and kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plot", type=Path, help="draw the epochs' curves there")
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(INSIDE[options.inside](options.folder)))
        return 0
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {min(unknown)!r}; there are {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(options.sections or list(SECTIONS), options.folder or Path(temporary))
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:32} {value:10,.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.plot and "epochs" in figures:
        draw(figures["epochs"], options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
