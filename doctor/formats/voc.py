"""Pascal VOC: one XML file a picture, as LabelImg and many others write it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from datasets.images import PICTURE_ENDINGS, find_picture
from doctor.columns import show
from doctor.formats.record import Picture, Reading, check_near, header_of, of_box, pictures_without, read_text
from doctor.splits import listed_splits, split_of_folders
from util.errors import UserError


def read(source: Path, one_based: bool = False) -> Reading:
    """The pictures of a folder.

    Splits are those of ImageSets/Main or train.txt and the like, or of folders such as train/ and valid/.

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
    listed = listed_splits(source, (file.stem for file in files))
    pictures = []
    for file in files:
        split = listed.get(file.stem, "") or split_of_folders(file.relative_to(source).parts[:-1])
        pictures.append(_read_file(file, source, split, one_based))
    return Reading(pictures, lost=pictures_without("an XML file", source, pictures))


def _read_file(file: Path, source: Path, split: str, one_based: bool) -> Picture:
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is no valid XML: {error}") from error
    path = _picture(file, source, root.findtext("filename", "").strip())
    texts = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    try:
        sides = [float(text or 0) for text in texts]  # 0: the file does not say
        check_near(sides)
        if min(sides) < 0:
            raise ValueError
    except ValueError:
        what = f"width and height must be numbers of pixels, or left out, not {show(texts)}"
        raise UserError(f"{file}: {what}") from None
    size = int(sides[0]), int(sides[1])
    objects, first = [], int(one_based)
    for element in root.iter("object"):
        name = element.findtext("name", "").strip()
        corners = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(corner or "") for corner in corners)
            box = left - first, top - first, right - left + first, bottom - top + first
            objects.append(of_box(name, *box))
        except ValueError:
            what = f"the bndbox of an object {show(name)} must be four numbers of pixels"
            raise UserError(f"{file}: {what}: {show(corners)}") from None
        if not name:
            raise UserError(f"{file}: an object at {left:g}, {top:g} has no name")
    if not all(size):
        size = header_of(path).fitting((x + w, y + h) for _, (x, y, w, h), *_ in objects)[0]
    return Picture(path, size, objects, split)


def _picture(file: Path, source: Path, name: str) -> Path:
    """The picture of an XML file, by the name in it or by its own."""
    names = [name] if name else []
    names += [file.stem + ending for ending in PICTURE_ENDINGS]
    places = ("JPEGImages", "images", "data")  # beside Annotations/ or labels/, of a split or of all
    folders = [source / place for place in places] + [file.parent]
    folders += [file.parent.parent / place for place in places]
    found = (find_picture(folder, one) for one in names for folder in folders)
    if path := next(filter(None, found), None):
        return path
    wanted = " ".join((name or file.stem).split())  # a name may hold line ends
    raise UserError(f"{file}: its picture {wanted} is neither in JPEGImages/ nor beside it")
