"""YOLO: one text file a picture, lines of class number and normalised coordinates."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from datasets.images import find_picture
from doctor.columns import show
from doctor.formats.record import (
    Object,
    Reading,
    as_seen,
    check_near,
    header_of,
    lines_of,
    of_box,
    of_polygon,
    pictures_below,
    read_text,
)
from doctor.splits import lists_of, split_of_folders
from doctor.summary import Tally
from util.errors import UserError

_MOST = 10**6  # classes


def read(source: Path, names: Mapping[int, str] | None = None) -> Reading:
    """The pictures of a folder, those without a text file included: they hold no objects.

    Splits are those of data.yaml; else of train.txt and the like, else of folders such as train/ and valid/.

    Args:
        source: data.yaml, or a folder of pictures and text files: in images/ and labels/ (those may be within
            train/ and val/ or hold these), or beside each other.
        names: number -> name of the classes; None: those of data.yaml or classes.txt.

    Raises:
        UserError: no pictures there, a line that is no object, a class number without a name.
    """
    yaml = source if source.is_file() else None
    source = source.parent if source.is_file() else source
    content: dict[str, Any] = {}
    if names is None or yaml is not None:
        for file in [yaml] if yaml else [*sorted(source.glob("*.yaml")), *sorted(source.glob("*.yml"))]:
            content = _yaml(file)
            if isinstance(content.get("names"), (list, dict)):
                yaml = file
                break
    if names is None:
        names = _numbered(content["names"], yaml) if yaml and "names" in content else class_names(source)
    shape, keypoints = content.get("kpt_shape"), None  # number of keypoints, numbers of each
    if shape is not None:
        if not isinstance(shape, list) or [*map(type, shape)] != [int, int] or shape[1] not in (2, 3):
            what = f"kpt_shape must be [number of keypoints, 2 or 3], not {show(shape)}"
            raise UserError(f"{yaml}: {what}")
        keypoints = shape[0], shape[1]
    reading = Reading([], list(names.values()))
    paths = _splits(source, content, reading)
    if not paths:
        raise UserError(f"{source}: no pictures there")
    labels = _Labels()
    for path, split in paths.items():
        label, header = labels.of(path), header_of(path)
        lines = enumerate(read_text(label).splitlines() if label else [], 1)
        objects = [
            _read_line(line, header.shown, names, keypoints, f"{label}, line {number}")
            for number, line in lines
            if line.strip()
        ]
        reading.pictures.append(as_seen(path, header, objects, split))
    everywhere = [path for path in pictures_below(source) if path not in paths]
    unused = [label for path in everywhere if (label := labels.of(path))]
    if everywhere:
        reading.lost.append(("pictures that lie in no split", _tally(len(everywhere), unused, names)))
    orphans = [file for file in labels.all_below(source) if file not in labels.used]
    if orphans:
        shown = ", ".join(str(file.relative_to(source)) for file in orphans[:10])
        reason = f"label files that match no picture: {shown}{', …' if len(orphans) > 10 else ''}"
        reading.lost.append((reason, _tally(0, orphans, names)))
    return reading


def _tally(pictures: int, labels: Iterable[Path], names: Mapping[int, str]) -> Tally:
    """Pictures and what their label files hold."""
    tally = Tally(pictures)
    for number in (line.split()[0] for label in labels for line in lines_of(label)):
        tally.objects[names.get(int(number), number) if number.isdecimal() else number] += 1
    return tally


# ---- pictures and their splits


def _splits(source: Path, content: Mapping[str, Any], reading: Reading) -> dict[Path, str]:
    """Picture -> its split, of those that the source lists, or of all in the folder; sorted."""
    lists: dict[str, list[Path]] = {}
    for key, split in {"train": "train", "val": "val", "valid": "val", "test": "test"}.items():
        entries = content.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            if paths := _entry(source, str(entry), str(content.get("path") or "")):
                lists.setdefault(split, []).extend(paths)
            else:
                reading.notes.append(f"data.yaml says {key}: {show(entry)}, where no pictures are")
    if not lists:
        for split, lines in lists_of(source).items():
            lists[split] = [path for line in lines if (path := find_picture(source, line))]
    if not any(lists.values()):
        everywhere = pictures_below(source)
        return {path: split_of_folders(path.relative_to(source).parts[:-1]) for path in everywhere}
    train, test = set(lists.get("train", [])), set(lists.get("test", []))
    if train and train <= test:
        reading.notes.append("test holds all pictures of train: it is left out")
        lists["test"] = []
    found: dict[Path, str] = {}
    for split in ("test", "train", "val"):  # what is in test must not land in train
        paths = lists.get(split, [])
        twice = sum(path in found for path in paths)
        if twice:
            reading.notes.append(f"{twice} pictures of {split} are in another split too, and stay there")
        found.update({path: split for path in paths if path not in found})
    return dict(sorted(found.items()))


def _entry(source: Path, entry: str, base: str) -> list[Path]:
    """The pictures that data.yaml's `entry` means, a folder or a list of files; [] for none."""
    below = Path(*(part for part in Path(entry).parts if part not in (".", "..")))
    tries = [source / base / entry, source / entry, source / below, source / base / below]
    place = next((one for one in tries if one.exists()), None)
    if place is None or place.is_dir():
        return pictures_below(place) if place else []
    folders = (place.parent, source / base, source)
    found = (filter(None, (find_picture(one, line) for one in folders)) for line in lines_of(place))
    return [path for paths in found if (path := next(paths, None))]


class _Labels:
    """The text files of pictures, found by trying: percent escapes, .TXT, x.png.txt, Unicode's normal forms.

    Attributes:
        used: those that belong to a picture.
    """

    def __init__(self) -> None:
        self.used: set[Path] = set()
        self._folders: dict[Path, dict[str, Path]] = {}

    def of(self, picture: Path) -> Path | None:
        """The text file of a picture: in labels/ where the picture is in images/, else beside it."""
        parts = list(picture.parent.parts)
        folders = [place for place, part in enumerate(parts) if part == "images"]
        if folders:
            parts[folders[-1]] = "labels"
        if (folder := Path(*parts)) not in self._folders:
            files = [file for file in sorted(folder.glob("*")) if file.suffix.lower() == ".txt"]
            known = {_plain(file.stem): file for file in files}  # as it reads without escapes
            self._folders[folder] = {**known, **{file.stem: file for file in files}}
        names = (picture.stem, _plain(picture.stem), _plain(picture.name))
        found = next((self._folders[folder][name] for name in names if name in self._folders[folder]), None)
        self.used |= {found} if found else set()
        return found

    def all_below(self, source: Path) -> list[Path]:
        """All text files whose first line is that of a label."""
        files = []
        for file in sorted(source.rglob("*")):
            if file.suffix.lower() == ".txt" and file.is_file():
                words = "".join(lines_of(file)[:1]).split()
                with contextlib.suppress(ValueError):  # words: a list of files, or names of classes
                    files += [file] if len(list(map(float, words))) > 4 else []
        return files


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name))


# ---- data.yaml and classes.txt


def class_names(source: Path) -> dict[int, str]:
    """Number -> name of the classes, from classes.txt and the like.

    Raises:
        UserError: there is none, or it has no names.
    """
    for file in (source / "classes.txt", source / "obj.names", source / "labels" / "classes.txt"):
        if file.is_file():
            return _numbered(lines_of(file), file)
    raise UserError(f"{source}: no data.yaml with names and no classes.txt there: pass --names")


def _numbered(names: list[Any] | dict[Any, Any], file: Path) -> dict[int, str]:
    """Number -> name, by number, of names in their order or with their numbers."""
    if not names:
        raise UserError(f"{file} has no names of classes: pass --names")
    pairs = list(names.items()) if isinstance(names, dict) else list(enumerate(names))
    try:
        found = {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError, OverflowError):
        found = {}
    if len(found) < len(pairs) or not 0 <= min(found) <= max(found) < _MOST:
        what = f"names must be a list, or numbers from 0 with names, not {show(names)}"
        raise UserError(f"{file}: {what}; or pass --names")
    return dict(sorted(found.items()))


def _yaml(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise UserError(f"reading {file} needs PyYAML: pip install pyyaml, or pass --names") from None
    text = read_text(file)
    try:
        content = yaml.safe_load(text)
    except Exception as error:  # PyYAML lets through what a faulty date or number or deep nesting raises
        raise UserError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _read_line(
    line: str, size: tuple[int, int], names: Mapping[int, str], keypoints: tuple[int, int] | None, place: str
) -> Object:
    """Class, centre x, centre y, width, height, keypoints of poses; or class and points of an outline."""
    try:
        number, *values = (float(word) for word in line.split())
        pose = keypoints is not None and len(values) == 4 + keypoints[0] * keypoints[1]
        if not pose and len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError
    except ValueError:
        what = "a class number and 4 numbers, or 3 points or more"
        hint = f" of kpt_shape {list(keypoints)}" if keypoints else "; poses need kpt_shape in data.yaml"
        raise UserError(f"{place}: {line[:60]!r} is not {what}{hint}") from None
    if number not in names:
        raise UserError(
            f"{place}: class {number:g} has no name; names are those of 0 to {max(names, default=0)}"
        )
    name = names[int(number)]
    pixels = [value * size[i % 2] for i, value in enumerate(values)]
    try:
        if len(values) > 4 and not pose:
            return of_polygon(name, np.reshape(pixels, (-1, 2)))
        x, y, w, h = pixels[:4]
        found = of_box(name, x - w / 2, y - h / 2, w, h)
        if not pose or keypoints is None:
            return found
        points = np.reshape(values[4:], keypoints)
        check_near(points)
        seen = points[:, 2:] if keypoints[1] == 3 else 2.0 * points.any(axis=1, keepdims=True)
        points = np.concatenate([points[:, :2] * size, seen], axis=1)
        return found._replace(keypoints=points.ravel().round(3).tolist())
    except ValueError as error:
        raise UserError(f"{place}: {line[:60]!r}: {error}") from None
