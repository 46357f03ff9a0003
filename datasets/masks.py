"""Masks of objects: made from COCO segmentations, and moved with their image at little cost.

N objects, h w the size of the image as it is now, H W its size when the masks were made.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One object in COCO's compressed run lengths: polygons are united, either form of run lengths is taken.

    Raises:
        ValueError: run lengths of another size.
        Exception: of pycocotools, for what it does not understand.
    """
    import pycocotools.mask as coco_mask

    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its run lengths are for {segmentation['size']}")
        compressed = not isinstance(segmentation["counts"], list)
        return segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def decode(runs: list[dict[str, Any]], height: int, width: int) -> Tensor:
    """Masks uint8 [N, height, width], 0 or 1, stored column by column as pycocotools makes them."""
    import pycocotools.mask as coco_mask

    if not runs:
        return torch.zeros((0, height, width), dtype=torch.uint8)
    masks: np.ndarray = coco_mask.decode(runs)  # [H, W, N]
    return torch.from_numpy(masks).permute(2, 0, 1)


class LazyMasks:
    """Masks [N, h, w] that are cropped, mirrored and resized without touching a pixel, until `tensor()`.

    Each of these steps chooses rows and columns (resizing takes the nearest), and so do several of them
    behind one another: only the choice is kept, and made once, where an object is. It can be used as a
    tensor in `masks[keep]`, `masks[:, top:bottom, left:right]`, `masks.flip(-1)` and `len(masks)`.

    Args:
        source: bool or uint8 [N, H, W].
        extents: [N, 4] rectangles (left, top, right, bottom) in pixels of the source outside of which an
            object has none; None: anywhere.
    """

    def __init__(self, source: Tensor, extents: Tensor | None = None):
        height, width = source.shape[1:]
        if extents is None:
            extents = torch.tensor([[0, 0, width, height]]).expand(len(source), 4)
        self._source = source
        self._extents = extents
        self._objects = torch.arange(len(source))  # [N] into source and extents
        self._rows = torch.arange(height)  # [h] into the source, ascending
        self._columns = torch.arange(width)  # [w] into the source, ascending, or descending where mirrored

    @classmethod
    def from_runs(cls, runs: list[dict[str, Any]], height: int, width: int) -> LazyMasks:
        """Of objects in compressed run lengths."""
        import pycocotools.mask as coco_mask

        if not runs:
            return cls(decode(runs, height, width))
        boxes = torch.from_numpy(coco_mask.toBbox(runs)).long()  # left, top, width, height
        return cls(decode(runs, height, width), torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, h, w)"""
        return len(self._objects), len(self._rows), len(self._columns)

    def __len__(self) -> int:
        return len(self._objects)

    def _choose(self, objects: Tensor, rows: Tensor, columns: Tensor) -> LazyMasks:
        chosen = copy.copy(self)
        chosen._objects, chosen._rows, chosen._columns = objects, rows, columns
        return chosen

    def __getitem__(self, key: Any) -> LazyMasks:
        objects, rows, columns = key if isinstance(key, tuple) else (key, slice(None), slice(None))
        return self._choose(self._objects[objects], self._rows[rows], self._columns[columns])

    def flip(self, dim: int) -> LazyMasks:
        """Mirrored left and right, which is the last axis."""
        if dim not in (2, -1):
            raise ValueError(f"masks are mirrored along their last axis, not along {dim}")
        return self._choose(self._objects, self._rows, self._columns.flip(0))

    def resize(self, size: Sequence[int]) -> LazyMasks:
        """Resized to (height, width), each pixel from the nearest."""
        rows, columns = (
            index[_nearest(len(index), new)]
            for index, new in zip((self._rows, self._columns), size, strict=True)
        )
        return self._choose(self._objects, rows, columns)

    def tensor(self) -> Tensor:
        """The masks as they are now: bool [N, h, w]."""
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for mask, index in zip(masks, self._objects.tolist(), strict=True):
            left, top, right, bottom = self._extents[index].tolist()
            rows, columns = _within(self._rows, top, bottom), _within(self._columns, left, right)
            # Whole runs of memory are copied in both choices; only the small source is turned between them.
            part = self._source[index, top:bottom].t().contiguous()  # [W, bottom - top]
            part = part.index_select(0, self._columns[columns]).t().contiguous()  # [bottom - top, columns]
            mask[rows, columns] = part.index_select(0, self._rows[rows] - top)
        return masks


class LazySegments(LazyMasks):
    """LazyMasks of objects that do not overlap: one map for all of them, which is moved once.

    Args:
        places: [H, W] of any integer type: which object a pixel belongs to, from 0; N or above: none.
        extents: [N, 4] as of LazyMasks.
    """

    def __init__(self, places: Tensor, extents: Tensor):
        super().__init__(places[None].expand(len(extents), *places.shape), extents)
        self._places = places

    def tensor(self) -> Tensor:
        """The masks as they are now: bool [N, h, w]."""
        places = self._places.index_select(1, self._columns).index_select(0, self._rows)  # [h, w]
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for mask, index in zip(masks, self._objects.tolist(), strict=True):
            left, top, right, bottom = self._extents[index].tolist()
            region = _within(self._rows, top, bottom), _within(self._columns, left, right)
            torch.eq(places[region], index, out=mask[region])
        return masks


def _nearest(old: int, new: int) -> Tensor:
    """Source index of each of `new` places along an axis of length `old`, by torch's own rounding."""
    places = torch.arange(old, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(places, size=new, mode="nearest")[0, 0].long()


def _within(index: Tensor, low: int, high: int) -> slice:
    """The places of a monotonic index whose values lie in low…high - 1; they are neighbours."""
    places = torch.nonzero((index >= low) & (index < high))
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
