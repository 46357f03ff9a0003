"""Other annotation formats to COCO's, with pictures linked and the result checked.

    python -m doctor.convert voc VOC_FOLDER OUT              Pascal VOC, one XML file a picture
    python -m doctor.convert yolo YOLO_FOLDER OUT            YOLO, one text file a picture
    python -m doctor.convert via PROJECT.json OUT            VGG Image Annotator

The last line says what to do next. Splits of the source are kept; where it has none, a share of the pictures
is drawn for training. The exit status is that of `doctor.check`.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets.layouts import LAYOUTS
from doctor.check import check_dataset, find_sources
from doctor.fix import MENDED
from doctor.formats import via, voc, yolo
from doctor.formats.record import Picture
from doctor.links import link
from doctor.report import Report
from util.command_line import OneLineParser
from util.errors import UserError, exit_status
from util.hub_models import HUB_MODELS, PUBLISHED

_SHARE = 0.8  # of the pictures, for training
_WEIGHTS = PUBLISHED + HUB_MODELS["detr_resnet50"].file  # as in recipes/finetune.args


def divide(pictures: Sequence[Picture], share: float | None, seed: int) -> list[Picture]:
    """The pictures, each with a split, in the same order.

    Args:
        share: of the pictures that go to train, drawn at random; None: the splits of the source, and where a
            picture has none, a share of 0.8 of those.
        seed: of the draw, which depends on the names of the pictures and not on their order.
    """
    open_ones = [place for place, picture in enumerate(pictures) if share is not None or not picture.split]
    open_ones.sort(key=lambda place: pictures[place].path.name)
    random.Random(seed).shuffle(open_ones)
    count = round((share if share is not None else _SHARE) * len(open_ones))
    splits = {place: "train" if rank < count else "val" for rank, place in enumerate(open_ones)}
    return [one._replace(split=splits.get(place, one.split)) for place, one in enumerate(pictures)]


def to_coco(pictures: Iterable[Picture], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Split -> the contents of its instances file.

    Image ids are the numbers that the files are called by, where all are called by different numbers;
    otherwise 1, 2, … by name. Categories are 1, 2, … in the order of `names`; classes that are not
    among them follow, by name. Annotation ids are 1, 2, … in each file.
    """
    ordered = sorted(pictures, key=lambda picture: (picture.path.name, str(picture.path)))
    found = {one.name for picture in ordered for one in picture.objects}
    classes = {name: number for number, name in enumerate([*names, *sorted(found - set(names))], 1)}
    new_names, image_ids = file_names(ordered), _image_ids(ordered)
    content: dict[str, dict[str, Any]] = {}
    for split in ("train", "val"):
        categories = [{"id": number, "name": name} for name, number in classes.items()]
        content[split] = {"images": [], "annotations": [], "categories": categories}
    for picture, image_id in zip(ordered, image_ids, strict=True):
        images, objects = (content[picture.split][name] for name in ("images", "annotations"))
        width, height = picture.size
        name = new_names[picture.path]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for one in picture.objects:
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image_id,
                    "category_id": classes[one.name],
                    "bbox": [round(number, 3) for number in one.box],
                    "area": round(_area(one.polygon) if one.polygon else one.box[2] * one.box[3], 3),
                    "iscrowd": 0,
                    "segmentation": [[round(number, 3) for number in one.polygon]] if one.polygon else [],
                }
            )
    return content


def file_names(pictures: Sequence[Picture]) -> dict[Path, str]:
    """Path of each picture -> its new name: the old one, numbered where several are called alike."""
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for picture in pictures:
        name, number = picture.path.name, 1
        while name in taken:
            number += 1
            name = f"{picture.path.stem}_{number}{picture.path.suffix}"
        taken.add(name)
        names[picture.path] = name
    return names


def _image_ids(pictures: Sequence[Picture]) -> list[int]:
    stems = [picture.path.stem for picture in pictures]
    if all(stem.isascii() and stem.isdecimal() and len(stem) < 19 for stem in stems):
        numbers = list(map(int, stems))
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(pictures) + 1))


def _area(polygon: Sequence[float]) -> float:
    """Of the polygon x1, y1, x2, y2, …, in square pixels."""
    xs, ys = polygon[::2], polygon[1::2]
    turns = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in turns)) / 2


def write(pictures: Sequence[Picture], names: Sequence[str], out: str | Path) -> None:
    """Write annotation files and links to the pictures, in COCO's layout, to a new folder.

    Args:
        pictures: each with a split.
        names: the order of the classes; those that are missing follow.

    Raises:
        UserError: the folder holds something already.
    """
    root = Path(out)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} holds something already; name a new folder")
    (root / "annotations").mkdir(parents=True)
    places = LAYOUTS["coco"].splits
    new_names = file_names(sorted(pictures, key=lambda picture: (picture.path.name, str(picture.path))))
    for split, content in to_coco(pictures, names).items():
        folder, file = places[split]
        (root / folder).mkdir()
        if content["images"]:
            (root / file).write_text(json.dumps(content), encoding="utf-8")
    for picture in pictures:
        link(picture.path, root / places[picture.split][0] / new_names[picture.path])


def get_args_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = OneLineParser("python -m doctor.convert", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("format", choices=["voc", "yolo", "via"])
    parser.add_argument("source", help="folder, or VIA's JSON file")
    parser.add_argument("out", help="new folder, in COCO's layout")
    parser.add_argument("--split", type=float, help="share of the pictures for training, drawn at random")
    parser.add_argument("--seed", type=int, default=42, help="of that draw")
    parser.add_argument("--names", nargs="+", default=[], help="the classes, in the order of their ids")
    parser.add_argument(
        "--one_based", action="store_true", help="voc: coordinates count from 1, as in the published VOC sets"
    )
    return parser


def run(words: Sequence[str] | None = None) -> int:
    """The command -> its exit status."""
    args = get_args_parser().parse_args(words)
    if args.split is not None and not 0 < args.split <= 1:
        raise UserError(f"--split {args.split:g}: a share of the pictures, above 0 and at most 1")
    source = Path(args.source)
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder")
    names = args.names
    if args.format == "voc":
        pictures = voc.read(source, args.one_based)
    elif args.format == "via":
        pictures = via.read(source, names)
    else:
        known = dict(enumerate(names)) if names else yolo.class_names(source)
        pictures, names = yolo.read(source, known), list(known.values())
    if not pictures:
        raise UserError(f"{source}: no pictures there")
    classes = [*names, *(found.name for picture in pictures for found in picture.objects)]
    _refuse_garbled([args.source, args.out, *(picture.path.name for picture in pictures), *classes])
    pictures = divide(pictures, args.split, args.seed)
    write(pictures, names, args.out)
    report = check_dataset(find_sources(args.out))
    print("\n".join(report.lines()))
    print("\n" + _next_step(args.source, args.out, report))
    return report.status


def _refuse_garbled(names: Iterable[str]) -> None:
    """Annotation files and terminals take text alone; names of files may be any bytes."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{ascii(name)} is no UTF-8 text: rename that file, folder or class") from None


def _next_step(source: str, out: str, report: Report) -> str:
    """What to do with a data set that was converted and checked."""
    if report.status == 2:
        return f"next: mend in {source} what is said above, and convert it to a new folder"
    mend = any(group.name in MENDED for group in report.faults)
    root, first = shlex.quote(out), ""
    if mend:
        first, root = f"python -m doctor {root} --fix NEW_FOLDER, then ", "NEW_FOLDER"
    results = shlex.quote(f"outputs/{Path(out).resolve().name}")
    flags = f"--coco_path {root} --output_dir {results} --finetune {_WEIGHTS}"
    return f"next: {first}python main.py @recipes/finetune.args {flags}"


if __name__ == "__main__":
    sys.exit(exit_status(run))
