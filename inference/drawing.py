"""Drawing what a trained model found: detections, panoptic segments, and where it looked meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from inference.attention_maps import Attention
from inference.picture_text import MIN_FONT_SIZE, Rectangle, fitted, load_font
from inference.predicting import Found
from inference.visualize import (
    READABLE_SIDE,
    class_colour,
    draw_detections,
    enlarged,
    enlargement,
    from_pil,
    line_width,
    resized,
    side_by_side,
    to_pil,
)

MOST_ROWS = 10  # detections whose attention is drawn


def draw(picture: Tensor, found: Found, names: Mapping[int, str]) -> Tensor:
    """What was found, drawn: boxes, instance masks under them, or panoptic segments -> a new picture.

    Args:
        picture: uint8 [3, H, W], of the size for which `found` was asked.
    """
    if found.panoptic is not None:
        return draw_panoptic(picture, *found.panoptic, names)
    return draw_detections(picture, found.boxes, found.labels, found.scores, names, found.masks)


def draw_attention(
    picture: Tensor,
    found: Found,
    heard: Attention,
    place: int,
    names: Mapping[int, str],
    points: Sequence[tuple[float, float]] = (),
) -> Tensor:
    """Where the model looked: a row for each of the surest detections, or for each point.

    Args:
        picture: uint8 [3, H, W].
        heard: what inference.attention_maps.listening heard meanwhile.
        place: of the picture in its batch.
        points: (x, y) in pixels of the picture, whose self-attention in the encoder is drawn in place of
            the detections'.

    Raises:
        ValueError: there is nothing to draw, or a point lies outside.
    """
    small = panel(picture)
    size = small.shape[1:]
    x_scale, y_scale = size[1] / picture.shape[2], size[0] / picture.shape[1]
    if points:
        parts = [(x / picture.shape[2], y / picture.shape[1]) for x, y in points]
        maps = heard.encoder(place, parts)
        marked = [with_point(small, x * x_scale, y * y_scale) for x, y in points]
        captions = [f"the place {x:g}, {y:g} and where the encoder looks from there" for x, y in points]
    else:
        maps = heard.decoder(place, found.queries[:MOST_ROWS])
        boxes = found.boxes * found.boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
        rows = [slice(i, i + 1) for i in range(len(maps))]
        marked = [draw_detections(small, boxes[i], found.labels[i], found.scores[i], names) for i in rows]
        labels, scores = found.labels.tolist(), found.scores.tolist()
        captions = [f"{names.get(labels[i], labels[i])} {scores[i]:.2f}" for i in range(len(maps))]
    large = [heard.over_picture(place, one, size) for one in maps]
    return attention_sheet(small, list(map(AttentionRow, marked, large, captions)))


# --- Attention ------------------------------------------------------------------------------------------

HEADS_IN_ROWS = 2
GAP = 6  # pixels between the maps of heads


class AttentionRow(NamedTuple):
    """What one row of a sheet shows."""

    marked: Tensor  # the picture with what is asked about drawn in, uint8 [3, h, w]
    maps: Tensor  # attention weights by head, float [n, h, w], of any scale
    caption: str


def panel_size(height: int, width: int) -> tuple[int, int]:
    """The size at which a picture is drawn in a sheet: the same area for all, letters readable."""
    scale = READABLE_SIDE / math.sqrt(height * width)
    return math.ceil(scale * height), math.ceil(scale * width)


def panel(image: Tensor) -> Tensor:
    """A picture uint8 [3, H, W] at panel_size(H, W)."""
    return resized(image, panel_size(*image.shape[1:]))


def attention_sheet(image: Tensor, rows: Sequence[AttentionRow]) -> Tensor:
    """Rows of what is asked about, the mean over heads, and each head, brightest where attention is highest.

    Each map is scaled to its own highest value.

    Args:
        image: the picture as `panel` gives it, uint8 [3, h, w].

    Returns:
        uint8 [3, H, W], on white.
    """
    # Two rows of heads, with the gap, are as high as the whole.
    height, width = image.shape[1:]
    half_height = (height - GAP) // HEADS_IN_ROWS
    half = half_height, max(1, round(width * half_height / height))
    pictures = []
    for row in rows:
        small = interpolate(image[None].float(), half, mode="area")[0].round().to(torch.uint8)
        heads = [heat(small, head) for head in interpolate(row.maps[None], half, mode="area")[0]]
        pictures.append([row.marked, heat(image, row.maps.mean(0)), tiled(heads)])
    titles = ["picture", "mean attention", f"attention of each of {len(rows[0].maps)} heads"]
    largest = max(max(picture.shape[1:]) for row in pictures for picture in row)
    return side_by_side(pictures, titles, [row.caption for row in rows], cell=largest)


def heat(image: Tensor, values: Tensor) -> Tensor:
    """A picture, grey and darkened, under the colours of a map: uint8 [3, h, w].

    Args:
        image: uint8 [3, h, w].
        values: [h, w], not negative; the highest becomes the brightest colour.
    """
    import matplotlib

    share = (values / values.max().clamp(min=1e-12)).clamp(0, 1)
    colours = matplotlib.colormaps["inferno"](share.numpy())[..., :3].astype(np.float32)
    coloured = 255 * torch.from_numpy(colours).permute(2, 0, 1)
    grey = image.float().mean(0, keepdim=True).expand(3, -1, -1)
    opacity = 0.3 + 0.6 * share.sqrt()
    return (grey + opacity * (coloured - grey)).round().clamp(0, 255).to(torch.uint8)


def with_point(image: Tensor, x: float, y: float) -> Tensor:
    """A picture with a ring around a point given in its pixels."""
    picture = to_pil(image)
    draw = ImageDraw.Draw(picture)
    width = line_width(image)
    for radius, colour, line in ((6 * width, "black", 3 * width), (6 * width - width, "#ffe000", width)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=line)
    return from_pil(picture)


def tiled(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures of one size in two rows, on white."""
    from torchvision.utils import make_grid

    if len(pictures) == 1:
        return pictures[0]
    sheet = make_grid(
        torch.stack(list(pictures)), math.ceil(len(pictures) / HEADS_IN_ROWS), GAP, pad_value=255
    )
    return sheet[:, GAP:-GAP, GAP:-GAP]


# --- Panoptic segments ----------------------------------------------------------------------------------

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
    numbers, places = torch.unique(ids.cpu(), return_inverse=True)  # ids -> 0, 1, ..., to look up
    classes = {segment["id"]: segment["category_id"] for segment in segments}
    colours = [class_colour(classes[id_]) if id_ in classes else None for id_ in numbers.tolist()]
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
    return from_pil(with_names(to_pil(tinted), regions, numbers.tolist(), segments, names or {}))


def _near_borders(regions: Tensor, radius: int) -> Tensor:
    """Pixels with another region within so many pixels: bool [H, W]."""
    values = regions[None, None].float()
    size = 2 * radius + 1
    highest = max_pool2d(values, size, stride=1, padding=radius)
    lowest = -max_pool2d(-values, size, stride=1, padding=radius)
    return (highest != lowest)[0, 0]


def with_names(
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
        x, y = innermost_pixel(regions, place)
        left = max(0, min(round(x - width / 2), picture.width - width))
        top = max(0, min(round(y - height / 2), picture.height - height))
        plate = Rectangle(left, top, left + width, top + height)
        if any(plate.hides(other) for other in plates):
            continue
        plates.append(plate)
        draw.rectangle((left, top, left + width - 1, top + height - 1), class_colour(segment["category_id"]))
        draw.text((left + margin, top + margin / 2), text, "black", font)
    return picture


def innermost_pixel(regions: Tensor, place: int) -> tuple[float, float]:
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
