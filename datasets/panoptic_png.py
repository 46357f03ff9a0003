"""Panoptic PNGs: a segment's id is the colour of its pixels, R + 256·G + 65536·B.

A map of ids is int32 [h, w], each id from 0 to 2^24 - 1; 0 usually stands for pixels of no segment.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
from PIL import Image

from util.errors import UserError


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Ids of any shape -> colours uint8 [..., 3].

    Raises:
        ValueError: an id below 0 or above 2^24 - 1, which no colour can say.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= 1 << 24):
        raise ValueError(f"ids of a panoptic PNG are 0 to 2^24 - 1, not {ids.min()} to {ids.max()}")
    words = np.ascontiguousarray(ids, dtype="<u4")
    return words.view(np.uint8).reshape(*ids.shape, 4)[..., :3].copy()


def encode_png(ids: np.ndarray) -> bytes:
    """A map of ids as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(ids_to_rgb(ids)).save(buffer, format="PNG")
    return buffer.getvalue()


def read_ids(source: str | os.PathLike | BinaryIO) -> np.ndarray:
    """The map of ids, int32 [h, w], in a PNG file.

    Raises:
        UserError: it is missing, damaged, or has no three channels of colour.
    """
    try:
        with Image.open(source) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise UserError(f"{source} is no panoptic PNG: its pixels are {image.mode}, not RGB")
            # PIL keeps four bytes a pixel; read as a number, they are the id with a byte to be masked off.
            layout = "RGBX" if image.mode == "RGB" else "RGBA"
            words = np.frombuffer(image.tobytes("raw", layout), dtype="<u4")
            size = image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the panoptic PNG {source}: {reason}") from error
    return (words & 0xFFFFFF).view(np.int32).reshape(size)


def run_starts(*maps: np.ndarray) -> np.ndarray:
    """Where runs of equal pixels begin: indices int64 [R], ascending, into the flattened maps.

    A run is a stretch within one row along which none of the maps [h, w] changes. Panoptic maps have some
    thousand runs where they have hundred thousands of pixels, and whatever is counted can be counted by runs.
    """
    begins = np.zeros(maps[0].size, dtype=bool)
    begins[:: maps[0].shape[1]] = True
    for one in maps:
        pixels = one.ravel()
        begins[1:] |= pixels[1:] != pixels[:-1]
    return np.flatnonzero(begins)
