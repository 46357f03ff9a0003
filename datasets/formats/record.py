"""What the readers of all formats give: pictures with objects, boxes and polygons in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from util.errors import UserError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Object(NamedTuple):
    """An object of a picture.

    Attributes:
        name: of its class.
        box: x, y of the top left corner, width, height, in pixels.
        polygon: x1, y1, x2, y2, …, in pixels; empty where the format has boxes only.
    """

    name: str
    box: tuple[float, float, float, float]
    polygon: list[float]


class Picture(NamedTuple):
    """A picture with its objects.

    Attributes:
        path: of the file.
        size: width and height in pixels, as the format says, or as stored where it does not.
        objects: in the order of the format.
        split: 'train' or 'val'; '' where the source does not say.
    """

    path: Path
    size: tuple[int, int]
    objects: list[Object]
    split: str


def of_polygon(name: str, points: Any) -> Object:
    """The object whose outline is `points`, [P, 2] in pixels."""
    outline = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return Object(name, (left, top, right - left, bottom - top), outline.ravel().tolist())


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture {path}: {error}") from error


def pictures_below(folder: Path) -> list[Path]:
    """All picture files in a folder and those in it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it is missing or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
