"""Other annotation formats to the layout that training reads, with pictures linked and the result checked.

    python -m doctor.convert yolo FOLDER_OR_DATA_YAML OUT    YOLO: boxes, outlines, poses
    python -m doctor.convert voc FOLDER OUT                  Pascal VOC, one XML file a picture
    python -m doctor.convert via PROJECT.json OUT            VGG Image Annotator
    python -m doctor.convert labelme FOLDER OUT              LabelMe, one JSON file a picture
    python -m doctor.convert openimages FOLDER OUT           OpenImages' tables of boxes (CSV)
    python -m doctor.convert coco FILE_OR_FOLDER OUT         COCO's JSON of any tool; several are joined

Splits of the source are kept; what is drawn is announced. A summary counts pictures and objects before and
after; the last line says what to do next. The exit status is that of `python -m doctor`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets.images import image_ids
from datasets.masks import enclosed_area
from doctor.check import check_dataset, find_sources
from doctor.columns import RawFile
from doctor.correction import tally_of
from doctor.fix import MENDED, write_set
from doctor.formats import coco, labelme, openimages, via, voc, yolo
from doctor.formats.record import Reading, Records
from doctor.new_folder import NewFolder
from doctor.report import Report
from doctor.sources import Source
from doctor.splits import SPLITS, draw
from doctor.summary import Summary, Tally
from util.command_line import OneLineParser
from util.errors import UserError, exit_status
from util.hub_models import HUB_MODELS, PUBLISHED

_WEIGHTS = PUBLISHED + HUB_MODELS["detr_resnet50"].file  # as in recipes/finetune.args


def to_records(reading: Reading) -> Records:
    """The pictures of a reading as COCO's records, in the order of their names.

    Image ids are those of image_ids; categories are 1, 2, … in the order of the names.
    """
    records = Records(notes=reading.notes, lost=reading.lost)
    ordered = sorted(reading.pictures, key=lambda picture: (picture.path.name, str(picture.path)))
    found = {one.name for picture in ordered for one in picture.objects}
    names = [*reading.names, *sorted(found - set(reading.names))]
    classes = {name: number for number, name in enumerate(names, 1)}
    records.categories = [{"id": number, "name": name} for name, number in classes.items()]
    ids = image_ids([picture.path for picture in ordered])
    for picture, image_id in zip(ordered, ids, strict=True):
        width, height = picture.size
        entry = {"id": image_id, "file_name": str(picture.path), "width": width, "height": height}
        records.images.append(entry)
        records.splits.append(picture.split)
        for one in picture.objects:
            record = {
                "image_id": image_id,
                "category_id": classes[one.name],
                "bbox": [round(number, 3) for number in one.box],
                "area": round(enclosed_area(one.polygon) if one.polygon else one.box[2] * one.box[3], 3),
                "iscrowd": int(one.crowd),
                "segmentation": [[round(number, 3) for number in one.polygon]] if one.polygon else [],
            }
            if one.keypoints:
                seen = sum(number > 0 for number in one.keypoints[2::3])
                record.update(keypoints=list(one.keypoints), num_keypoints=seen)
            records.annotations.append(record)
            records.labels.append(one.label)
    return records


def deal_out(records: Records, splits: Sequence[str]) -> tuple[dict[str, RawFile], dict[str, Tally]]:
    """The files of all splits, given the split of each image, and what each is to hold."""
    contents = {
        split: {**records.rest, "images": [], "annotations": [], "categories": records.categories}
        for split in SPLITS
        if split in splits
    }
    tallies = {split: Tally() for split in contents}
    split_of = {}
    for image, split in zip(records.images, splits, strict=True):
        split_of[image["id"]] = split
        contents[split]["images"].append(image)
        tallies[split] += Tally(1)
    for record, label in zip(records.annotations, records.labels, strict=True):
        split = split_of[record["image_id"]]
        contents[split]["annotations"].append({"id": len(contents[split]["annotations"]) + 1, **record})
        tallies[split].objects[label] += 1
    return {split: RawFile(Path(split), content) for split, content in contents.items()}, tallies


def get_args_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = OneLineParser("python -m doctor.convert", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("format", choices=["coco", "voc", "yolo", "via", "labelme", "openimages"])
    add = parser.add_argument
    add("source", nargs="+", help="folder, data.yaml, JSON or CSV file; of coco several are joined")
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
        given = {"": args.source, "val": args.val, "test": args.test}
        paths = {split: list(map(Path, files)) for split, files in given.items()}
        records = coco.read(paths, args.images)
    else:
        records = to_records(_read_pictures(args))
    texts = [args.source[0], args.out, *(str(image["file_name"]) for image in records.images)]
    texts += [str(category.get("name")) for category in records.categories]
    for text in texts:  # annotation files and terminals take text alone; names of files may be any bytes
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{ascii(text)} is no UTF-8 text: rename that file, folder or class") from None
    names = [Path(image["file_name"]).name for image in records.images]
    splits, drawn = draw(records.splits, names, args.split, args.seed)
    raws, before = deal_out(records, splits)
    notes = [*records.notes, *filter(None, [drawn])]
    sources = {}
    for split, raw in raws.items():
        placed = {name: Path(name) for name in raw.column("images", "file_name")}
        sources[split] = Source(Path(split), placed=placed)
    write_set(NewFolder(args.out), raws, sources)
    summary = Summary(before, {split: tally_of(raw) for split, raw in raws.items()}, notes=notes)
    report = check_dataset(find_sources(args.out))
    left_out = [f"left out: {tally}: {reason}" for reason, tally in records.lost]
    print("\n".join([*report.lines(), "", *left_out, *summary.lines()]))
    print("\n" + _next_step(args.source[0], args.out, report))
    return report.status


def _read_pictures(args: argparse.Namespace) -> Reading:
    """A source in one of the formats of single pictures."""
    source = Path(args.source[0])
    if len(args.source) > 1 or args.val or args.test or args.images:
        raise UserError(f"{args.format}: one source, and no --val, --test or --images, which coco takes")
    readers: dict[str, Callable[[], Reading]] = {
        "yolo": lambda: yolo.read(source, dict(enumerate(args.names)) if args.names else None),
        "voc": lambda: voc.read(source, args.one_based),
        "via": lambda: via.read(source, args.names),
        "labelme": lambda: labelme.read(source),
        "openimages": lambda: openimages.read(source),
    }
    reading = readers[args.format]()
    if not reading.pictures:
        raise UserError(f"{source}: no pictures there")
    reading.names = args.names or reading.names
    return reading


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
