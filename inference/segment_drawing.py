"""A panoptic result drawn over its picture: every segment in its class's colour, with its name on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import max_pool2d

from inference.picture_text import MIN_FONT_SIZE, Colour, Rectangle, fitted, load_font
from inference.visualize import class_colour, enlarged, enlargement, from_pil, line_width, to_pil

SEARCH_SIDE = 240  # pixels of the longer side of the map in which the place of a name is looked for


def draw_panoptic(
    image: Tensor,
    ids: Tensor,
    segments: Sequence[Mapping[str, Any]],
    names: Mapping[int, str] | None = None,
    alpha: float = 0.5,
) -> Tensor:
    """Tint each segment, draw the borders between segments, and write names where segments are widest.

    Names of large segments come first; one that would cover another is left out, and so is that of a segment
    smaller than its name unless it is a thing.

    Args:
        image: uint8 [3, H, W]. A small one is enlarged first; see inference.visualize.enlargement.
        ids: int64 [H, W], each pixel's segment.
        segments: for each id a dict of `id`, `category_id` and `isthing`. Pixels of other ids keep their
            colour.
        names: of the category ids; one that it lacks is written as a number.
        alpha: opacity of the tint in [0, 1].

    Returns:
        A new picture, uint8 [3, k·H, k·W] with k = enlargement(H, W).
    """
    factor = enlargement(*image.shape[1:])
    canvas = enlarged(image.cpu(), factor)
    if not segments:
        return canvas
    numbers, places = torch.unique(
        ids.cpu(), return_inverse=True
    )  # ids -> 0, 1, ..., small enough to look up
    colours = _colours(numbers.tolist(), segments)
    regions = places.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    tint = torch.tensor([colour or (0, 0, 0) for colour in colours], dtype=torch.float32)[regions].permute(
        2, 0, 1
    )
    opacity = torch.tensor([0.0 if colour is None else alpha for colour in colours])[regions]
    tinted = canvas + opacity * (tint - canvas)
    width = line_width(canvas)
    border = _near_borders(regions, 1 + width // 2)
    inner = _near_borders(regions, max(1, width // 2))
    tinted = torch.where(border, 0.35 * tinted, tinted)  # a dark rim shows a bright line on any tint
    tinted = torch.where(inner, 255.0, tinted).round().to(torch.uint8)
    return from_pil(_with_names(to_pil(tinted), regions, numbers.tolist(), segments, names or {}))


def _colours(numbers: list[int], segments: Sequence[Mapping[str, Any]]) -> list[Colour | None]:
    classes = {segment["id"]: segment["category_id"] for segment in segments}
    return [class_colour(classes[number]) if number in classes else None for number in numbers]


def _near_borders(regions: Tensor, radius: int) -> Tensor:
    """Pixels with another region within so many pixels: bool [H, W]."""
    values = regions[None, None].float()
    size = 2 * radius + 1
    highest = max_pool2d(values, size, stride=1, padding=radius)
    lowest = -max_pool2d(-values, size, stride=1, padding=radius)
    return (highest != lowest)[0, 0]


def _with_names(
    picture: Image.Image,
    regions: Tensor,
    numbers: list[int],
    segments: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
) -> Image.Image:
    """Write each segment's name in its middle."""
    draw = ImageDraw.Draw(picture)
    font = load_font(max(MIN_FONT_SIZE, round(0.028 * math.sqrt(picture.width * picture.height))))
    margin = max(2, round(font.size / 5))
    height = sum(font.getmetrics()) + margin
    places = {number: place for place, number in enumerate(numbers)}
    areas = torch.bincount(regions.flatten(), minlength=len(numbers)).tolist()
    known = [segment for segment in segments if segment["id"] in places]
    plates: list[Rectangle] = []
    for segment in sorted(known, key=lambda segment: -areas[places[segment["id"]]]):
        place = places[segment["id"]]
        text = names.get(segment["category_id"], str(segment["category_id"]))
        text = fitted(text, font, picture.width - 2 * margin)
        width = math.ceil(font.getlength(text)) + 2 * margin
        if areas[place] < width * height and not segment["isthing"]:
            continue
        x, y = _middle(regions, place)
        left = max(0, min(round(x - width / 2), picture.width - width))
        top = max(0, min(round(y - height / 2), picture.height - height))
        plate = Rectangle(left, top, left + width, top + height)
        if any(plate.hides(other) for other in plates):
            continue
        plates.append(plate)
        draw.rectangle((left, top, left + width - 1, top + height - 1), class_colour(segment["category_id"]))
        draw.text((left + margin, top + margin / 2), text, "black", font)
    return picture


def _middle(regions: Tensor, place: int) -> tuple[float, float]:
    """The pixel (x, y) of a region that is farthest from its border and from the picture's."""
    from scipy.ndimage import distance_transform_edt

    step = max(1, math.ceil(max(regions.shape) / SEARCH_SIDE))
    inside = (regions[::step, ::step] == place).numpy()
    if not inside.any():  # thinner than the steps of the search
        row, column = (regions == place).nonzero()[0].tolist()
        return column, row
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column * step), float(row * step)
