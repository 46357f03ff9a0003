"""Pictures: one reader for training, evaluation and prediction, and their pixels as tensors."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from util.errors import UserError

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits a pixel, one channel


def read_image(path: str | os.PathLike, note: str = "", *, as_shown: bool = False) -> Image.Image:
    """A picture in RGB.

    Args:
        path: the file.
        note: what a message adds to the file's name.
        as_shown: turned as its EXIF orientation says; what is deeper than 8 bits is scaled, and what is
            transparent lies on white. False: the pixels as they are stored, by PIL's `convert("RGB")`, for
            annotations of data sets refer to those. Of several frames or pages the first is taken.

    Raises:
        UserError: the picture is missing, damaged or of no known format; the file is named.
    """
    try:
        with Image.open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image)) if as_shown else image.convert("RGB")
    except Exception as error:  # Pillow's readers of rarer formats fail in any way on spoiled files
        raise UserError(f"{path}{note}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture of a known format, or damaged"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.splitlines()[0] if reason else type(error).__name__


def _as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB."""
    if image.mode in DEEP_MODES:
        image = _as_eight_bits(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _as_eight_bits(image: Image.Image) -> Image.Image:
    """A picture of one deep channel as a grey one: 65535, or 1 of a float picture within [0, 1], is white."""
    values = np.asarray(image).astype(np.float64)
    largest = float(values.max(initial=0))
    if image.mode == "F" and largest <= 1:
        scale = 255.0
    else:
        whole_range = not image.mode.startswith("I;16") and largest <= 255  # 8 bits in a wider type
        scale = 1.0 if whole_range else 255 / 65535
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def pil_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image of 8 bits a channel as uint8 [channels, h, w], channels_last: not rearranged in memory."""
    pixels = torch.from_numpy(np.array(image))  # [h, w, channels], or [h, w] of a grey image
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def image_size(image: Image.Image | Tensor) -> tuple[int, int]:
    """(height, width) of a PIL image or of a tensor [..., h, w]."""
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    return image.height, image.width
