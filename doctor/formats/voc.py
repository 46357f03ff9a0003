"""Pascal VOC: one XML file a picture, as LabelImg and many others write it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from doctor.columns import show
from doctor.formats.record import (
    PICTURE_ENDINGS,
    Object,
    Picture,
    check_near,
    of_box,
    read_text,
    stored_size,
)
from util.errors import UserError

# ImageSets/Main/NAME.txt -> split. VOC publishes no annotations of some of its test sets; where a test set
# has them and there is no val, it is what is evaluated on.
_SETS = (("train", "train"), ("val", "val"), ("trainval", "train"), ("test", "val"))


def read(source: Path, one_based: bool = False) -> list[Picture]:
    """The pictures of a folder.

    Args:
        source: holds Annotations/ and JPEGImages/ (and maybe ImageSets/Main/), or XML files beside pictures.
        one_based: coordinates count from 1 and xmax, ymax are the last pixels of the box, as in the
            published VOC sets; LabelImg and others give the corners of the box instead.

    Raises:
        UserError: no XML files, one that cannot be read, or one without its picture.
    """
    below = source / "Annotations" if (source / "Annotations").is_dir() else source
    files = sorted(below.rglob("*.xml"))
    if not files:
        raise UserError(f"{source}: no XML files there, nor in Annotations/")
    splits = _splits(source)
    return [_read_file(file, source, splits.get(file.stem, ""), one_based) for file in files]


def _splits(source: Path) -> dict[str, str]:
    """Stem of a file -> its split, from ImageSets/Main; empty unless both splits are there."""
    found: dict[str, str] = {}
    for name, split in _SETS:
        path = source / "ImageSets" / "Main" / f"{name}.txt"
        for line in read_text(path).splitlines() if path.is_file() else ():
            if line.strip():
                found.setdefault(line.split()[0], split)
    return found if {"train", "val"} <= set(found.values()) else {}


def _read_file(file: Path, source: Path, split: str, one_based: bool) -> Picture:
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is no valid XML: {error}") from error
    path = _picture(file, source, root.findtext("filename", "").strip())
    size = _size(root, file)
    objects = [_read_object(one, file, one_based) for one in root.iter("object")]
    return Picture(path, size if all(size) else stored_size(path), objects, split)


def _size(root: ElementTree.Element, file: Path) -> tuple[int, int]:
    """Width and height as the file says; 0 where it does not."""
    texts = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    try:
        sides = [float(text or 0) for text in texts]
        check_near(sides)
        if min(sides) < 0:
            raise ValueError
    except ValueError:
        what = f"width and height must be numbers of pixels, or left out, not {show(texts)}"
        raise UserError(f"{file}: {what}") from None
    return int(sides[0]), int(sides[1])


def _picture(file: Path, source: Path, name: str) -> Path:
    """The picture of an XML file, by the name in it or by its own."""
    names = [name] if name else []
    names += [file.stem + ending for small in PICTURE_ENDINGS for ending in (small, small.upper())]
    folders = (source / "JPEGImages", source / "images", file.parent)
    for path in (folder / one for one in names for folder in folders):
        if path.is_file():
            return path
    wanted = " ".join((name or file.stem).split())  # a name may hold line ends
    raise UserError(f"{file}: its picture {wanted} is neither in JPEGImages/ nor beside it")


def _read_object(element: ElementTree.Element, file: Path, one_based: bool) -> Object:
    name = element.findtext("name", "").strip()
    corners = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    first = 1 if one_based else 0
    try:
        left, top, right, bottom = (float(corner or "") for corner in corners)
        found = of_box(name, left - first, top - first, right - left + first, bottom - top + first)
    except ValueError:
        what = f"the bndbox of an object {show(name)} must be four numbers of pixels"
        raise UserError(f"{file}: {what}: {show(corners)}") from None
    if not name:
        raise UserError(f"{file}: an object at {left:g}, {top:g} has no name")
    return found
