"""Pictures and crops of a report: read small, and kept as data addresses for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from datasets.images import in_frame

LONGEST = 560  # pixels of an embedded picture
CROP = 168  # pixels of an embedded crop
CONTEXT = 1.6  # side of a crop over that of its box
LEAST_CROP = 24  # pixels of the picture, so that a tiny object shows with its surroundings


class Picture(NamedTuple):
    """A picture as the page holds it: its size in the file, in pixels, and a data address of a small copy."""

    width: int
    height: int
    address: str


Size = tuple[int | None, int | None]


def read_picture(path: Path, longest: int = LONGEST, stated: Size | None = None) -> Picture:
    """Read a picture in the frame whose width and height are stated, as training does, and shrink it.

    Raises:
        OSError: it is missing or damaged.
    """
    with Image.open(path) as opened:
        image = in_frame(opened, stated)
        width, height = image.size
        image.draft("RGB", (longest, longest))  # a JPEG is decoded at a half, a quarter or an eighth
        small = image.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return Picture(width, height, _webp(small))


def read_crop(
    path: Path, box: Sequence[float], stated: Size | None = None
) -> tuple[Picture, tuple[float, float, float, float]]:
    """What surrounds a box.

    Args:
        box: x, y, width, height in pixels.
        stated: see read_picture.

    Returns:
        The crop (its width and height in pixels of the file), and its left, top, right and bottom there.

    Raises:
        OSError: the picture is missing or damaged.
    """
    with Image.open(path) as opened:
        image = in_frame(opened, stated)
        width, height = image.size
        left, top, right, bottom = _surroundings(box, width, height)
        scale = min(1.0, CROP / max(right - left, bottom - top))
        image.draft("RGB", (round(width * scale) + 1, round(height * scale) + 1))
        whole = image.convert("RGB")
    across, down = whole.width / width, whole.height / height
    shape = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    region = (left * across, top * down, right * across, bottom * down)
    crop = whole.resize(shape, Image.Resampling.BILINEAR, box=region, reducing_gap=2.0)
    return Picture(round(right - left), round(bottom - top), _webp(crop)), (left, top, right, bottom)


def _surroundings(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """A square around a box, moved into the picture, and as much of it as lies there."""
    x, y, w, h = (float(v) for v in box)
    side = max(CONTEXT * max(w, h), LEAST_CROP)
    edges = []
    for centre, limit in ((x + w / 2, width), (y + h / 2, height)):
        low = min(max(centre - side / 2, 0), max(limit - side, 0))
        edges.append((low, min(low + side, limit)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def data_address(image: Image.Image, kind: str, **options: int | bool) -> str:
    """A picture as an address that holds it; `kind` is PNG or WEBP."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _webp(image: Image.Image) -> str:
    return data_address(image, "WEBP", quality=72, method=0)
