"""Reading pictures: as PIL images, or straight to uint8 tensors by torchvision's decoders, at once or later.

Both give RGB as PIL's `convert('RGB')` does, and neither turns a picture by its EXIF orientation, because
annotations of published data sets refer to the pixels as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision.io
from PIL import Image
from torch import Tensor

from util.errors import UserError

# What torchvision decodes as PIL does. CMYK, palettes, alpha and 16 bits are left to PIL.
_TENSOR_FORMATS = {"JPEG", "MPO", "PNG"}
_TENSOR_MODES = {"RGB", "L"}
# Announced to leave torchvision one day; PIL decodes what it did, a little slower.
_decode_image = getattr(torchvision.io, "decode_image", None)


class LazyImage:
    """A picture that is cropped, mirrored and resized without having been read, until `tensor()`.

    Args:
        read: gives it, uint8 [3, h, w].
        size: (h, w)
    """

    def __init__(self, read: Callable[[], Tensor], size: tuple[int, int]):
        self.size = size
        self._read = read

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, h, w), as the tensor will have it."""
        return 3, *self.size

    def then(self, change: Callable[[Tensor], Tensor], size: tuple[int, int]) -> LazyImage:
        """What `change` makes of it, which has another size (h, w)."""
        return LazyImage(lambda: change(self._read()), size)

    def tensor(self) -> Tensor:
        """Read and changed; may be called in any thread."""
        return self._read()


def read_image(path: Path, image_id: int, as_tensor: bool) -> Image.Image | LazyImage:
    """A data set's picture by `read_pil`, or by `read_tensor` when its tensor is asked for.

    Raises:
        UserError: it cannot be read; the file and its image id are named.
    """
    with _naming(path, image_id):
        if not as_tensor:
            return read_pil(path)
        decodable, size = _header(path)

    def read() -> Tensor:
        with _naming(path, image_id):
            return _read_pixels(path, decodable)

    return LazyImage(read, size)


@contextmanager
def _naming(path: Path, image_id: int) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image {path} (image id {image_id}): {error}") from error


def read_pil(path: Path) -> Image.Image:
    """A picture as a PIL image in RGB.

    Raises:
        OSError: it is missing, damaged or of no known format.
    """
    with Image.open(path) as image:
        return image.convert("RGB")


def read_tensor(path: Path) -> Tensor:
    """A picture as uint8 [3, h, w]; the channels of a pixel lie together in memory where it was a JPEG.

    Raises:
        OSError: it is missing, damaged or of no known format.
    """
    return _read_pixels(path, decodable=_header(path)[0])


def _header(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether torchvision decodes a picture as PIL does, and its size (h, w)."""
    with Image.open(path) as header:  # reads no pixels
        decodable = header.format in _TENSOR_FORMATS and header.mode in _TENSOR_MODES
        return decodable, (header.height, header.width)


def _read_pixels(path: Path, decodable: bool) -> Tensor:
    if decodable and _decode_image is not None:
        data = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
        try:
            image = _decode_image(data, mode=torchvision.io.ImageReadMode.RGB)
        except RuntimeError:
            pass  # PIL reads some files that the decoder refuses, and says better what is wrong with others
        else:
            if image.dtype == torch.uint8:
                return image
    return pil_to_tensor(read_pil(path))


def pil_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image of 8 bits a channel as uint8 [channels, h, w], not rearranged in memory."""
    pixels = torch.from_numpy(np.array(image))  # [h, w, channels], or [h, w] of a grey image
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
