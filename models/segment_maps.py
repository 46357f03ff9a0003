"""Maps of segments, made of a trained model's masks: semantic, instance and panoptic (paper, section 4.4).

All three take what DETRsegm gives, with the masks of all queries or of a selection, and give each image's map
at the size that is wanted for it.

Shapes: B batch, Q queries, C classes, k queries that one image keeps, H W the wanted size of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .losses import to_device
from .mask_sampling import Resampler, resampled
from .selection import Outputs, Selection, confident_queries

SMALLEST = 4  # pixels; segments up to this size are left out of panoptic maps
CLASSES_AT_ONCE = 16


def logit(probability: float) -> float:
    """What a mask's logit must exceed for its probability to exceed this one, in [0, 1]."""
    if not 0 < probability < 1:
        return -math.inf if probability <= 0 else math.inf
    return math.log(probability / (1 - probability))


@torch.no_grad()
def semantic_maps(outputs: Outputs, processed_sizes: Any, target_sizes: Any = None) -> list[Tensor]:
    """The class of each pixel: the one of the largest sum over queries of class and mask probability.

    Args:
        outputs: `pred_logits` [B, Q, C + 1] and `pred_masks`.
        processed_sizes: (height, width) of each image as the model saw it, without padding: [B, 2] or pairs.
        target_sizes: the wanted sizes; None: the processed ones.

    Returns:
        For each image int64 [H, W].
    """
    classes = outputs["pred_logits"].float().softmax(-1)[..., :-1]  # [B, Q, C]
    drawn = outputs.get("selected") or [torch.arange(classes.shape[1])] * len(classes)
    maps = []
    samples = resampled(outputs, drawn, processed_sizes, target_sizes)
    for i, (masks, to_size) in enumerate(samples):
        weights = classes[i, to_device(drawn[i], classes.device)]  # [k, C]
        votes = torch.einsum("kc,khw->chw", weights, masks.float().sigmoid())
        maps.append(_most_votes(votes, to_size))
    return maps


def _most_votes(votes: Tensor, to_size: Resampler) -> Tensor:
    """The class of the largest value at each pixel: [C, h, w] -> [H, W], few classes at full size at once."""
    first, *others = votes.split(CLASSES_AT_ONCE)
    best, winner = to_size(first).max(0)
    for number, part in enumerate(others, 1):
        value, index = to_size(part).max(0)
        winner = torch.where(value > best, index + number * CLASSES_AT_ONCE, winner)
        best = torch.maximum(value, best)
    return winner


@torch.no_grad()
def instance_maps(
    outputs: Outputs,
    processed_sizes: Any,
    target_sizes: Any = None,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
) -> list[dict[str, Tensor]]:
    """The instances of each image, most certain first.

    Args:
        outputs: `pred_logits` [B, Q, C + 1] and `pred_masks`.
        processed_sizes: (height, width) of each image as the model saw it, without padding: [B, 2] or pairs.
        target_sizes: the wanted sizes; None: the processed ones.
        threshold: least probability of an instance's class.
        mask_threshold: least probability of a pixel that belongs to its mask.

    Returns:
        For each image
            scores [k], labels [k], queries [k]: class probability, class, and which query it was;
            masks [k, H, W]: bool; they may overlap, and none is empty;
            map [H, W]: int64, the place in these lists of the most certain instance there, -1 where none is.
    """
    scores, labels = outputs["pred_logits"].float().softmax(-1)[..., :-1].max(-1)  # [B, Q]
    kept = confident_queries(outputs, threshold)
    rows = zip(kept, scores.cpu(), strict=True)
    kept = [queries[row[queries].argsort(descending=True, stable=True)] for queries, row in rows]
    results = []
    for i, (masks, to_size) in enumerate(resampled(outputs, kept, processed_sizes, target_sizes)):
        inside = to_size(masks.float()) > logit(mask_threshold)  # [k, H, W]
        seen = inside.flatten(1).any(1)
        queries, inside = to_device(kept[i], seen.device)[seen], inside[seen]
        segments = torch.full(inside.shape[1:], -1, dtype=torch.int64, device=inside.device)
        for place in reversed(range(len(inside))):  # the most certain one is drawn last, over the others
            segments[inside[place]] = place
        found = {"scores": scores[i, queries], "labels": labels[i, queries], "queries": queries}
        results.append({**found, "masks": inside, "map": segments})
    return results


class PanopticMap(NamedTuple):
    """One image, each pixel of which belongs to one segment."""

    ids: Tensor
    """int64 [H, W], the id of each pixel's segment; 0 everywhere if there is none."""
    segments: list[dict[str, Any]]
    """For each segment `id`, `category_id`, `isthing` and `area` in pixels."""


def panoptic_queries(
    outputs: Outputs, is_thing_map: Mapping[int, bool], threshold: float
) -> tuple[Selection, list[list[int]]]:
    """The queries that make segments, and their classes.

    Their most probable class, "no object" included, is one of the map's, and likely enough.
    """
    scores, labels = outputs["pred_logits"].float().softmax(-1).max(-1)  # [B, Q]
    known = torch.zeros(outputs["pred_logits"].shape[-1], dtype=torch.bool)
    known[[c for c in is_thing_map if 0 <= c < len(known) - 1]] = True  # the last is "no object"
    labels = labels.cpu()
    keep = (scores > threshold).cpu() & known[labels]
    kept = [row.nonzero()[:, 0] for row in keep]
    return kept, [of_image[queries].tolist() for queries, of_image in zip(kept, labels, strict=True)]


@torch.no_grad()
def panoptic_maps(
    outputs: Outputs,
    is_thing_map: Mapping[int, bool],
    processed_sizes: Any,
    target_sizes: Any = None,
    threshold: float = 0.85,
    merge_always: bool = False,
) -> list[PanopticMap]:
    """Give each pixel to the query whose mask is highest there.

    Args:
        outputs: `pred_logits` [B, Q, C + 1] and `pred_masks`.
        is_thing_map: category id -> whether it is a thing. Queries of other classes are left out.
        processed_sizes: (height, width) of each image as the model saw it, without padding: [B, 2] or pairs.
        target_sizes: the wanted sizes; None: the processed ones.
        threshold: least probability of a segment's class.
        merge_always: segments of one stuff class become one segment. By default, as published, only the
            first of them is kept: those that have been merged into it count as too small and are dropped,
            and their pixels go to whichever mask is the next highest there.
    """
    kept, classes_of = panoptic_queries(outputs, is_thing_map, threshold)
    maps = []
    samples = resampled(outputs, kept, processed_sizes, target_sizes, centred=True)
    for classes, (masks, to_size) in zip(classes_of, samples, strict=True):
        ids, areas, classes = _share_out(to_size(masks.float()), classes, is_thing_map, merge_always)
        segments = [
            {"id": i, "category_id": c, "isthing": bool(is_thing_map[c]), "area": area}
            for i, (c, area) in enumerate(zip(classes, areas, strict=True))
            if area
        ]
        maps.append(PanopticMap(ids, segments))
    return maps


def _share_out(
    masks: Tensor, classes: list[int], is_thing_map: Mapping[int, bool], merge_always: bool
) -> tuple[Tensor, list[int], list[int]]:
    """Logits [k, H, W] and their classes -> ids [H, W], and each id's area and class."""
    merge = True
    while len(masks):
        first = [i if is_thing_map[c] or not merge else classes.index(c) for i, c in enumerate(classes)]
        ids = to_device(torch.tensor(first), masks.device)[masks.argmax(0)]  # as its group's first
        areas = torch.bincount(ids.flatten(), minlength=len(classes)).tolist()[: len(classes)]
        # With merge_always, a segment is as small as all that it is merged with.
        sizes = [areas[i] for i in first] if merge_always else areas
        large = [i for i, area in enumerate(sizes) if area > SMALLEST]
        if len(large) == len(classes):
            return ids, areas, classes
        masks, classes = masks[large], [classes[i] for i in large]
        merge = merge_always
    return torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device), [], []


def coco_rle(masks: Tensor) -> list[dict[str, Any]]:
    """Masks bool [k, H, W] as COCO's compressed run lengths: `size` [H, W] and `counts`, ready for JSON."""
    from pycocotools import mask as mask_utils

    columns = masks.cpu().to(torch.uint8).permute(1, 2, 0).numpy()  # [H, W, k]
    codes = mask_utils.encode(columns.copy(order="F")) if len(masks) else []
    return [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in codes]
