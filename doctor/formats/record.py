"""What the readers of all formats give: pictures with objects, boxes and polygons in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.images import PICTURE_ENDINGS
from doctor.pictures import Picture as Header
from doctor.pictures import inspect
from doctor.summary import Tally
from util.errors import UserError
from util.files import what_it_is

_FARTHEST = 1e9  # pixels, larger than any picture; areas of numbers without a limit overflow


class Object(NamedTuple):
    """An object of a picture, in pixels."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # x, y of the top left corner, width, height
    polygon: list[float]  # x1, y1, x2, y2, …; empty where the format has boxes only
    keypoints: Sequence[float] = ()  # x1, y1, visibility, …; empty where the format has none
    crowd: bool = False

    @property
    def label(self) -> str:
        """The class as tallies count it."""
        return f"{self.name} (crowd)" if self.crowd else self.name


class Picture(NamedTuple):
    """A picture with its objects, in the order of the format."""

    path: Path
    size: tuple[int, int]  # width and height in pixels of the frame that the objects lie in
    objects: list[Object]
    split: str  # 'train', 'val' or 'test'; '' where the source does not say


Lost = list[tuple[str, Tally]]  # why, and what, was left out


@dataclass
class Reading:
    """What was read of a source in one of the formats of single pictures.

    The names of classes are in the order of their ids; those of objects that are not among them follow.
    """

    pictures: list[Picture]
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # one line each on what the reader decided
    lost: Lost = field(default_factory=list)


@dataclass
class Records:
    """A source of any format as COCO's records, before they are dealt out to splits.

    The file_name of an image is the path of its picture. An annotation without id gets one in its split.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)  # of the images, '' where the source does not say
    annotations: list[dict[str, Any]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # of the annotations, as tallies count them
    categories: list[dict[str, Any]] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)  # what else a COCO file holds
    notes: list[str] = field(default_factory=list)
    lost: Lost = field(default_factory=list)


def check_near(numbers: Any) -> None:
    """ValueError where a number can be no coordinate: NaN, infinite or beyond _FARTHEST."""
    if not (np.abs(numbers) <= _FARTHEST).all():
        raise ValueError(f"coordinates must be numbers of at most {_FARTHEST:,.0f} pixels")


def of_box(name: str, x: float, y: float, width: float, height: float) -> Object:
    """The object whose box has its top left corner at x, y, in pixels; ValueError as in check_near."""
    check_near((x, y, width, height))
    return Object(name, (x, y, width, height), [])


def of_polygon(name: str, points: Any) -> Object:
    """The object whose outline is `points`, [P, 2] in pixels; ValueError for no points, as in check_near."""
    outline = np.asarray(points, dtype=np.float64)
    if outline.ndim != 2 or not len(outline):
        raise ValueError("an outline is a list of points")
    check_near(outline)
    return Object(name, _box_around(outline), outline.ravel().tolist())


def _box_around(points: np.ndarray) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right - left, bottom - top


def header_of(path: Path) -> Header:
    """Size and orientation of a picture file; UserError where it cannot be read."""
    header = inspect(path, whole=False)
    if header.size is None:
        raise UserError(f"cannot read the picture {path}: {header.error}")
    return header


def as_seen(path: Path, header: Header, objects: list[Object], split: str) -> Picture:
    """A picture whose objects were drawn on it as viewers show it.

    Training sees it in the frame that its annotations state. Where the sizes of both frames are equal it is
    seen as stored, and the objects are turned back.
    """
    if header.orientation == 1 or header.shown != header.size:
        return Picture(path, header.shown, objects, split)
    turned = []
    for one in objects:
        x, y, w, h = one.box
        box = _box_around(stored_points([[x, y], [x + w, y + h]], header))
        polygon = stored_points(one.polygon, header).ravel().tolist()
        points = np.reshape(one.keypoints, (-1, 3)).astype(float)
        seen = points[:, 2:] > 0
        points[:, :2] = np.where(seen, stored_points(points[:, :2], header), points[:, :2])
        turned.append(Object(one.name, box, polygon, points.ravel().tolist(), one.crowd))
    return Picture(path, header.shown, turned, split)


def stored_points(points: Any, header: Header) -> np.ndarray:
    """Points [P, 2] of a picture as shown -> where they lie in the picture as stored."""
    assert header.size is not None
    x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    width, height = header.size
    turned = {
        1: (x, y), 2: (width - x, y), 3: (width - x, height - y), 4: (x, height - y),
        5: (y, x), 6: (y, height - x), 7: (width - y, height - x), 8: (width - y, x),
    }  # fmt: skip
    return np.stack(turned[header.orientation], axis=1)


def pictures_below(folder: Path) -> list[Path]:
    """All picture files in a folder and those in it, sorted; links to others of them are left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS and path.is_file())
    paths = {path: path.is_symlink() for path in sorted(files)}
    own = {path.resolve() for path, linked in paths.items() if not linked}
    return [path for path, linked in paths.items() if not linked or path.resolve() not in own]


def pictures_without(what: str, folder: Path, pictures: Sequence[Picture]) -> Lost:
    """The pictures below a folder that are not among those that were read, for they lack `what`."""
    used = {picture.path.resolve() for picture in pictures}
    others = sum(path.resolve() not in used for path in pictures_below(folder))
    return [(f"pictures without {what}", Tally(others))] if others else []


def read_text(path: Path) -> str:
    """The text of a file, without the mark that some editors begin it with; UserError where it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: {what_it_is(path.read_bytes()) or error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without blanks around them."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
