"""OpenImages: tables of boxes, which are shares of their pictures, and of the names of classes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from doctor.formats.record import Object, Picture, Reading, as_seen, header_of, of_box, pictures_below
from doctor.splits import split_of
from doctor.summary import Tally
from util.errors import UserError


def read(source: Path) -> Reading:
    """The pictures that tables list; a table's name, such as validation-annotations-bbox, says the split.

    Args:
        source: a table, or a folder of them; near it class-descriptions*.csv and, at any depth, the pictures.

    Raises:
        UserError: no table, or a line of one that is no box.
    """
    root = source.parent if source.is_file() else source
    tables = [source] if source.is_file() else sorted(root.rglob("*annotations-bbox*.csv"))
    if not tables:
        raise UserError(f"{source}: no table *annotations-bbox*.csv there")
    names: dict[str, str] = {}
    for file in root.rglob("class-descriptions*.csv"):
        with open(file, newline="", encoding="utf-8-sig") as text:
            names |= {row[0]: row[1] for row in csv.reader(text) if len(row) > 1}
    shares: dict[str, list[Object]] = {}  # image -> its objects, whose boxes are shares of its sides
    splits: dict[str, str] = {}
    for table in tables:
        with open(table, newline="", encoding="utf-8-sig") as text:
            for row in (reader := csv.DictReader(text)):
                try:
                    image, name = row["ImageID"], names.get(row["LabelName"], row["LabelName"])
                    left, top, right, bottom = (float(row[e]) for e in ("XMin", "YMin", "XMax", "YMax"))
                    one = of_box(name, left, top, right - left, bottom - top)
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{table}, line {reader.line_num}: no box ({error!r})") from error
                shares.setdefault(image, []).append(one._replace(crowd=row.get("IsGroupOf") == "1"))
                splits[image] = split_of(table.stem)
    pictures: list[Picture] = []
    lost = Tally()
    paths = {path.stem: path for path in pictures_below(root)}
    for image, objects in shares.items():
        if image not in paths:
            lost += Tally(1, Counter(one.label for one in objects))
            continue
        header = header_of(paths[image])
        width, height = header.shown
        boxes = [(x * width, y * height, w * width, h * height) for _, (x, y, w, h), *_ in objects]
        sized = [one._replace(box=box) for one, box in zip(objects, boxes, strict=True)]
        pictures.append(as_seen(paths[image], header, sized, splits[image]))
    return Reading(pictures, lost=[("pictures that are not there", lost)] if lost.pictures else [])
