"""What is special about a picture as PIL opens it: turned, transparent, or deeper than 8 bits."""

from __future__ import annotations

from typing import Any

EXIF_ORIENTATION = 0x0112
TURNING = range(5, 9)  # its values that exchange width and height
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits a pixel, one channel


def is_transparent(image: Any) -> bool:
    """Whether a PIL image may be transparent in places."""
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def default_white_level(mode: str) -> float:
    """The value that is white in pictures of one of DEEP_MODES."""
    return 1.0 if mode == "F" else 65535.0
