"""From a model's outputs to what users and evaluators read.

Shapes: B batch, Q queries, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from util.box_ops import box_cxcywh_to_xyxy

from .mask_sampling import resampled
from .segment_maps import (
    coco_rle,
    instance_maps,
    logit,
    panoptic_maps,
    panoptic_queries,
    semantic_maps,
)
from .selection import Outputs, Selection

__all__ = [
    "PostProcess",
    "PostProcessPanoptic",
    "PostProcessSegm",
    "coco_is_thing",
    "coco_rle",
    "instance_maps",
    "panoptic_maps",
    "semantic_maps",
]

COCO_THINGS = 90  # COCO's ids up to this one are things; those above are stuff
MASKS_AT_ONCE = 16  # so many are enlarged together; all of an image's at once would be large


class PostProcess(nn.Module):
    """Turns relative boxes and logits into absolute boxes, classes and scores, one for each query."""

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Post-process a batch.

        Args:
            outputs: `pred_logits` [B, Q, C + 1] and `pred_boxes` [B, Q, 4] (cxcywh in [0, 1]).
            target_sizes: (height, width) [B, 2] in which boxes are wanted: the original image's for
                evaluation, the augmented one's without its padding for drawing.

        Returns:
            For each image `scores` [Q] and `labels` [Q], the most probable class other than "no object",
            and `boxes` [Q, 4] in pixels, xyxy.

        Raises:
            ValueError: target_sizes does not hold one pair for each image.
        """
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if target_sizes.shape != (len(logits), 2):
            raise ValueError(
                f"target_sizes: {tuple(target_sizes.shape)} where (height, width) of {len(logits)} images "
                "are expected"
            )
        found = zip(*scored_boxes(logits, boxes, target_sizes.to(boxes.device)), strict=True)
        return [{"scores": s, "labels": c, "boxes": b} for s, c, b in found]


def scored_boxes(logits: Tensor, boxes: Tensor, target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PostProcess on tensors alone, without its checks.

    Args:
        logits: [B, Q, C + 1].
        boxes: cxcywh in [0, 1], [B, Q, 4].
        target_sizes: (height, width) [B, 2].

    Returns:
        Scores [B, Q], labels [B, Q] and boxes [B, Q, 4], xyxy in pixels.
    """
    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # [B, Q]
    height, width = target_sizes.unbind(1)
    scale = torch.stack([width, height, width, height], dim=1)  # [B, 4]
    return scores, labels, box_cxcywh_to_xyxy(boxes.float()) * scale[:, None]


class PostProcessSegm(nn.Module):
    """Adds each query's mask, at the image's original size, to what PostProcess gives.

    Args:
        threshold: least probability of a pixel that belongs to a mask.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    @torch.no_grad()
    def forward(
        self,
        results: Sequence[Mapping[str, Tensor]],
        outputs: Outputs,
        orig_target_sizes: Any,
        max_target_sizes: Any,
    ) -> list[dict[str, Tensor]]:
        """Add masks to the results of a batch.

        Args:
            results: what PostProcess gives.
            outputs: `pred_masks` [B, Q, h, w], or those of a selection.
            orig_target_sizes: (height, width) of the original images, [B, 2].
            max_target_sizes: those of the images as the model saw them, without padding, [B, 2].

        Returns:
            The results, and `masks` uint8 [Q, 1, height, width], 0 or 1, on the host. With a selection, all
            entries are those of the selected queries alone.
        """
        drawn = outputs.get("selected")
        if drawn is None:
            queries = [torch.arange(outputs["pred_logits"].shape[1])] * len(results)
        else:
            queries = drawn
            pairs = zip(results, queries, strict=True)
            results = [{k: v[chosen.to(v.device)] for k, v in result.items()} for result, chosen in pairs]
        samples = resampled(outputs, queries, max_target_sizes, orig_target_sizes)
        with_masks = []
        for result, (masks, to_size) in zip(results, samples, strict=True):
            parts = [to_size(part.float()) > logit(self.threshold) for part in masks.split(MASKS_AT_ONCE)]
            with_masks.append({**result, "masks": torch.cat(parts)[:, None].to(torch.uint8).cpu()})
        return with_masks


class PostProcessPanoptic(nn.Module):
    """Turns outputs into the panoptic format of COCO: a picture of ids, and what each id is.

    Args:
        is_thing_map: category id -> whether it is a thing. Queries of other classes make no segment.
        threshold: least probability of a segment's class.
        merge_always: as in panoptic_maps; by default as published.
    """

    def __init__(self, is_thing_map: Mapping[int, bool], threshold: float = 0.85, merge_always: bool = False):
        super().__init__()
        self.is_thing_map = dict(is_thing_map)
        self.threshold = threshold
        self.merge_always = merge_always

    def select(self, outputs: Outputs) -> Selection:
        """The queries whose masks this reads, for `DETRsegm.forward(samples, select=...)`."""
        return panoptic_queries(outputs, self.is_thing_map, self.threshold)[0]

    def forward(
        self, outputs: Outputs, processed_sizes: Any, target_sizes: Any = None
    ) -> list[dict[str, Any]]:
        """Post-process a batch.

        Args:
            outputs: `pred_logits` [B, Q, C + 1] and `pred_masks`, [B, Q, h, w] or those of a selection.
            processed_sizes: (height, width) of each image as the model saw it, without padding: [B, 2] or
                pairs.
            target_sizes: the wanted sizes; None: the processed ones.

        Returns:
            For each image `png_string`, a PNG file whose colours are ids (R + 256 G + 65536 B), and
            `segments_info`, for each id a dict of `id`, `category_id`, `isthing` and `area` in pixels.
        """
        maps = panoptic_maps(
            outputs, self.is_thing_map, processed_sizes, target_sizes, self.threshold, self.merge_always
        )
        return [{"png_string": _png_of_ids(ids), "segments_info": segments} for ids, segments in maps]


def coco_is_thing(num_classes: int) -> dict[int, bool]:
    """Which of the ids below num_classes COCO's rule takes for things."""
    return {i: i <= COCO_THINGS for i in range(num_classes)}


def _png_of_ids(ids: Tensor) -> bytes:
    """Ids [H, W] as the bytes of a PNG file, its channels the ids' bytes from the lowest."""
    channels = ids.to(torch.int32).cpu().contiguous().view(torch.uint8).unflatten(-1, (-1, 4))[..., :3]
    with io.BytesIO() as file:
        Image.fromarray(channels.numpy().copy()).save(file, format="PNG")
        return file.getvalue()
