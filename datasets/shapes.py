"""The built-in data set: circles, squares and triangles before a landscape, written as ordinary COCO files.

    python -m datasets.shapes --out data/shapes

Thing classes are the three shapes, stuff classes sky, grass and sand in the background; see
datasets/shapes_drawing.py for the pictures. The files do not depend on the number of worker processes, nor
a picture on how many others there are.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.layouts import SHAPES_PATH
from datasets.panoptic_png import ids_to_rgb
from datasets.shapes_drawing import (
    COLOURS,
    DEFAULT_SIZE,
    FIRST_IMAGE_ID,
    MAX_PICTURES,
    STUFF,
    THINGS,
    draw_picture,
)
from datasets.workers import process_map, usable_cores
from util.command_line import OneLineParser
from util.errors import UserError, exit_status

DEFAULT_TRAIN = 8_000
DEFAULT_VAL = 200
MIN_SIZE = 48  # pixels; below, the smallest shapes are too few pixels to tell apart
VERSION = 2  # of the drawing: raise it when the same seed gives other pictures
STALE_SECONDS = 3600
_CHUNK = 50  # pictures a task

Record = tuple[dict, list[dict], dict]  # rows of one picture: image, annotations, panoptic annotation


def _write_pictures(
    folder: Path, seed: int, size: int, vary_size: bool, split: str, indices: range
) -> list[Record]:
    """Write some pictures of a split and return the rows of each."""
    records = []
    for index in indices:
        picture = draw_picture(seed, split, index, size, vary_size)
        image_id = FIRST_IMAGE_ID[split] + index
        name = f"{image_id:012d}"
        jpeg = folder / f"{split}2017" / f"{name}.jpg"
        Image.fromarray(picture.image).save(jpeg, quality=92, subsampling=0)  # sharp colours: no subsampling
        png = folder / f"panoptic_{split}2017" / f"{name}.png"
        Image.fromarray(ids_to_rgb(picture.segment_ids)).save(png)
        height, width = picture.segment_ids.shape
        row = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
        panoptic = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": picture.segments}
        records.append((row, picture.annotations, panoptic))
    return records


def _write_json(folder: Path, split: str, records: list[Record]) -> None:
    """Write a split's two files; as in COCO, the instances file lists the thing categories alone."""
    things: list[dict[str, Any]] = [
        {"id": category, "name": name, "supercategory": "shape"} for category, name in THINGS.items()
    ]
    stuff = [{"id": category, "name": name, "supercategory": "landscape"} for category, name in STUFF.items()]
    everything = [{**row, "isthing": 1} for row in things] + [{**row, "isthing": 0} for row in stuff]
    everything = [{**row, "color": COLOURS[row["id"]]} for row in everything]
    head = {
        "info": {"description": f"shapes, {split}", "version": str(VERSION)},
        "licenses": [],
        "images": [image for image, _, _ in records],
    }
    instances = [row for _, annotations, _ in records for row in annotations]
    panoptic = [row for _, _, row in records]
    for kind, rows, categories in (("instances", instances, things), ("panoptic", panoptic, everything)):
        content = {**head, "annotations": rows, "categories": categories}
        text = json.dumps(content, separators=(",", ":"))
        (folder / "annotations" / f"{kind}_{split}2017.json").write_text(text, encoding="utf-8")


def _write_all(folder: Path, settings: dict[str, Any], workers: int) -> None:
    """Write the whole data set into the empty `folder`; the record of its settings comes last."""
    from tqdm import tqdm

    counts = {"train": settings["train"], "val": settings["val"]}
    tasks = []
    for split, count in counts.items():
        for name in (f"{split}2017", f"panoptic_{split}2017"):
            (folder / name).mkdir()
        tasks += [(split, range(first, min(first + _CHUNK, count))) for first in range(0, count, _CHUNK)]
    (folder / "annotations").mkdir()
    write = partial(_write_pictures, folder, settings["seed"], settings["size"], settings["vary_size"])
    records: dict[str, list] = {split: [] for split in counts}
    bar = tqdm(total=sum(counts.values()), desc="shapes", unit="picture", disable=None)  # shown in a terminal
    with bar, process_map(min(workers, len(tasks))) as map_tasks:
        splits, ranges = zip(*tasks, strict=True)
        for split, rows in zip(splits, map_tasks(write, splits, ranges), strict=True):
            records[split] += rows
            bar.update(len(rows))
    for split in counts:
        _write_json(folder, split, records[split])
    (folder / "shapes.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_settings(root: str | Path) -> dict[str, Any] | None:
    """The settings (`train`, `val`, `size`, `seed`, `vary_size`, `version`) of the data set in `root`.

    None where there is no data set of this kind, or one from which files are missing.
    """
    root = Path(root)
    try:
        settings = json.loads((root / "shapes.json").read_text(encoding="utf-8"))
        for split in ("train", "val"):
            for folder in (f"{split}2017", f"panoptic_{split}2017"):
                if sum(1 for _ in os.scandir(root / folder)) < settings[split]:
                    return None
            for kind in ("instances", "panoptic"):
                if not (root / "annotations" / f"{kind}_{split}2017.json").is_file():
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings


def _is_there(root: Path, settings: dict[str, Any]) -> bool:
    """Whether `root` holds the data set already; False where it is absent or empty, else UserError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = read_settings(root)
    if found == settings:
        return True
    holds = "something other than a complete shapes data set"
    if found is not None:
        other = [f"{key}={found.get(key)}" for key in settings if found.get(key) != settings[key]]
        wanted = [f"{key}={value}" for key, value in settings.items() if found.get(key) != value]
        holds = f"a shapes data set with {', '.join(other)}, where {', '.join(wanted)} is wanted"
    raise UserError(f"{root} holds {holds}: choose another folder (--coco_path), or remove this one")


def _remove_leftovers(root: Path) -> None:
    """Remove what killed calls left beside `root`: folders into which nobody has written for an hour."""
    for folder in root.parent.glob(f".{glob.escape(root.name)}.partial-*"):
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except OSError:  # another process has just finished or removed it
            continue
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def write_shapes(
    root: str | Path = SHAPES_PATH,
    train: int = DEFAULT_TRAIN,
    val: int = DEFAULT_VAL,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    vary_size: bool = False,
    workers: int | None = None,
) -> Path:
    """Write the data set into `root`, or leave it as it is where it is there already.

    The files appear under `root` all at once, so that an interrupted call leaves nothing that could be
    taken for a data set; of several calls at the same time the first to finish wins.

    Args:
        root: folder to make; `{train,val}2017/*.jpg`, `panoptic_{train,val}2017/*.png`, `annotations/` and
            `shapes.json` (the settings) will lie there.
        train, val: number of pictures, from 1 to 1,000,000.
        size, vary_size: side of the pictures in pixels, see `draw_picture`.
        seed: non-negative; another seed gives other pictures.
        workers: processes that draw; left out, one for each usable core.

    Returns:
        `root` as a path.

    Raises:
        UserError: for a setting out of range, when `root` holds anything else, and when it cannot be written.
    """
    if workers is None:
        workers = usable_cores()
    settings = {"train": train, "val": val, "size": size, "seed": seed, "vary_size": vary_size}
    least = {"train": 1, "val": 1, "size": MIN_SIZE, "seed": 0, "workers": 1}
    for name, value in {**settings, "workers": workers}.items():
        if value < least.get(name, 0):
            raise UserError(f"shapes: {name} is {value}, but must be at least {least[name]}")
        if name in ("train", "val") and value > MAX_PICTURES:
            raise UserError(f"shapes: {name} is {value}, but must be at most {MAX_PICTURES}")
    settings["version"] = VERSION
    root = Path(root)
    target = root.resolve()  # where `root` is a link, the new folder must lie beside what it points to
    partial_folder = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:12]}"
    try:
        _remove_leftovers(target)
        if _is_there(target, settings):
            return root
        partial_folder.mkdir(parents=True)
        _write_all(partial_folder, settings, workers)
        try:
            os.rename(partial_folder, target)  # replaces an empty folder, fails on any other
        except OSError:
            if not _is_there(target, settings):
                raise
    except OSError as error:
        raise UserError(f"cannot write the shapes data set to {root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return root


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = OneLineParser(
        prog="python -m datasets.shapes",
        description="Write the built-in shapes data set as COCO files: JPEG pictures, instances JSON, "
        "panoptic PNG and JSON. A complete data set with the same settings is left as it is.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", default=SHAPES_PATH, help="folder to make")
    add("--train", type=int, default=DEFAULT_TRAIN, help="number of training pictures")
    add("--val", type=int, default=DEFAULT_VAL, help="number of validation pictures")
    add("--size", type=int, default=DEFAULT_SIZE, help="side of the pictures in pixels")
    add("--vary_size", action="store_true", help="in one picture of five the longer side is 7/6 of --size")
    add("--seed", type=int, default=0, help="another seed gives other pictures")
    add("--workers", type=int, default=argparse.SUPPRESS, help="drawing processes (default: one a core)")
    options = vars(parser.parse_args(argv))

    def run() -> None:
        try:
            root = write_shapes(options.pop("out"), **options)
        except KeyboardInterrupt:
            print("interrupted: nothing was written", file=sys.stderr)
            raise
        print(f"shapes: {options['train']} training and {options['val']} validation pictures in")
        for what in ("train2017", "val2017", "panoptic_train2017", "panoptic_val2017", "annotations"):
            print(f"  {root / what}")
        print(f"next: python main.py --dataset_file shapes --coco_path {root}")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
