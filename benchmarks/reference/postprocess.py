"""From outputs to boxes in pixels and to panoptic pictures.

Shapes: B batch, Q queries, k kept queries of one image, H W the size of the image.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_convert

SMALLEST = 4  # pixels; segments up to this size are dropped


@torch.no_grad()
def detections(outputs: dict[str, Any], sizes: Tensor) -> list[dict[str, Tensor]]:
    """For each image scores [Q], labels [Q] and boxes [Q, 4] in pixels, xyxy; sizes: [B, 2], height first."""
    results = []
    for logits, boxes, size in zip(outputs["pred_logits"], outputs["pred_boxes"], sizes, strict=True):
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        scale = torch.stack([size[1], size[0], size[1], size[0]])
        results.append(
            {"scores": scores, "labels": labels, "boxes": box_convert(boxes, "cxcywh", "xyxy") * scale}
        )
    return results


@torch.no_grad()
def panoptic(
    outputs: dict[str, Any],
    processed: list[tuple[int, int]],
    wanted: list[tuple[int, int]],
    is_thing: dict[int, bool],
    threshold: float = 0.85,
) -> list[dict[str, Any]]:
    """For each image a PNG whose colours are ids, and what each id is, as COCO's panoptic format has it.

    Args:
        outputs: pred_logits [B, Q, C + 1] and pred_masks [B, Q, h, w] of a batch without padding.
        processed: (height, width) of each image as the model saw it.
        wanted: (height, width) of each picture.
        is_thing: of each class.
        threshold: least probability of a segment's class.
    """
    results = []
    for logits, masks, seen, size in zip(
        outputs["pred_logits"], outputs["pred_masks"], processed, wanted, strict=True
    ):
        scores, labels = logits.softmax(-1).max(-1)
        keep = (labels != logits.shape[-1] - 1) & (scores > threshold)
        large = interpolate(masks[keep][:, None], size=seen, mode="bilinear", align_corners=False)[:, 0]
        results.append(_share_out(large, labels[keep].tolist(), size, is_thing))
    return results


def _share_out(
    masks: Tensor, labels: list[int], size: tuple[int, int], is_thing: dict[int, bool]
) -> dict[str, Any]:
    """Masks [k, h, w] of one image; too small ones are dropped until none is left."""
    merge = True
    while True:
        ids = _paint(masks, labels, size, is_thing, merge)
        areas = [int((ids == number).sum()) for number in range(len(labels))]
        small = [area <= SMALLEST for area in areas]
        if not any(small):
            break
        masks = masks[torch.tensor([not one for one in small], device=masks.device)]
        labels = [label for label, one in zip(labels, small, strict=True) if not one]
        merge = False
    with io.BytesIO() as file:
        Image.fromarray(_colours(ids)).save(file, format="PNG")
        segments = [
            {"id": number, "category_id": label, "isthing": is_thing[label], "area": area}
            for number, (label, area) in enumerate(zip(labels, areas, strict=True))
        ]
        return {"png_string": file.getvalue(), "segments_info": segments}


def _paint(
    masks: Tensor, labels: list[int], size: tuple[int, int], is_thing: dict[int, bool], merge: bool
) -> np.ndarray:
    """The id of each pixel [H, W]: the most probable query; stuff of one class is one segment."""
    if labels:
        ids = masks.flatten(1).t().softmax(-1).argmax(-1).view(masks.shape[1:])
        for number, label in enumerate(labels):
            if merge and not is_thing[label]:
                ids[ids == number] = labels.index(label)
    else:
        ids = torch.zeros(masks.shape[1:], dtype=torch.int64)
    picture = Image.fromarray(_colours(ids.cpu().numpy())).resize(
        (size[1], size[0]), Image.Resampling.NEAREST
    )
    channels = np.array(picture).astype(np.int64)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]


def _colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
