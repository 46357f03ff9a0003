"""YOLO: one text file a picture, lines of class number and normalised coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doctor.columns import show
from doctor.formats.record import (
    Object,
    Picture,
    of_box,
    of_polygon,
    pictures_below,
    read_text,
    stored_size,
)
from util.errors import UserError

_SPLITS = {"train": "train", "val": "val", "valid": "val"}
_MOST = 10**6  # classes


def read(source: Path, known: Mapping[int, str]) -> list[Picture]:
    """The pictures of a folder, those without a text file included: they hold no objects.

    Args:
        source: folder of pictures and text files, in images/ and labels/ (those may be within train/ and
            val/ or hold these), or beside each other.
        known: number -> name of the classes; see `class_names`.

    Raises:
        UserError: no pictures there, a line that is no object, a class number without a name.
    """
    paths = [path for path in pictures_below(source) if not _is_test(path.relative_to(source))]
    if not paths:
        raise UserError(f"{source}: no pictures there")
    pictures = []
    for path in paths:
        size, label = stored_size(path), _label(path)
        lines = read_text(label).splitlines() if label.exists() else []
        objects = [
            _read_line(line, size, known, f"{label}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        split = next((_SPLITS[part] for part in path.relative_to(source).parts if part in _SPLITS), "")
        pictures.append(Picture(path, size, objects, split))
    return pictures


def _is_test(path: Path) -> bool:
    return "test" in path.parts[:-1]


def _label(picture: Path) -> Path:
    """The text file of a picture: in labels/ where the picture is in images/, else beside it."""
    parts = list(picture.parts)
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def class_names(source: Path) -> dict[int, str]:
    """Number -> name of the classes, from data.yaml or classes.txt.

    Raises:
        UserError: there is neither, or it has no names, or data.yaml cannot be read or numbers its names with
            something else.
    """
    for file in [*source.glob("*.yaml"), *source.glob("*.yml")]:
        names = _yaml(file).get("names")
        if isinstance(names, (list, dict)):
            return _numbered(names, file)
    for file in (source / "classes.txt", source / "obj.names", source / "labels" / "classes.txt"):
        if file.is_file():
            return _numbered([line.strip() for line in read_text(file).splitlines() if line.strip()], file)
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


def _read_line(line: str, size: tuple[int, int], names: Mapping[int, str], place: str) -> Object:
    """Class, centre x, centre y, width, height; or class and the points of an outline."""
    try:
        number, *values = (float(word) for word in line.split())
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError
    except ValueError:
        what = "a class number and 4 numbers, or 3 points or more"
        raise UserError(f"{place}: {line[:60]!r} is not {what}") from None
    if number not in names:
        raise UserError(
            f"{place}: class {number:g} has no name; names are those of 0 to {max(names, default=0)}"
        )
    name, pixels = names[int(number)], [value * size[i % 2] for i, value in enumerate(values)]
    try:
        if len(pixels) > 4:
            return of_polygon(name, np.reshape(pixels, (-1, 2)))
        x, y, w, h = pixels
        return of_box(name, x - w / 2, y - h / 2, w, h)
    except ValueError as error:
        raise UserError(f"{place}: {line[:60]!r}: {error}") from None
