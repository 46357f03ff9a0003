"""Masks resized to the size at which they are wanted, never stretched by a batch's padding.

A mask covers the padded batch, the canvas, at about a quarter of its size. It is enlarged to the canvas
(bilinear), cropped to the image as the model saw it, and resized to the wanted size (nearest). Only the
pixels that the last step keeps are ever computed.

Shapes: B batch, k masks of one image, h w their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .losses import to_device
from .selection import Outputs, masks_of

Size = tuple[int, int]  # height, width
STRIDE = 4  # of the masks
ROUNDING = 32  # pixels, to a multiple of which a canvas may be rounded up


class Resampler:
    """Gives one image's masks at a wanted size.

    Args:
        canvas: what the masks cover, in pixels of the model's input.
        image: the part of it that is the image, from the upper left.
        target: the wanted size.
        centred: which pixel is the nearest: the one under the centre of the wanted pixel, as in Pillow; or,
            by default, under its upper left corner, as in torch's interpolate.
    """

    def __init__(self, canvas: Size, image: Size, target: Size, centred: bool = False):
        self.canvas = canvas
        self.places = [_nearest(i, t, centred) for i, t in zip(image, target, strict=True)]

    def __call__(self, masks: Tensor) -> Tensor:
        """Values [k, h, w] -> [k, height, width] of the wanted size."""
        wide = self._along(masks, 2)
        return self._along(wide, 1)

    def _along(self, x: Tensor, axis: int) -> Tensor:
        """Bilinear interpolation along one axis, at the kept pixels of the canvas."""
        cells, pixels = x.shape[axis], self.canvas[axis - 1]
        source = ((self.places[axis - 1] + 0.5) * (cells / pixels) - 0.5).clamp(min=0)
        low = source.long()
        weight = to_device((source - low).to(x.dtype), x.device)
        high = to_device((low + 1).clamp(max=cells - 1), x.device)
        low = to_device(low, x.device)
        weight = weight if axis == 2 else weight[:, None]
        return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)


def _nearest(old: int, new: int, centred: bool) -> Tensor:
    """The pixel that each of `new` pixels is taken from, along an axis of `old`: float32 [new].

    Asked of those whose rounding it must be.
    """
    if not centred:
        return interpolate(torch.arange(old, dtype=torch.float32)[None, None], size=new, mode="nearest")[0, 0]
    row = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return torch.from_numpy(np.array(row.resize((new, 1), Image.Resampling.NEAREST))[0]).float()


def resampled(
    outputs: Outputs,
    wanted: Sequence[Tensor],
    processed_sizes: Any,
    target_sizes: Any = None,
    centred: bool = False,
) -> Iterator[tuple[Tensor, Resampler]]:
    """For each image the masks of the wanted queries, [k, h, w], and what brings them to its wanted size.

    Args:
        outputs: of DETRsegm, with all masks or those of a selection.
        wanted: for each image the queries.
        processed_sizes: (height, width) of each image as the model saw it, without padding; [B, 2] or pairs.
            The largest of them, and the masks' size, say what the canvas is.
        target_sizes: the wanted sizes; None: the processed ones.
        centred: as in Resampler.

    Raises:
        ValueError: not one pair for each image, or a query without a mask.
    """
    images = _pairs("processed_sizes", processed_sizes, len(wanted))
    targets = images if target_sizes is None else _pairs("target_sizes", target_sizes, len(wanted))
    masks = masks_of(outputs, wanted).split([len(queries) for queries in wanted])
    height, width = outputs["pred_masks"].shape[-2:]
    canvas = (
        covered(height, max(image[0] for image in images)),
        covered(width, max(image[1] for image in images)),
    )
    for of_image, image, target in zip(masks, images, targets, strict=True):
        yield of_image, Resampler(canvas, image, target, centred)


def covered(cells: int, largest: int) -> int:
    """Pixels of a side of the canvas that so many cells of a mask cover.

    Args:
        cells: of the mask.
        largest: of the images' sides. It is the canvas', unless that was rounded up to whole cells. Where the
            masks are larger by more than rounding makes them, they are stretched to it, as published.
    """
    whole = STRIDE * cells
    return whole if STRIDE <= whole - largest < ROUNDING else largest


def _pairs(name: str, sizes: Any, images: int) -> list[Size]:
    """Sizes as pairs of whole numbers, on the host."""
    rows = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
    try:
        pairs = [(int(height), int(width)) for height, width in rows]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != images:
        raise ValueError(f"{name}: {rows} where (height, width) of {images} images are expected")
    return pairs
