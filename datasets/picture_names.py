"""Finding the picture that a file_name means: names are written by many tools, on many systems.

Everything that opens a data set's picture asks `find_picture`: training, evaluation, converters, the doctor.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_SHOWN = 5  # names of what lies there instead


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
