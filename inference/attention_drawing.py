"""Attention drawn over a picture: for each detection or place the mean over heads, and every head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from inference.visualize import READABLE_SIDE, from_pil, line_width, side_by_side, to_pil

HEADS_IN_ROWS = 2
GAP = 6  # pixels between the maps of heads


class AttentionRow(NamedTuple):
    """What one row of a sheet shows."""

    marked: Tensor
    """The picture with what is asked about drawn in, uint8 [3, h, w]."""
    maps: Tensor
    """Attention weights by head, float [n, h, w], of any scale."""
    caption: str


def panel_size(height: int, width: int) -> tuple[int, int]:
    """The size at which a picture is drawn in a sheet: the same area for all, letters readable."""
    scale = READABLE_SIDE / math.sqrt(height * width)
    return math.ceil(scale * height), math.ceil(scale * width)


def panel(image: Tensor) -> Tensor:
    """A picture uint8 [3, H, W] at panel_size(H, W)."""
    size = panel_size(*image.shape[1:])
    resized = interpolate(image[None].float().cpu(), size, mode="bicubic", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def attention_sheet(image: Tensor, rows: Sequence[AttentionRow]) -> Tensor:
    """Rows of what is asked about, the mean over heads, and each head, brightest where attention is highest.

    Each map is scaled to its own highest value.

    Args:
        image: the picture as `panel` gives it, uint8 [3, h, w].
        rows: at least one.

    Returns:
        uint8 [3, H, W], on white.
    """
    pictures = []
    for row in rows:
        mean = heat(image, row.maps.mean(0))
        small = _half(image)
        pictures.append([row.marked, mean, tiled([heat(small, _half_map(head)) for head in row.maps])])
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
    columns = math.ceil(len(pictures) / HEADS_IN_ROWS)
    height, width = pictures[0].shape[1:]
    rows = math.ceil(len(pictures) / columns)
    sheet = torch.full(
        (3, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8
    )
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def _half(image: Tensor) -> Tensor:
    return interpolate(image[None].float(), _half_size(image), mode="area")[0].round().to(torch.uint8)


def _half_map(values: Tensor) -> Tensor:
    return interpolate(values[None, None], _half_size(values), mode="area")[0, 0]


def _half_size(image: Tensor) -> tuple[int, int]:
    """So that two rows of them, with the gap, are as high as the whole."""
    height, width = image.shape[-2:]
    half = (height - GAP) // HEADS_IN_ROWS
    return half, max(1, round(width * half / height))
