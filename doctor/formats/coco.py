"""COCO's JSON as other tools export it: one file or several, beside pictures in folders of any layout."""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import find_picture, picture_name, what_lies_there
from doctor.columns import RawFile, read_raw
from doctor.correction import labels_of
from doctor.formats.record import Records, header_of, pictures_below
from doctor.mend_ids import number_ids
from doctor.mend_objects import make_plain
from doctor.report import Report
from doctor.splits import split_of, split_of_folders
from doctor.summary import Tally
from util.errors import UserError


def read(given: Mapping[str, Sequence[Path]], images: str | None) -> Records:
    """The annotations of files, joined, with integers for ids and paths of pictures for file names.

    Pictures that several files list become one, with the objects of all; classes are joined by name. Values
    whose meaning is plain are written as COCO writes them (see make_plain).

    Args:
        given: split -> files, or folders of files; '' for those that are named so, or are to be drawn.
        images: the folder of the pictures; None: near the files.

    Raises:
        UserError: no file, one that is no COCO file, or no picture of one is found.
    """
    joined = _Joined()
    pairs = [(split, place) for split, places in given.items() for place in places]
    files = [(file, split) for split, place in pairs for file in _files(place, joined.notes)]
    for file, split in files:
        report = Report()
        raw = read_raw(file, report)
        if raw is None:
            raise UserError(report.one_line())
        if raw.panoptic:
            raise UserError(f"{file}: a panoptic file; --dataset_file coco_panoptic trains on it as it is")
        if len(files) > 1 or split == "test":
            split = split or split_of(file.stem) or split_of_folders([file.parent.name])
        split = split or ("train" if given.get("val") else "")
        joined.add(raw, _locate(raw, file, Path(images) if images else None), split)
    return joined


def _files(place: Path, notes: list[str]) -> list[Path]:
    """A file, or those below a folder that hold instances: instances_*.json where there are any."""
    if place.is_file():
        return [place]
    everything = sorted(file for file in place.rglob("*.json") if not file.name.startswith("."))
    files, report = [file for file in everything if file.stem.startswith("instances")], Report()
    for file in everything if not files else []:
        raw = read_raw(file, report)
        if raw is not None and not raw.panoptic and "caption" not in raw.annotations[0]:
            files.append(file)
    if not files:
        why = f"; {report.one_line()}" if len(everything) == 1 and report.groups else ""
        what = "images, annotations and categories in one JSON"
        raise UserError(f"{place}: no COCO file below it: {what}{why}")
    if left := [file.name for file in everything if file not in files]:
        notes.append(f"not read, since they hold no instances: {', '.join(left[:10])}")
    return files


def _locate(raw: RawFile, file: Path, images: Path | None) -> list[Path | None]:
    """The picture of each image of a file."""
    word = file.stem.split("_")[-1]
    root = file.parent.parent if file.parent.name.lower() in ("annotations", "labels") else file.parent
    near = [file.parent, root, *(root / name for name in ("images", f"images/{word}", word, "data"))]
    folders = [images] if images else [folder for folder in near if folder.is_dir()]
    names = raw.names
    named: dict[str, list[Path]] = {}
    for one in pictures_below(images or root):
        named.setdefault(one.name.casefold(), []).append(one)
    found: list[Path | None] = []
    for name in (str(name) if name else None for name in names):
        path: Path | None = None
        if name is not None:  # as it is, spelled otherwise, or the only picture below that is called so
            exact = (folder / name for folder in folders if os.path.isfile(folder / name))
            spelled = filter(None, (find_picture(folder, name) for folder in folders))
            called = named.get(Path(name.replace("\\", "/")).name.casefold(), ())
            path = next(exact, None) or next(spelled, None) or (called[0] if len(called) == 1 else None)
        found.append(path)
    if not any(found):
        shown = what_lies_there(folders[0], str(names[0]))
        raise UserError(
            f"{file}: none of its pictures was found, such as {names[0]}; {shown}: pass --images FOLDER"
        )
    return found


class _Joined(Records):
    """What several files hold, with one numbering of images, categories and annotations."""

    def __init__(self) -> None:
        super().__init__()
        self._by_path: dict[Path, dict[str, Any]] = {}
        self._taken: dict[str, set[int]] = {"images": set(), "categories": set(), "annotations": set()}
        self._classes: dict[tuple[Any, int], int] = {}

    def add(self, raw: RawFile, paths: Sequence[Path | None], split: str) -> None:
        """Add a file."""
        labels = labels_of(raw)
        names = [name for record in raw.annotations for name in labels(record)]
        lost: defaultdict[str, Tally] = defaultdict(Tally)
        unresolved = set(number_ids(raw))
        self.rest = self.rest or raw.rest
        places: dict[int, dict[str, Any] | None] = {}
        twice = {number for number, n in Counter(raw.column("images", "id")).items() if n > 1}
        for row, (record, path) in enumerate(zip(raw.images, paths, strict=True)):
            number, here = record["id"], self._by_path.get(path) if path else None
            if path is None:
                lost[f"{raw.path}: a picture that is not there, such as {picture_name(record)}"] += Tally(1)
            elif here is None:
                here = {**record, "file_name": str(path), "id": self._number("images", number)}
                if not np.isfinite(raw.sizes[row]).all():
                    frames = header_of(path).fitting(raw.edges_of(row))
                    if len(frames) == 1:  # otherwise the doctor names it
                        here["width"], here["height"] = frames[0]
                self._by_path[path] = here
                self.images.append(here)
                self.splits.append(split)
            if number in twice and number in places and places[number] is not here:
                several = f"image id {number} is that of several pictures"
                raise UserError(f"{raw.path}: {several}: give each its own")
            places[number] = here
        moved: dict[int, int] = {}  # category id of the file -> of all
        times: Counter[str] = Counter()
        for record in raw.categories:
            name = str(record.get("name"))
            times[name] += 1  # the nth class of a name is that of the other files
            if (key := (name, times[name])) not in self._classes:
                self._classes[key] = self._number("categories", record["id"])
                self.categories.append({**record, "id": self._classes[key]})
            moved.setdefault(record["id"], self._classes[key])
        for row, (record, label) in enumerate(zip(raw.annotations, names, strict=True)):
            known = row not in unresolved and record["image_id"] in places and record["category_id"] in moved
            image = places[record["image_id"]] if known else None
            if image is None:
                what = "pictures that are not there" if known else "an image or a category that is not listed"
                lost[f"{raw.path}: objects of {what}"] += Tally(0, Counter([label]))
                continue
            ids = {"id": self._number("annotations", record["id"]), "image_id": image["id"]}
            ids["category_id"] = moved[record["category_id"]]
            self.annotations.append(make_plain({**record, **ids}))
            self.labels.append(label)
        self.lost += lost.items()

    def _number(self, section: str, wanted: int) -> int:
        """The id that is wanted, or a free one."""
        taken = self._taken[section]
        if wanted in taken:
            wanted = next(number for number in itertools.count(len(taken)) if number not in taken)
        taken.add(wanted)
        return wanted
