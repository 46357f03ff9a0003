"""Writing on pictures: a font, text that fits, and plates with the names of boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

MIN_FONT_SIZE = 12
MAX_HIDDEN = 0.15  # share of a plate that another one may cover
ELLIPSIS = "…"


class Rectangle(NamedTuple):
    """Pixels left ≤ x < right, top ≤ y < bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def hides(self, other: Rectangle) -> float:
        """Share of another rectangle that this one covers, in [0, 1]; 0 of one without area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        area = (other.right - other.left) * (other.bottom - other.top)
        return max(width, 0) * max(height, 0) / area if area > 0 else 0.0


@lru_cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: unlike Pillow's own font it has accents, Greek and Cyrillic."""
    import matplotlib

    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(font), size)  # Pillow before 10.2 takes no Path


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + ELLIPSIS) > width:
        text = text[:-1]
    return text + ELLIPSIS


def draw_plates(
    picture: Image.Image, boxes: Sequence[Rectangle], texts: Sequence[str], colours: Sequence[Colour]
) -> Image.Image:
    """Write each box's text on a plate next to it -> a new picture; see `arrange_plates`."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    font = load_font(max(MIN_FONT_SIZE, round(0.028 * math.sqrt(picture.width * picture.height))))
    margin = max(2, round(font.size / 5))
    texts = [fitted(text, font, picture.width - 2 * margin) for text in texts]
    height = sum(font.getmetrics()) + margin
    sizes = [(math.ceil(font.getlength(text)) + 2 * margin, height) for text in texts]
    plates = arrange_plates(boxes, sizes, picture.size)
    for plate, text, colour in zip(plates, texts, colours, strict=True):
        if plate is not None:
            draw.rectangle((plate.left, plate.top, plate.right - 1, plate.bottom - 1), fill=colour)
            draw.text((plate.left + margin, plate.top + margin / 2), text, "black", font)
    return picture


def arrange_plates(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[Rectangle | None]:
    """Find a place for the plate of each box, inside the picture and hiding no other plate.

    The first boxes choose first. A plate that finds no place is left out: a heap of plates says nothing.

    Args:
        sizes: width and height of each plate.
        picture: width and height.
    """
    arranged: list[Rectangle | None] = []
    plates: list[Rectangle] = []
    for box, size in zip(boxes, sizes, strict=True):
        # In a small box that a plate hides nothing would be left to see; other plates count ten times.
        costs = {
            place: 10 * sum(place.hides(plate) for plate in plates) + sum(place.hides(box) for box in boxes)
            for place in plate_places(box, size, picture)
        }
        plate = min(costs, key=lambda place: costs[place])
        if any(plate.hides(other) > MAX_HIDDEN or other.hides(plate) > MAX_HIDDEN for other in plates):
            arranged.append(None)
        else:
            arranged.append(plate)
            plates.append(plate)
    return arranged


def plate_places(box: Rectangle, size: tuple[int, int], picture: tuple[int, int]) -> list[Rectangle]:
    """Where a plate may lie, the best first: above the box, below, beside, inside; always in the picture."""
    width, height = size
    lefts, tops = (box.left, box.right - width), (box.top, box.bottom - height)
    corners = [(left, top) for top in (box.top - height, box.bottom) for left in lefts]
    corners += [(left, top) for left in (box.right, box.left - width) for top in tops]
    corners += [(left, top) for top in tops for left in lefts]
    places = []
    for left, top in corners:
        left = max(0, min(left, picture[0] - width))
        top = max(0, min(top, picture[1] - height))
        places.append(Rectangle(left, top, left + width, top + height))
    return places
