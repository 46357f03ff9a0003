"""Pictures of a data set: found by the names that tools write, and one reader for all that open them.

Training, evaluation, prediction, converters and the doctor ask `find_picture`, and see what `read_image`
gives.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from util.errors import UserError
from util.files import LONGEST, what_it_is

PICTURE_ENDINGS = (  # of what counts as a picture in a folder; a file that is named is always tried
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jpe", ".jfif", ".mpo", ".apng"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif", ".heic", ".heif"),
)
_SHOWN = 5  # names of what lies there instead

EXIF_ORIENTATION = 0x0112
TURNING = range(5, 9)  # its values that exchange width and height
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits a pixel, one channel


# ---- names


def find_picture(folder: Path, name: str) -> Path | None:
    """The file that a file_name means, None where there is none.

    The name as it is, below `folder`; then other spellings of it (see `spellings`), below `folder` and, with
    a folder of their own, beside it; then names that differ in upper and lower case alone.
    """
    if os.path.isfile(folder / name):
        return folder / name
    tries = list(spellings(name))
    for part in tries:
        if os.path.isfile(folder / part):
            return folder / part
        if "/" in part and os.path.isfile(folder.parent / part):
            return folder.parent / part
    for part in [name, *tries]:
        place = folder / part
        alike = [one for one in _names_in(place.parent) if one.casefold() == place.name.casefold()]
        if len(alike) == 1:
            return place.parent / alike[0]
    return None


def picture_name(image: Mapping[str, Any]) -> Any:
    """The file_name of an image's entry, or LVIS's URL in its place; None where there is neither."""
    return image.get("file_name") or image.get("coco_url") or image.get("flickr_url")


def image_ids(paths: Sequence[Path]) -> list[int]:
    """An image id for each picture: the number that its name is, as in COCO, if all are; else 1, 2, …"""
    stems = [path.stem for path in paths]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and len(stem) < 19]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def last_part(name: str) -> str:
    """What is left of a name without its folders, in one spelling, by which names of two tools compare."""
    shortest = list(spellings(name))[-1:] or [name]
    return unicodedata.normalize("NFC", unquote(shortest[0]).rpartition("/")[2])


def spellings(name: str) -> Iterator[str]:
    """Other ways to write a file_name, the likeliest first; each with one leading folder after another less.

    Blanks around it, backslashes, a drive letter, `//` and `./`, a URL or a path of Label Studio's server,
    percent escapes, and the two Unicode normal forms.
    """
    plain = name.strip().replace("\\", "/")
    if "?d=" in plain:  # Label Studio's /data/local-files/?d=FOLDER/NAME
        plain = plain.partition("?d=")[2]
    elif "://" in plain:
        plain = re.split("[?#]", plain.partition("://")[2])[0].partition("/")[2]
    plain = re.sub("^[A-Za-z]:", "", plain)
    forms = [plain, unquote(plain)]
    forms += [unicodedata.normalize(form, one) for one in forms for form in ("NFC", "NFD")]
    tried = {name}
    lists = [[part for part in one.split("/") if part not in ("", ".")] for one in forms]
    for less in range(max(map(len, lists), default=0)):
        for parts in lists:
            text = "/".join(parts[less:])
            if text and text not in tried and parts[-1] != "..":
                tried.add(text)
                yield text


def other_ending(folder: Path, name: str) -> str:
    """A picture beside the missing one that is called the same but for its ending; '' where there is none."""
    place = folder / next(spellings(name), name)
    stem = os.path.splitext(place.name)[0].casefold()
    alike = [one for one in _names_in(place.parent) if os.path.splitext(one)[0].casefold() == stem]
    alike = [one for one in alike if one.lower().endswith(PICTURE_ENDINGS)]
    return os.path.relpath(place.parent / alike[0], folder) if len(alike) == 1 else ""


def what_lies_there(folder: Path, name: str) -> str:
    """For messages: what the folder holds in place of a missing picture."""
    if other := other_ending(folder, name):
        return f"there is {other}"
    names = _names_in(folder) if folder.is_dir() else None
    if names is None:
        return f"there is no folder {folder}"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the folder holds {', '.join(names[:_SHOWN]) or 'nothing'}{more}"


def _names_in(folder: Path) -> tuple[str, ...]:
    try:
        return _listing(str(folder), os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=64)
def _listing(folder: str, changed: int) -> tuple[str, ...]:
    return tuple(sorted(os.listdir(folder)))


# ---- pixels


def is_transparent(image: Any) -> bool:
    """Whether a PIL image may be transparent in places."""
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def default_white_level(mode: str) -> float:
    """The value that is white in pictures of one of DEEP_MODES."""
    return 1.0 if mode == "F" else 65535.0


def read_image(
    path: str | os.PathLike,
    note: str = "",
    *,
    stated: tuple[Any, Any] | None = None,
    as_shown: bool = False,
    white_level: float | None = None,
) -> Image.Image:
    """A picture in RGB, 8 bits a channel; of several frames or pages the first.

    An annotated picture is seen in the frame whose width and height its annotation states: turned by its EXIF
    orientation where that alone gives them, else as it is stored. What is transparent lies on white. A single
    channel of more than 8 bits is scaled, the same in all pictures: `white_level` becomes 255. All others
    are what PIL's `convert("RGB")` gives.

    Args:
        path: the file.
        note: what a message adds to the file's name.
        stated: width and height of the annotation; None: as stored.
        as_shown: turned as its EXIF orientation says, whatever is stated.
        white_level: None: 65535 of integers, 1 of floating point numbers.

    Raises:
        UserError: the picture is missing, damaged or of no known format; the file is named.
    """
    try:
        with Image.open(path) as image:
            seen = ImageOps.exif_transpose(image) if as_shown else in_frame(image, stated)
            return as_rgb(seen, white_level)
    except Exception as error:  # Pillow's readers of rarer formats fail in any way on spoiled files
        raise UserError(f"{path}{note}: cannot be read ({why_unreadable(error, path)})") from error


def in_frame(image: Image.Image, stated: tuple[Any, Any] | None) -> Image.Image:
    """A picture, turned by its EXIF orientation where that alone gives the stated width and height."""
    other = stated is not None and image.size != tuple(stated) and image.size[::-1] == tuple(stated)
    turns = other and image.getexif().get(EXIF_ORIENTATION) in TURNING
    return ImageOps.exif_transpose(image) if turns else image


def why_unreadable(error: Exception, path: str | os.PathLike) -> str:
    """What an error of PIL says of a file, in one line; where it is no picture, what it looks like."""
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            found = what_it_is(file.read(LONGEST))
        return found or "not a picture of a known format, or damaged"
    if isinstance(error, FileNotFoundError):
        folder, name = os.path.split(path)
        return f"no such file; {what_lies_there(Path(folder), name)}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.splitlines()[0] if reason else type(error).__name__


def as_rgb(image: Image.Image, white_level: float | None) -> Image.Image:
    """What read_image makes of the pixels of a PIL image."""
    if image.mode in DEEP_MODES:
        scale = 255 / (white_level or default_white_level(image.mode))
        values = np.nan_to_num(np.asarray(image).astype(np.float64) * scale)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if is_transparent(image):
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def image_size(image: Any) -> tuple[int, int]:
    """(height, width) of a PIL image or of a tensor [..., h, w]."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[-2], image.shape[-1]
