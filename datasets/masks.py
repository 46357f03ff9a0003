"""Masks of objects, made from COCO segmentations."""

from __future__ import annotations

from typing import Any

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
    """Masks uint8 [N, height, width], 0 or 1."""
    import pycocotools.mask as coco_mask

    if not runs:
        return torch.zeros((0, height, width), dtype=torch.uint8)
    masks = torch.from_numpy(coco_mask.decode(runs))  # [h, w, N], stored column by column
    return masks.permute(2, 0, 1).contiguous()
