"""Predictions as columns of numbers, and from these as the dicts of COCO's results format.

Shape letters: N predictions of all images, k of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils

Columns = dict[str, np.ndarray]  # of N predictions, see to_columns


def convert_to_xywh(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes [k, 4] of corners x0, y0, x1, y1 as x, y, width, height [k, 4]."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run-length codes of masks [k, 1, h, w]: k dicts of `size` [h, w], `counts` (bytes).

    Inside is what is True, an integer other than 0, or a floating-point number above 0.5. Any device.
    """
    inside = masks[:, 0] > 0.5 if masks.is_floating_point() else masks[:, 0].bool()
    # The code runs down columns; transposed on the device, the bytes on the host already lie in that order.
    columns = inside.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8)  # [k, w, h]
    return mask_utils.encode(columns.transpose(2, 1, 0)) if len(columns) else []  # [h, w, k], Fortran order


def to_columns(predictions: Mapping[int, Mapping[str, torch.Tensor]], iou_types: Sequence[str]) -> Columns:
    """The predictions of some images as columns on the host.

    Returns:
        image_id, score, label [N]; box [N, 4], x, y, width, height ([N, 0] without 'bbox'); with 'segm' the
        masks' rle [N] (bytes), size [N, 2] (height, width) and area [N]; with 'keypoints' keypoints [N], each
        a list of x, y and visibility, point after point.
    """
    entries = [entry for entry in predictions.values() if entry]
    counts = [len(entry["scores"]) if entry else 0 for entry in predictions.values()]
    table = np.zeros((0, 6 if "bbox" in iou_types else 2))
    if entries:
        parts = [torch.cat([entry[key] for entry in entries])[:, None] for key in ("scores", "labels")]
        if "bbox" in iou_types:
            parts.append(convert_to_xywh(torch.cat([entry["boxes"] for entry in entries])))
        # float64 holds every float32 and every id up to 2^53; Apple's devices lack it.
        dtype = torch.float32 if parts[0].device.type == "mps" else torch.float64
        table = torch.cat([part.detach().to(dtype) for part in parts], 1).cpu().double().numpy()
    columns = {
        "image_id": np.repeat(np.array(list(predictions), np.int64), counts),
        "score": table[:, 0],
        "label": table[:, 1].astype(np.int64),
        "box": table[:, 2:],
    }
    if "segm" in iou_types:
        rles = [rle for entry in entries for rle in encode_masks(entry["masks"])]
        columns["rle"] = np.array([rle["counts"] for rle in rles], object)
        columns["size"] = np.array([rle["size"] for rle in rles], np.int64).reshape(-1, 2)
        # In parts: pycocotools 2.0.11 counts what it is given in eight bits.
        parts = [mask_utils.area(rles[i : i + 128]) for i in range(0, len(rles), 128)]
        columns["area"] = np.concatenate([np.zeros(0), *parts])
    if "keypoints" in iou_types:
        points = [row for entry in entries for row in entry["keypoints"].flatten(1).tolist()]
        columns["keypoints"] = np.fromiter(points, object, len(points))
    return columns


def concatenate(parts: list[Columns]) -> Columns:
    """The rows of all parts, in new arrays."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_dicts(columns: Columns, iou_type: str) -> list[dict[str, Any]]:
    """The predictions in COCO's form with their areas, numbered from 1; `counts` of masks are bytes."""
    if iou_type == "bbox":
        key, regions, areas = "bbox", columns["box"].tolist(), columns["box"][:, 2] * columns["box"][:, 3]
    elif iou_type == "keypoints":
        key, regions = "keypoints", columns["keypoints"].tolist()
        sides = [(max(p[0::3]) - min(p[0::3]), max(p[1::3]) - min(p[1::3])) for p in regions]
        areas = np.array([width * height for width, height in sides])  # of all points, as in pycocotools
    else:
        codes = zip(columns["size"].tolist(), columns["rle"], strict=True)
        key, regions, areas = "segmentation", [{"size": s, "counts": c} for s, c in codes], columns["area"]
    numbers = (columns[name].tolist() for name in ("image_id", "label", "score"))
    rows = zip(*numbers, areas.tolist(), regions, strict=True)
    return [
        {"id": n, "image_id": i, "category_id": label, "score": score, "area": area, key: region}
        for n, (i, label, score, area, region) in enumerate(rows, 1)
    ]


def as_results(columns: Columns, iou_type: str) -> list[dict[str, Any]]:
    """The predictions as COCO's results file lists them, ready for JSON.

    Returns:
        N dicts of image_id, category_id, score and, for 'bbox', bbox [x, y, width, height]; for 'segm'
        segmentation, a dict of size [height, width] and counts (str); for 'keypoints' keypoints.
    """
    results = as_dicts(columns, iou_type)
    for result in results:
        del result["id"], result["area"]
        if iou_type == "segm":
            result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
    return results
