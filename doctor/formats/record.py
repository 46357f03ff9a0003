"""What the readers of all formats give: pictures with objects, boxes and polygons in pixels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from util.errors import UserError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_FARTHEST = 1e9  # pixels, larger than any picture; areas of numbers without a limit overflow


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


def check_near(numbers: Any) -> None:
    """Nothing happens where all numbers could be coordinates.

    Raises:
        ValueError: one is NaN, infinite or beyond _FARTHEST.
    """
    if not (np.abs(numbers) <= _FARTHEST).all():
        raise ValueError(f"coordinates must be numbers of at most {_FARTHEST:,.0f} pixels")


def of_box(name: str, x: float, y: float, width: float, height: float) -> Object:
    """The object whose box has its top left corner at x, y, in pixels.

    Raises:
        ValueError: a number that is no coordinate.
    """
    check_near((x, y, width, height))
    return Object(name, (x, y, width, height), [])


def of_polygon(name: str, points: Any) -> Object:
    """The object whose outline is `points`, [P, 2] in pixels.

    Raises:
        ValueError: no points, or a number that is no coordinate.
    """
    outline = np.asarray(points, dtype=np.float64)
    if outline.ndim != 2 or not len(outline):
        raise ValueError("an outline is a list of points")
    check_near(outline)
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return Object(name, (left, top, right - left, bottom - top), outline.ravel().tolist())


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is told by the error alone
            with Image.open(path) as image:
                return image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture {path}: {error}") from error


def pictures_below(folder: Path) -> list[Path]:
    """All picture files in a folder and those in it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS)


def read_text(path: Path) -> str:
    """The text of a file, without the mark that some editors begin it with.

    Raises:
        UserError: it is missing or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
