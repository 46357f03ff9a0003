"""Other annotation formats to the layout that training reads, with pictures linked and the result checked.

    python -m doctor.convert yolo FOLDER_OR_DATA_YAML OUT    YOLO: boxes, outlines, poses
    python -m doctor.convert voc FOLDER OUT                  Pascal VOC, one XML file a picture
    python -m doctor.convert via PROJECT.json OUT            VGG Image Annotator
    python -m doctor.convert coco FILE_OR_FOLDER OUT         COCO's JSON of any tool; several are joined

Splits of the source are kept; what is drawn is announced. A summary counts pictures and objects before and
after; the last line says what to do next. The exit status is that of `python -m doctor`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.masks import enclosed_area
from doctor.check import check_dataset, find_sources
from doctor.columns import SECTIONS, RawFile
from doctor.correction import tally_of
from doctor.fix import MENDED, write_set
from doctor.formats import coco, via, voc, yolo
from doctor.formats.record import Reading
from doctor.new_folder import NewFolder
from doctor.report import Report
from doctor.sources import Source
from doctor.splits import SPLITS, draw
from doctor.summary import Summary, Tally
from util.command_line import OneLineParser
from util.errors import UserError, exit_status
from util.hub_models import HUB_MODELS, PUBLISHED

_WEIGHTS = PUBLISHED + HUB_MODELS["detr_resnet50"].file  # as in recipes/finetune.args


def to_coco(reading: Reading) -> dict[str, dict[str, Any]]:
    """Split -> the contents of its instances file; file names are the paths of the pictures.

    Image ids are the numbers that the files are called by, where all are called by different numbers;
    otherwise 1, 2, … by name. Categories are 1, 2, … in the order of the names. Annotation ids are 1, 2, … in
    each file.
    """
    ordered = sorted(reading.pictures, key=lambda picture: (picture.path.name, str(picture.path)))
    found = {one.name for picture in ordered for one in picture.objects}
    names = [*reading.names, *sorted(found - set(reading.names))]
    classes = {name: number for number, name in enumerate(names, 1)}
    stems = [picture.path.stem for picture in ordered]
    numbered = all(stem.isascii() and stem.isdecimal() and len(stem) < 19 for stem in stems)
    ids = list(map(int, stems)) if numbered else []
    if len(set(ids)) < len(ordered):
        ids = list(range(1, len(ordered) + 1))
    content: dict[str, dict[str, Any]] = {}
    for picture, image_id in zip(ordered, ids, strict=True):
        part = content.setdefault(picture.split, {name: [] for name in SECTIONS})
        width, height = picture.size
        entry = {"id": image_id, "file_name": str(picture.path), "width": width, "height": height}
        part["images"].append(entry)
        for one in picture.objects:
            record = {
                "id": len(part["annotations"]) + 1,
                "image_id": image_id,
                "category_id": classes[one.name],
                "bbox": [round(number, 3) for number in one.box],
                "area": round(enclosed_area(one.polygon) if one.polygon else one.box[2] * one.box[3], 3),
                "iscrowd": 0,
                "segmentation": [[round(number, 3) for number in one.polygon]] if one.polygon else [],
            }
            if one.keypoints:
                seen = sum(number > 0 for number in one.keypoints[2::3])
                record.update(keypoints=list(one.keypoints), num_keypoints=seen)
            part["annotations"].append(record)
    for part in content.values():
        part["categories"] = [{"id": number, "name": name} for name, number in classes.items()]
    return content


def get_args_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = OneLineParser("python -m doctor.convert", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("format", choices=["coco", "voc", "yolo", "via"])
    add = parser.add_argument
    add("source", nargs="+", help="folder, data.yaml, or JSON file; of coco several are joined")
    add("out", help="new folder, in COCO's layout")
    add("--split", type=float, help="share of the pictures for training, drawn at random")
    add("--seed", type=int, default=42, help="of that draw")
    add("--names", nargs="+", default=[], help="the classes, in the order of their ids")
    add("--images", help="coco: the folder of the pictures")
    add("--val", nargs="+", default=[], metavar="FILE", help="coco: JSON files for validation")
    add("--test", nargs="+", default=[], metavar="FILE", help="coco: JSON files of a test split")
    add("--one_based", action="store_true",
        help="voc: coordinates count from 1, as in the published VOC sets")  # fmt: skip
    return parser


def run(words: Sequence[str] | None = None) -> int:
    """The command -> its exit status."""
    args = get_args_parser().parse_args(words)
    if args.split is not None and not 0 < args.split <= 1:
        raise UserError(f"--split {args.split:g}: a share of the pictures, above 0 and at most 1")
    for source in [*args.source, *args.val, *args.test]:
        if not Path(source).exists():
            raise UserError(f"{source}: there is no such file or folder")
    if args.format == "coco":
        splits = {"": args.source, "val": args.val, "test": args.test}
        given = {split: list(map(Path, files)) for split, files in splits.items()}
        contents, before, notes, lost = coco.read(given, args.images, args.split, args.seed)
    else:
        contents, before, notes, lost = _read_pictures(args)
    texts = [args.source[0], args.out]
    for content in contents.values():
        texts += [str(image["file_name"]) for image in content["images"]]
        texts += [str(category.get("name")) for category in content["categories"]]
    for text in texts:  # annotation files and terminals take text alone; names of files may be any bytes
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{ascii(text)} is no UTF-8 text: rename that file, folder or class") from None
    raws = {split: RawFile(Path(split), contents[split]) for split in SPLITS if split in contents}
    sources = {}
    for split, raw in raws.items():
        placed = {name: Path(name) for name in raw.column("images", "file_name")}
        sources[split] = Source(Path(split), placed=placed)
    write_set(NewFolder(args.out), raws, sources)
    summary = Summary(before, {split: tally_of(raw) for split, raw in raws.items()}, notes=notes)
    report = check_dataset(find_sources(args.out))
    left_out = [f"left out: {tally}: {reason}" for reason, tally in lost]
    print("\n".join([*report.lines(), "", *left_out, *summary.lines()]))
    print("\n" + _next_step(args.source[0], args.out, report))
    return report.status


def _read_pictures(args: argparse.Namespace) -> tuple[coco.Contents, dict[str, Tally], list[str], coco.Lost]:
    """A source in one of the formats of single pictures; what it gives is what `coco.read` gives."""
    source = Path(args.source[0])
    if len(args.source) > 1 or args.val or args.test or args.images:
        raise UserError(f"{args.format}: one source, and no --val, --test or --images, which coco takes")
    if args.format == "voc":
        reading = voc.read(source, args.one_based)
    elif args.format == "via":
        reading = via.read(source, args.names)
    else:
        reading = yolo.read(source, dict(enumerate(args.names)) if args.names else None)
    pictures = reading.pictures
    if not pictures:
        raise UserError(f"{source}: no pictures there")
    reading.names = args.names or reading.names
    names = [one.path.name for one in pictures]
    splits, said = draw([one.split for one in pictures], names, args.split, args.seed)
    reading.pictures = [one._replace(split=to) for one, to in zip(pictures, splits, strict=True)]
    before = {split: Tally() for split in SPLITS if split in splits}
    for picture in reading.pictures:
        before[picture.split] += Tally(1, Counter(one.name for one in picture.objects))
    return to_coco(reading), before, [*reading.notes, *filter(None, [said])], reading.lost


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
