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

from datasets.polygons import cannot_be_drawn


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """One object in COCO's compressed run lengths: polygons are united, either form of run lengths is taken.

    Raises:
        ValueError: run lengths of another size; polygons with which pycocotools would end the process.
        Exception: of pycocotools, for what it does not understand.
    """
    import pycocotools.mask as coco_mask

    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its run lengths are for {segmentation['size']}")
        compressed = not isinstance(segmentation["counts"], list)
        return segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    for polygon in segmentation:
        fault = "" if isinstance(polygon, dict) else cannot_be_drawn(polygon, max(height, width))
        if fault:
            raise ValueError(fault)
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
        count, height, width = source.shape
        if extents is None:
            extents = torch.tensor([[0, 0, width, height]]).expand(count, 4)
        self._source = source
        self._extents = extents
        self._objects = torch.arange(count)  # [N] into source and extents
        self._rows = torch.arange(height)  # [h] into the source, ascending
        self._columns = torch.arange(width)  # [w] into the source, ascending, or descending where mirrored

    @classmethod
    def from_runs(cls, runs: list[dict[str, Any]], height: int, width: int) -> LazyMasks:
        """Of objects in compressed run lengths, which are decoded in `tensor()`, those that are left then."""
        return _LazyRuns(runs, height, width)

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
        extents = self._extents[self._objects]
        places = zip(
            self._objects.tolist(),
            extents.tolist(),
            _within(self._rows, extents[:, 1::2]),
            _within(self._columns, extents[:, 0::2]),
            strict=True,
        )
        pixels, all_rows, all_columns = masks.numpy(), self._rows.numpy(), self._columns.numpy()
        for mask, (index, (left, top, right, bottom), rows, columns) in zip(pixels, places, strict=True):
            # Whole runs of memory are copied in both choices; only a small part is turned between them.
            part = self._turned(index, left, right)[:, top:bottom][all_columns[columns] - left]
            mask[rows, columns] = np.ascontiguousarray(part.T)[all_rows[rows] - top]
        return masks

    def _turned(self, index: int, left: int, right: int) -> np.ndarray:
        """An object's source [right - left, H], between two columns outside of which it has no pixel."""
        return self._source[index, :, left:right].t().numpy()


class _LazyRuns(LazyMasks):
    """LazyMasks whose source is decoded one object at a time: in memory that stays in the cache."""

    def __init__(self, runs: list[dict[str, Any]], height: int, width: int):
        import pycocotools.mask as coco_mask

        boxes = torch.from_numpy(coco_mask.toBbox(runs)).long().reshape(-1, 4)  # left, top, width, height
        extents = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        super().__init__(torch.empty((), dtype=torch.bool).expand(len(runs), height, width), extents)
        self._runs = runs

    def _turned(self, index: int, left: int, right: int) -> np.ndarray:
        height = self._source.shape[1]
        return decode([_between_columns(self._runs[index], left, right)], height, right - left)[0].t().numpy()


def _between_columns(runs: dict[str, Any], left: int, right: int) -> dict[str, Any]:
    """The columns left…right - 1 of compressed run lengths whose other columns are empty.

    Only the first and the last run grow shorter. Each number is written with five bits in a byte, the
    lowest first, bit 5 if more bytes follow; those behind the third as differences from the number two
    before, which is neither the first nor the last.
    """
    height, width = runs["size"]
    text = runs["counts"].encode() if isinstance(runs["counts"], str) else runs["counts"]
    ends = np.flatnonzero(~(np.frombuffer(text, np.uint8) - 48) & 32) + 1  # behind the bytes of each number
    if len(ends) < 2:  # no pixel
        return runs
    first, last = int(ends[0]), int(ends[-2])
    head, middle, tail = text[:first], text[first:last], text[last:]
    head = _written(_number(head) - left * height)
    if len(ends) % 2:  # the last run is of pixels outside the object
        tail = _written(_number(tail) - (width - right) * height)
    return {"size": [height, right - left], "counts": head + middle + tail}


def _number(text: bytes) -> int:
    value = sum((byte - 48 & 31) << 5 * place for place, byte in enumerate(text))
    return value - (1 << 5 * len(text)) if text[-1] - 48 & 16 else value


def _written(value: int) -> bytes:
    text = bytearray()
    while True:
        bits, value = value & 31, value >> 5
        if value == (-1 if bits & 16 else 0):
            text.append(48 + bits)
            return bytes(text)
        text.append(48 + bits + 32)


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
        extents = self._extents[self._objects]
        rows, columns = _within(self._rows, extents[:, 1::2]), _within(self._columns, extents[:, 0::2])
        for mask, index, *region in zip(masks, self._objects.tolist(), rows, columns, strict=True):
            torch.eq(places[tuple(region)], index, out=mask[tuple(region)])
        return masks


def _nearest(old: int, new: int) -> Tensor:
    """Source index of each of `new` places along an axis of length `old`, by torch's own rounding."""
    places = torch.arange(old, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(places, size=new, mode="nearest")[0, 0].long()


def _within(index: Tensor, limits: Tensor) -> list[slice]:
    """The places of a monotonic index whose values lie in low…high - 1, for limits [N, 2] of low and high.

    They are neighbours.
    """
    if len(index) > 1 and index[0] > index[-1]:  # descending
        index, limits = -index, 1 - limits.flip(1)
    return [slice(*ends) for ends in torch.searchsorted(index, limits.contiguous()).tolist()]
