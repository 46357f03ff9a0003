"""What a trained model finds in pictures, ready to be read, drawn and written.

Shapes: k detections of one picture, H W its size, h w the size at which the model sees it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.trained import TrainedModel
from models.segment_maps import PanopticMap, coco_rle, panoptic_maps, panoptic_queries
from models.selection import Outputs, Selection, confident_queries, masks_of
from util.errors import UserError
from util.nested_tensor import ByteBatch

BOXES, MASKS, PANOPTIC = "boxes", "masks", "panoptic"
THRESHOLD, PANOPTIC_THRESHOLD = 0.7, 0.85  # as published


@dataclass(frozen=True)
class Found:
    """What was found in one picture, most certain first. All tensors are on the CPU."""

    scores: Tensor  # float32 [k], each detection's probability, above the threshold
    labels: Tensor  # int64 [k], category ids
    boxes: Tensor  # float32 [k, 4], x0 y0 x1 y1 in pixels of the picture; may reach beyond it
    queries: Tensor  # int64 [k], which query found it
    masks: Tensor | None = None  # bool [k, H, W], asked for masks; they may overlap
    panoptic: PanopticMap | None = None  # asked for panoptic segments: ids int64 [H, W], and what each id is

    def __len__(self) -> int:
        return len(self.scores)


def kinds_of(trained: TrainedModel) -> list[str]:
    """What a model can give, the richest last."""
    kinds = {BOXES: "bbox", MASKS: "segm", PANOPTIC: "panoptic"}
    return [kind for kind, name in kinds.items() if name in trained.postprocessors]


def kind_of(trained: TrainedModel, kind: str | None = None) -> str:
    """What to predict: `boxes`, `masks` or `panoptic`; None is the richest that the model was trained for.

    Raises:
        UserError: the model cannot give that.
    """
    offered = kinds_of(trained)
    if kind is not None and kind not in offered:
        reason = (
            "was not trained on panoptic data"
            if kind == PANOPTIC and MASKS in offered
            else "has no mask head"
        )
        raise UserError(f"{trained.source}: cannot give {kind}, the model {reason}")
    return kind or offered[-1]


@torch.no_grad()
def predict(
    trained: TrainedModel,
    images: Sequence[Tensor],
    sizes: Sequence[Sequence[int]],
    threshold: float | None = None,
    kind: str | None = None,
) -> list[Found]:
    """Find what is in some pictures.

    They make one batch: smaller ones are padded, which the model sees, so that scores move a little with the
    company that a picture is in. DC5 models, trained with one picture at a time, suffer much: give them one.
    Masks are drawn for what is above the threshold alone.

    Args:
        images: uint8 [3, h, w], as inference.pictures.prepare makes them.
        sizes: (height, width) of the original pictures, in which boxes and masks are wanted.
        threshold: probabilities up to this one are left out; None: 0.7, and 0.85 for panoptic segments.
        kind: `boxes`, `masks` or `panoptic`; None: the richest that the model was trained for. A panoptic
            model's boxes and masks are those of things alone.

    Raises:
        UserError: the model cannot give that.
    """
    kind = kind_of(trained, kind)
    threshold = default_threshold(kind) if threshold is None else threshold
    choose = _choice(trained, threshold, kind)
    batch = ByteBatch(images)
    model: Any = trained.model
    samples = batch.to(trained.device)
    if kind == BOXES:
        outputs = (model.detr if trained.args.masks else model)(samples)
        chosen = choose(outputs)
    else:
        outputs = model(samples, select=choose)
        chosen = outputs["selected"]
    return _of_chosen(trained, outputs, chosen, batch.sizes, sizes, threshold, kind)


@torch.no_grad()
def read(
    trained: TrainedModel,
    outputs: Outputs,
    image_sizes: Sequence[Sequence[int]],
    sizes: Sequence[Sequence[int]],
    threshold: float | None = None,
    kind: str | None = None,
) -> list[Found]:
    """What a model's outputs say of the pictures of a batch; see predict.

    Args:
        outputs: of the batch; `pred_masks` of all queries, or of those under `selected`, of which there must
            be all that the threshold leaves.
        image_sizes: (height, width) of each picture within the batch.

    Raises:
        UserError: the model cannot give that.
        ValueError: a mask is wanted that is not among those of the selected queries.
    """
    kind = kind_of(trained, kind)
    threshold = default_threshold(kind) if threshold is None else threshold
    chosen = _choice(trained, threshold, kind)(outputs)
    return _of_chosen(trained, outputs, chosen, image_sizes, sizes, threshold, kind)


def _of_chosen(
    trained: TrainedModel,
    outputs: Outputs,
    chosen: Selection,
    image_sizes: Sequence[Sequence[int]],
    sizes: Sequence[Sequence[int]],
    threshold: float,
    kind: str,
) -> list[Found]:
    """What the chosen queries of each picture have found."""
    results = trained.postprocessors["bbox"](outputs, torch.tensor([list(size) for size in sizes]))
    if kind == BOXES:
        return [_found(trained, *pair) for pair in zip(results, chosen, strict=True)]
    outputs = {**outputs, "selected": chosen, "pred_masks": masks_of(outputs, chosen)}
    if kind == PANOPTIC:
        things: Any = trained.postprocessors["panoptic"]
        maps = panoptic_maps(outputs, things.is_thing_map, image_sizes, sizes, threshold, things.merge_always)
        return [
            _found(trained, result, queries, panoptic=PanopticMap(one.ids.cpu(), one.segments))
            for result, queries, one in zip(results, chosen, maps, strict=True)
        ]
    drawn = trained.postprocessors["segm"](results, outputs, sizes, image_sizes)
    pairs = zip(results, chosen, drawn, strict=True)
    return [_found(trained, result, queries, one["masks"][:, 0]) for result, queries, one in pairs]


def default_threshold(kind: str) -> float:
    """The probability that a detection or a segment has to exceed, where nobody says another."""
    return PANOPTIC_THRESHOLD if kind == PANOPTIC else THRESHOLD


def _choice(trained: TrainedModel, threshold: float, kind: str) -> Callable[[Outputs], Selection]:
    """Which queries of each picture are read, given the model's outputs."""
    if kind == PANOPTIC:
        is_thing: Any = trained.postprocessors["panoptic"].is_thing_map
        return lambda outputs: panoptic_queries(outputs, is_thing, threshold)[0]

    def things(outputs: Outputs) -> Selection:
        chosen = confident_queries(outputs, threshold)
        if trained.is_thing is None:
            return chosen
        labels = outputs["pred_logits"][..., :-1].argmax(-1).cpu()  # [B, Q]
        known = torch.tensor([i for i, thing in trained.is_thing.items() if thing])
        pairs = zip(chosen, labels, strict=True)
        return [queries[torch.isin(row[queries], known)] for queries, row in pairs]

    return things


def _found(
    trained: TrainedModel,
    result: Mapping[str, Tensor],
    queries: Tensor,
    masks: Tensor | None = None,
    panoptic: PanopticMap | None = None,
) -> Found:
    """The chosen detections of one picture, most certain first; with panoptic segments only things.

    Args:
        result: of all queries, as PostProcess gives it.
        queries: the chosen ones, on the CPU.
        masks: of these.
    """
    scores, labels, boxes = (result[key].cpu()[queries] for key in ("scores", "labels", "boxes"))
    order = scores.argsort(descending=True, stable=True)
    if panoptic is not None and trained.is_thing is not None:
        order = order[[trained.is_thing.get(label, False) for label in labels[order].tolist()]]
    chosen = None if masks is None else masks.view(torch.bool)[order]
    return Found(scores[order], labels[order], boxes[order], queries[order], chosen, panoptic)


@contextmanager
def naming_large_pictures(trained: TrainedModel, names: str, memory: str, positions: str) -> Iterator[None]:
    """Say of pictures that are too large what helps.

    Args:
        memory, positions: what to do where memory, or the table of learned positions, is too small.

    Raises:
        UserError: either is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{names}: out of memory; {memory}") from error
    except ValueError as error:
        if trained.args.position_embedding != "learned":
            raise
        raise UserError(f"{names}: {error}; {positions}") from error


def coco_results(found: Found, image_id: int, file_name: str) -> list[dict[str, Any]]:
    """One picture's detections as entries of a COCO results file.

    Each holds `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`, with masks
    `segmentation` (compressed run lengths), and `file_name`, which COCO's tools pass over.
    """
    corners = found.boxes
    records: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score, "file_name": file_name}
        for label, box, score in zip(
            found.labels.tolist(),
            torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist(),
            found.scores.tolist(),
            strict=True,
        )
    ]
    if found.masks is None:
        return records
    codes = coco_rle(found.masks)
    return [{**record, "segmentation": code} for record, code in zip(records, codes, strict=True)]


def panoptic_results(
    annotations: Sequence[Mapping[str, Any]], files: Mapping[int, str], trained: TrainedModel
) -> dict[str, Any]:
    """The content of a COCO panoptic file.

    Args:
        annotations: for each picture `image_id`, `file_name` (of the PNG) and `segments_info`.
        files: image id -> the picture's file.
    """
    is_thing = trained.is_thing or {}
    categories = [
        {"id": i, "name": name, "isthing": int(is_thing.get(i, False))} for i, name in trained.names.items()
    ]
    images = [{"id": i, "file_name": name} for i, name in files.items()]
    return {"images": images, "annotations": list(annotations), "categories": categories}


def summary(found: Found, names: Mapping[int, str]) -> str:
    """What was found in a picture, in words: 2 circle, 1 square."""
    labels = found.labels.tolist()
    if found.panoptic is not None:
        labels = [segment["category_id"] for segment in found.panoptic.segments]
    counts = Counter(labels).most_common()
    return (
        ", ".join(f"{count} {names.get(label, f'of class {label}')}" for label, count in counts) or "nothing"
    )
