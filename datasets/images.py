"""Pictures: one reader for training, evaluation and prediction, and their pixels as tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datasets.picture_modes import DEEP_MODES, EXIF_ORIENTATION, TURNING, default_white_level, is_transparent
from datasets.picture_names import what_lies_there
from util.errors import UserError
from util.file_contents import LONGEST, what_it_is


def read_image(
    path: str | os.PathLike,
    note: str = "",
    *,
    stated: tuple[Any, Any] | None = None,
    as_shown: bool = False,
    white_level: float | None = None,
) -> Image.Image:
    """A picture in RGB, 8 bits a channel; of several frames or pages the first.

    An annotated picture is seen in the frame whose width and height its annotation states: turned by its EXIF
    orientation where that alone gives them, else as it is stored. What is transparent lies on white. A single
    channel of more than 8 bits is scaled, the same in all pictures: `white_level` becomes 255. All others
    are what PIL's `convert("RGB")` gives.

    Args:
        path: the file.
        note: what a message adds to the file's name.
        stated: width and height of the annotation; None: as stored.
        as_shown: turned as its EXIF orientation says, whatever is stated.
        white_level: None: 65535 of integers, 1 of floating point numbers.

    Raises:
        UserError: the picture is missing, damaged or of no known format; the file is named.
    """
    try:
        with Image.open(path) as image:
            seen = ImageOps.exif_transpose(image) if as_shown else in_frame(image, stated)
            return _as_rgb(seen, white_level)
    except Exception as error:  # Pillow's readers of rarer formats fail in any way on spoiled files
        raise UserError(f"{path}{note}: cannot be read ({_reason(error, path)})") from error


def in_frame(image: Image.Image, stated: tuple[Any, Any] | None) -> Image.Image:
    """A picture, turned by its EXIF orientation where that alone gives the stated width and height."""
    other = stated is not None and image.size != tuple(stated) and image.size[::-1] == tuple(stated)
    turns = other and image.getexif().get(EXIF_ORIENTATION) in TURNING
    return ImageOps.exif_transpose(image) if turns else image


def _reason(error: Exception, path: str | os.PathLike) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            found = what_it_is(file.read(LONGEST))
        return found or "not a picture of a known format, or damaged"
    if isinstance(error, FileNotFoundError):
        folder, name = os.path.split(path)
        return f"no such file; {what_lies_there(Path(folder), name)}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.splitlines()[0] if reason else type(error).__name__


def _as_rgb(image: Image.Image, white_level: float | None) -> Image.Image:
    if image.mode in DEEP_MODES:
        scale = 255 / (white_level or default_white_level(image.mode))
        values = np.nan_to_num(np.asarray(image).astype(np.float64) * scale)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if is_transparent(image):
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def pil_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image of 8 bits a channel as uint8 [channels, h, w], channels_last: not rearranged in memory."""
    pixels = torch.from_numpy(np.array(image))  # [h, w, channels], or [h, w] of a grey image
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def image_size(image: Image.Image | Tensor) -> tuple[int, int]:
    """(height, width) of a PIL image or of a tensor [..., h, w]."""
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    return image.height, image.width
