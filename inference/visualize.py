"""Pictures with detections or ground truth drawn in, and contact sheets of them.

Images are uint8 tensors [3, H, W], RGB; boxes are x0 y0 x1 y1 in pixels of the image. Whatever is drawn
lies on a copy, on the CPU.
"""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from inference.picture_text import Colour, Rectangle, draw_plates, fitted, load_font
from util.errors import UserError

READABLE_SIDE = 420  # smaller pictures (geometric mean of the sides) are enlarged to about this
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue (Rec. 709, gamma 2.2)
MAX_ENLARGED_SIDE = 2400
SHADES = ((0.77, 0.98), (0.39, 1.0), (0.91, 0.74), (0.45, 0.83))  # of classes: saturation, brightness


def class_colour(label: int) -> Colour:
    """The colour of a class, the same in every picture: bright enough for black letters on it.

    Ids that follow each other differ in hue, and in saturation and brightness too.
    """
    hue = (0.24 + 0.593 * label) % 1.0
    colour = colorsys.hsv_to_rgb(hue, *SHADES[label % len(SHADES)])
    while sum(part * channel**2.2 for part, channel in zip(LUMINANCE, colour, strict=True)) < 0.2:
        colour = (0.9 * colour[0] + 0.1, 0.9 * colour[1] + 0.1, 0.9 * colour[2] + 0.1)
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue


def enlargement(height: int, width: int) -> int:
    """By which integer factor a picture is enlarged so that lines and letters on it are readable."""
    wanted = math.ceil(READABLE_SIDE / math.sqrt(height * width))
    return max(1, min(wanted, MAX_ENLARGED_SIDE // max(height, width)))


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor | Sequence[int],
    scores: Tensor | Sequence[float] | None = None,
    names: Mapping[int, str] | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """Draw labelled boxes: one colour a class; lines and letters grow with the picture.

    A label that would cover another one is left out; those of high scores (without scores: of large boxes)
    come first.

    Args:
        image: uint8 [3, H, W]. A small one is enlarged first; see `enlargement`.
        boxes: [N, 4], x0 y0 x1 y1 in pixels of image; may reach beyond it.
        labels: [N] class ids.
        scores: [N] in [0, 1], written after the class; None for ground truth.
        names: of the class ids; an id that it lacks is written as a number.
        masks: bool [N, H, W], drawn under the boxes.

    Returns:
        A new picture, uint8 [3, k·H, k·W] with k = enlargement(H, W).
    """
    from torchvision.utils import draw_bounding_boxes

    _check_image(image)
    classes = torch.as_tensor(labels).tolist()
    confidences = torch.as_tensor(scores).tolist() if scores is not None else None
    if len(boxes) != len(classes) or (confidences is not None and len(confidences) != len(classes)):
        raise ValueError("boxes, labels and scores must be equally many")
    factor = enlargement(*image.shape[1:])
    canvas = enlarged(image.cpu(), factor)
    if not classes:
        return canvas
    if masks is not None:
        large_masks = masks.cpu().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        canvas = draw_masks(canvas, large_masks, classes)
    corners = pixel_corners(boxes, factor, *canvas.shape[1:])  # [N, 4]
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    order = areas.argsort(descending=True, stable=True).tolist()  # small boxes lie on top
    colours, width = [class_colour(classes[index]) for index in order], line_width(canvas)
    rims = corners[order] + torch.tensor([-1, -1, 1, 1])  # a dark rim shows a bright line on any background
    canvas = draw_bounding_boxes(canvas, rims, colors="black", width=width + 2)
    canvas = draw_bounding_boxes(canvas, corners[order], colors=list(colours), width=width)
    if confidences is not None:
        order = torch.tensor(confidences).argsort(descending=True, stable=True).tolist()
    known = names or {}
    texts = [known.get(classes[index], str(classes[index])) for index in order]
    if confidences is not None:
        texts = [f"{text} {confidences[index]:.2f}" for text, index in zip(texts, order, strict=True)]
    places = [Rectangle(x0, y0, x1 + 1, y1 + 1) for x0, y0, x1, y1 in corners[order].tolist()]
    colours = [class_colour(classes[index]) for index in order]
    return from_pil(draw_plates(to_pil(canvas), places, texts, colours))


def draw_masks(image: Tensor, masks: Tensor, labels: Tensor | Sequence[int], alpha: float = 0.5) -> Tensor:
    """Tint the pixels of each mask in its class's colour, and draw its outline; small masks lie on top.

    Args:
        image: uint8 [3, H, W].
        masks: bool [N, H, W].
        labels: [N] class ids.
        alpha: opacity of the tint in [0, 1].

    Returns:
        A new picture of the same size.
    """
    from torchvision.utils import draw_segmentation_masks

    _check_image(image)
    image, masks = image.cpu(), masks.cpu().bool()
    if not len(masks):
        return image.clone()
    colours = [class_colour(label) for label in torch.as_tensor(labels).tolist()]
    masks = uncovered(masks)
    radius = max(1, line_width(image) // 2)
    eroded = -max_pool2d(-masks.float(), 2 * radius + 1, stride=1, padding=radius)
    outlines = masks & (eroded < 0.5)  # what lies within the radius of a mask's border
    tinted = draw_segmentation_masks(image, masks, alpha=alpha, colors=colours)
    return draw_segmentation_masks(tinted, outlines, alpha=1.0, colors=colours)


def uncovered(masks: Tensor) -> Tensor:
    """Masks [N, H, W] without what a smaller one covers: torchvision leaves black what belongs to several."""
    free = torch.ones_like(masks[0])
    visible = torch.empty_like(masks)
    for place in masks.flatten(1).sum(1).argsort(stable=True).tolist():
        visible[place] = masks[place] & free
        free &= ~masks[place]
    return visible


def side_by_side(
    rows: Sequence[Sequence[Tensor]],
    titles: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell: int = 640,
) -> Tensor:
    """A contact sheet, for example detections beside the ground truth.

    Args:
        rows: pictures uint8 [3, H, W] of any sizes; rows may differ in length.
        titles: of the columns, written above them.
        captions: of the rows, written under each.
        cell: pictures whose longer side exceeds this many pixels are shrunk to it.

    Returns:
        uint8 [3, H, W], on white.
    """
    pictures = [[to_pil(shrunk(image.cpu(), cell)) for image in row] for row in rows]
    columns = max(map(len, pictures), default=0)
    if not columns or not all(pictures):
        raise ValueError("a contact sheet needs a picture in each row")
    widths = [max(row[column].width for row in pictures if column < len(row)) for column in range(columns)]
    heights = [max(picture.height for picture in row) for row in pictures]
    title_font = load_font(max(14, round(0.04 * max(widths))))
    caption_font = load_font(max(12, round(0.03 * max(widths))))
    gap = max(8, round(0.02 * max(widths)))
    title_height = round(1.6 * title_font.size) if titles else 0
    caption_height = round(1.6 * caption_font.size) if captions else 0
    sheet_width = sum(widths) + gap * (columns + 1)
    sheet_height = gap + title_height + sum(heights) + (gap + caption_height) * len(pictures)
    sheet = Image.new("RGB", (sheet_width, sheet_height), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [gap * (column + 1) + sum(widths[:column]) for column in range(columns)]
    for left, width, title in zip(lefts, widths, titles, strict=False):
        draw.text((left + width / 2, gap), fitted(title, title_font, width), "black", title_font, anchor="ma")
    top = gap + title_height
    for number, (row, height) in enumerate(zip(pictures, heights, strict=True)):
        for left, width, picture in zip(lefts, widths, row, strict=False):
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
        top += height
        if number < len(captions):
            text = fitted(captions[number], caption_font, sheet_width - 2 * gap)
            draw.text((gap, top + 0.3 * caption_font.size), text, "#333333", caption_font)
        top += caption_height + gap
    return from_pil(sheet)


def save_picture(image: Tensor, path: str | os.PathLike) -> None:
    """Write a picture in the format that its suffix names (.jpg, .png, ...), and the folders it lies in.

    Raises:
        UserError: it cannot be written there, or the suffix names no format.
    """
    _check_image(image)
    path = Path(path)
    # Thin coloured lines and letters do not survive what JPEG leaves by default.
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if is_jpeg else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path, **options)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason})") from error


def pixel_corners(boxes: Tensor, factor: int, height: int, width: int) -> Tensor:
    """First and last pixel of boxes on the enlarged canvas, kept inside it: [N, 4]."""
    limit = torch.tensor([width, height]) - 1
    corners = (torch.as_tensor(boxes).detach().float().cpu() * factor).round()
    first = corners[:, :2].clamp(min=0).minimum(limit)
    last = (corners[:, 2:] - 1).minimum(limit).maximum(first)
    return torch.cat([first, last], 1)


def line_width(image: Tensor) -> int:
    """How wide lines on a picture are, in pixels."""
    return max(1, round(0.0055 * math.sqrt(image.shape[1] * image.shape[2])))


def enlarged(image: Tensor, factor: int) -> Tensor:
    """A copy, by an integer factor larger in both directions."""
    return image.clone() if factor == 1 else resized(image, [factor * side for side in image.shape[1:]])


def shrunk(image: Tensor, longest: int) -> Tensor:
    """A picture whose longer side is at most `longest`."""
    _check_image(image)
    factor = longest / max(image.shape[1:])
    return image if factor >= 1 else resized(image, [max(1, round(factor * s)) for s in image.shape[1:]])


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """A picture uint8 [3, H, W] at another height and width, on the CPU."""
    smooth = interpolate(image[None].float().cpu(), tuple(size), mode="bicubic", antialias=True)[0]
    return smooth.round().clamp(0, 255).to(torch.uint8)


def _check_image(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image must be uint8 [3, H, W], not {image.dtype} {list(image.shape)}")


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] as Pillow's image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def from_pil(picture: Image.Image) -> Tensor:
    """Pillow's RGB image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
