"""Pictures and crops of a report: read small, held as data addresses, and what is marked in them as SVG.

Lines and letters of an SVG stay sharp at any size, and the page can hide detections below a score. Its
coordinates are units of a picture whose longer side is VIEW units long.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.images import as_rgb, in_frame
from inference.picture_text import Rectangle, arrange_plates, load_font
from inference.visualize import class_colour
from report.html import escape, tag
from report.mistakes import Mistake
from report.source import Region, thinned

LONGEST = 560  # pixels of an embedded picture
CROP = 168  # pixels of an embedded crop
CONTEXT = 1.6  # side of a crop over that of its box
LEAST_CROP = 24  # pixels of the picture, so that a tiny object shows with its surroundings


class EmbeddedPicture(NamedTuple):
    """A picture as the page holds it: its size in the file, in pixels, and a data address of a small copy."""

    width: int
    height: int
    address: str


Size = tuple[int | None, int | None]


def read_picture(path: Path, stated: Size | None = None, white_level: float | None = None) -> EmbeddedPicture:
    """Read a picture as training does, see datasets.images.read_image, and shrink it.

    Raises:
        OSError: it is missing or damaged.
    """
    with Image.open(path) as opened:
        image = in_frame(opened, stated)
        width, height = image.size
        image.draft("RGB", (LONGEST, LONGEST))  # a JPEG is decoded at a half, a quarter or an eighth
        small = as_rgb(image, white_level)
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR)
    return EmbeddedPicture(width, height, data_address(small, "WEBP"))


def read_crop(
    path: Path, box: Sequence[float], stated: Size | None = None, white_level: float | None = None
) -> tuple[EmbeddedPicture, tuple[float, float, float, float]]:
    """What surrounds a box.

    Args:
        box: x, y, width, height in pixels.
        stated, white_level: see read_picture.

    Returns:
        The crop (its width and height in pixels of the file), and its left, top, right and bottom there.

    Raises:
        OSError: the picture is missing or damaged.
    """
    with Image.open(path) as opened:
        image = in_frame(opened, stated)
        width, height = image.size
        left, top, right, bottom = surroundings(box, width, height)
        scale = min(1.0, CROP / max(right - left, bottom - top))
        image.draft("RGB", (round(width * scale) + 1, round(height * scale) + 1))
        whole = as_rgb(image, white_level)
    across, down = whole.width / width, whole.height / height
    shape = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    region = (left * across, top * down, right * across, bottom * down)
    crop = whole.resize(shape, Image.Resampling.BILINEAR, box=region, reducing_gap=2.0)
    place = left, top, right, bottom
    return EmbeddedPicture(round(right - left), round(bottom - top), data_address(crop, "WEBP")), place


def surroundings(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
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
    """A picture as an address that holds it; `kind` is PNG or WEBP, options are those of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 72, "method": 0} if kind == "WEBP" else {}), **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- What is marked in them ------------------------------------------------------------------------------

VIEW = 280
LETTERS = 12  # units high
MOST_PLATES = 12  # in a picture; the colours identify the rest


def marked(
    picture: EmbeddedPicture, name: str, regions: Sequence[Region], names: Mapping[int, str], threshold: float
) -> str:
    """A picture with its regions over it, as SVG.

    Args:
        name: of the picture in the page, where `definition` has put it.
        regions: those that come first get their labels first, of segments the largest; labels without a
            place are left out.
        threshold: the score from which detections show at first, and whose labels must fit together.
    """
    width, height = view(picture)
    shown = [i for i, region in enumerate(regions) if region.score is None or region.score >= threshold]
    if any(_is_segment(region) for region in regions):
        # The largest first, by their share of the picture's pixels.
        shares = [_area(r.box) if r.mask is None else float(r.mask.mean()) for r in regions]
        shown.sort(key=lambda i: -shares[i])
    hidden = [i for i in range(len(regions)) if i not in shown]
    plates = _plates(regions, shown[:MOST_PLATES], names, width, height)
    more = _plates(regions, hidden[: MOST_PLATES - len(plates)], names, width, height)
    places = list(plates.values())
    plates |= {i: place for i, place in more.items() if not any(p.hides(place) > 0 for p in places)}
    order = sorted(range(len(regions)), key=lambda i: -_area(regions[i].box))  # small ones lie on top
    shapes = [marked_region(regions[i], names, width, height) for i in order]
    labels = []
    for i, place in plates.items():
        left, top = f"{place.left:.1f}", f"{place.top:.1f}"
        size = {"width": f"{place.right - place.left:.1f}", "height": f"{place.bottom - place.top:.1f}"}
        x, y = f"{place.left + 2.5:.1f}", f"{place.bottom - 4:.1f}"
        letters = tag("text", escape(_text(regions[i], names)), x=x, y=y)
        plate = tag("rect", x=left, y=top, **size), letters
        labels.append(tag("g", *plate, class_=f"plate c{regions[i].label}", **_hideable(regions[i])))
    image = tag("use", href=f"#{name}")
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", image, *shapes, *labels, viewBox=box, class_="marked", role="img")


def definition(picture: EmbeddedPicture, name: str) -> str:
    """The picture itself, for `marked` to use any number of times."""
    width, height = (f"{side:.0f}" for side in view(picture))
    image = tag("image", id=name, href=picture.address, width=width, height=height)
    return tag("svg", tag("defs", image), class_="store", aria_hidden="true")


def view(picture: EmbeddedPicture) -> tuple[float, float]:
    """Width and height of a picture in units of the SVG."""
    scale = VIEW / max(picture.width, picture.height)
    return max(1.0, picture.width * scale), max(1.0, picture.height * scale)


def marked_crop(crop: EmbeddedPicture, place: tuple[float, float, float, float], mistake: Mistake) -> str:
    """A crop with the box in question, and in dashes those to compare it with, as SVG."""
    left, top, right, bottom = place
    scale = 100 / max(right - left, bottom - top)
    shape = [f"{side * scale:.1f}" for side in (right - left, bottom - top)]
    image = tag("image", href=crop.address, width=shape[0], height=shape[1])

    def rectangle(box: np.ndarray, kind: str) -> str:
        numbers = (box - np.array([left, top, 0, 0])) * scale
        x, y, width, height = (f"{v:.1f}" for v in numbers)
        return tag("rect", x=x, y=y, width=width, height=height, class_=kind)

    others = [rectangle(box, "other") for box in mistake.others]
    kind = f"mistake c{mistake.label}"
    return tag("svg", image, *others, rectangle(mistake.box, kind), viewBox=f"0 0 {shape[0]} {shape[1]}")


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _hideable(region: Region) -> dict[str, str]:
    """What lets the page hide a detection."""
    return {} if region.score is None else {"data_score": f"{region.score:.4f}"}


def _text(region: Region, names: Mapping[int, str]) -> str:
    name = names.get(region.label, str(region.label))
    return name if region.score is None else f"{name} {region.score:.2f}"


def marked_region(region: Region, names: Mapping[int, str], width: float, height: float) -> str:
    """A region's box or mask; its name shows when the pointer rests on it."""
    x0, y0, x1, y1 = (v * side for v, side in zip(region.box, (width, height) * 2, strict=True))
    place = {"x": f"{x0:.1f}", "y": f"{y0:.1f}", "width": f"{x1 - x0:.1f}", "height": f"{y1 - y0:.1f}"}
    title = tag("title", escape(_text(region, names)))
    mask = "" if region.mask is None else mask_image(region, width, height)
    rectangle = "" if _is_segment(region) else tag("rect", **place)
    return tag("g", title, mask, rectangle, class_=f"region c{region.label}", **_hideable(region))


def _is_segment(region: Region) -> bool:
    """Whether a region is a share of the picture's pixels; a box around it would say little."""
    return region.mask is not None and region.score is None


def mask_image(region: Region, width: float, height: float) -> str:
    """The part of a mask inside its bounds, as a picture of one colour."""
    assert region.mask is not None
    mask = thinned(region.mask)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return ""
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    across, down = width / mask.shape[1], height / mask.shape[0]
    image = Image.fromarray(part.astype(np.uint8))
    image = image.convert("P")
    image.putpalette([0, 0, 0, *class_colour(region.label)])
    return tag(
        "image",
        href=data_address(image, "PNG", bits=1, transparency=0),
        x=f"{columns[0] * across:.2f}",
        y=f"{rows[0] * down:.2f}",
        width=f"{part.shape[1] * across:.2f}",
        height=f"{part.shape[0] * down:.2f}",
        preserveAspectRatio="none",
    )


def _plates(
    regions: Sequence[Region], chosen: Sequence[int], names: Mapping[int, str], width: float, height: float
) -> dict[int, Rectangle]:
    """Where the labels of the chosen regions may stand; those without a place are left out.

    Of segments they stand in the middle, of boxes next to them.
    """
    font = load_font(round(LETTERS))  # as wide as any that browsers take, so that the text fits
    lengths = {i: font.getlength(_text(regions[i], names)) for i in chosen}
    sizes = {i: (round(length) + 5, round(LETTERS + 3)) for i, length in lengths.items()}
    sizes = {i: size for i, size in sizes.items() if size[0] <= width and size[1] <= height}
    whole = round(width), round(height)
    if any(_is_segment(regions[i]) for i in sizes):
        plates: dict[int, Rectangle] = {}
        for i, size in sizes.items():
            left, top = (
                min(max(0, centre - side / 2), limit - side)
                for centre, side, limit in zip(middle(regions[i], width, height), size, whole, strict=True)
            )
            plate = Rectangle(left, top, left + size[0], top + size[1])
            if not any(plate.hides(other) > 0 for other in plates.values()):
                plates[i] = plate
        return plates
    sides = (width, height) * 2
    boxes = [Rectangle(*(v * side for v, side in zip(regions[i].box, sides, strict=True))) for i in sizes]
    places = arrange_plates(boxes, list(sizes.values()), whole)
    return {i: place for i, place in zip(sizes, places, strict=True) if place is not None}


def middle(region: Region, width: float, height: float) -> tuple[float, float]:
    """A point inside a segment, in units: the middle of its median row."""
    x, y = (region.box[0] + region.box[2]) / 2, (region.box[1] + region.box[3]) / 2
    if region.mask is not None and region.mask.any():
        rows, columns = np.nonzero(region.mask)
        row = rows[len(rows) // 2]
        x, y = np.median(columns[rows == row]) / region.mask.shape[1], row / region.mask.shape[0]
    return float(x) * width, float(y) * height
