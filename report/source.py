"""What a report shows, as plain values, and what reads it from a data set and an evaluation on it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.coco_eval import CocoEvaluator
from util.box_ops import box_cxcywh_to_xyxy

LONGEST_MASK = 320  # pixels of a mask in the page


class Region(NamedTuple):
    """Something marked in a picture: an object, a detection or a segment.

    label: category id.
    box: x0 y0 x1 y1, relative to the picture, each in [0, 1].
    score: in [0, 1]; None for ground truth and for segments.
    mask: bool [h, w] over the whole picture, at any resolution; None where there is none.
    """

    label: int
    box: tuple[float, float, float, float]
    score: float | None = None
    mask: np.ndarray | None = None


def thinned(mask: np.ndarray, longest: int = LONGEST_MASK) -> np.ndarray:
    """Every n-th row and column of a mask [h, w], so that its longer side is about `longest` or below."""
    step = max(1, round(max(mask.shape) / longest))
    return mask[::step, ::step]


class Boxes(NamedTuple):
    """Boxes of many images as columns of length N.

    image_id, label: int64; box: float64 [N, 4], x, y, width, height in pixels; score: float64, nan for ground
    truth; crowd: bool, of ground truth.
    """

    image_id: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    crowd: np.ndarray


MOST_MASKS = 20  # detections with masks in a picture: each is decoded at the picture's full size


class ReportSource:
    """Reads pictures and their ground truth from a data set, detections from what the evaluators kept.

    Args:
        dataset: CocoDetection or CocoPanoptic, of the validation split.
        panoptic_folder: where a PanopticEvaluator writes its predictions; None: there is none.
        white_level: see datasets.images.read_image.
    """

    def __init__(self, dataset: Any, panoptic_folder: Path | None = None, white_level: float | None = None):
        self.dataset, self.white_level = dataset, white_level
        self.panoptic_folder = panoptic_folder
        self._index = {image_id: index for index, image_id in enumerate(dataset.ids)}
        self._sizes: dict[int, tuple[int, int]] = {}  # width, height in pixels

    def image_ids(self, count: int) -> list[int]:
        """The first images of the split."""
        return self.dataset.ids[:count]

    def picture_file(self, image_id: int) -> Path:
        """The file of a picture."""
        return self.dataset.image_path(self._index[image_id])

    def stated_size(self, image_id: int) -> tuple[int | None, int | None]:
        """Width and height of a picture as its entry states them, which say how it is seen."""
        return self.dataset.stated_size(self._index[image_id])

    def truth(self, image_id: int) -> list[Region]:
        """What is to be found in a picture, as the model's targets have it."""
        _, target = self.dataset[self._index[image_id]]
        self._sizes[image_id] = int(target["orig_size"][1]), int(target["orig_size"][0])
        boxes = box_cxcywh_to_xyxy(target["boxes"]).clamp(0, 1).tolist()
        masks: Sequence[np.ndarray | None] = [None] * len(boxes)
        if "masks" in target:  # a report keeps them from epoch to epoch
            masks = [thinned(mask.bool().numpy()).copy() for mask in target["masks"]]
        rows = zip(target["labels"].tolist(), boxes, masks, strict=True)
        return [Region(label, tuple(box), None, mask) for label, box, mask in rows]

    def found(
        self, image_ids: Sequence[int], evaluator: CocoEvaluator | None, count: int
    ) -> dict[int, list[Region]]:
        """By image id the segments of a panoptic model, else at most `count` detections of highest score.

        Call it after `truth` of the same images, which learns how large they are.
        """
        if self.panoptic_folder is not None:
            return self.predicted_segments(image_ids)
        if evaluator is None:
            return {image_id: [] for image_id in image_ids}
        columns = _of_known_classes(evaluator)
        count = min(count, MOST_MASKS) if "rle" in columns else count
        regions = {}
        for image_id in image_ids:
            rows = np.flatnonzero(columns["image_id"] == image_id)
            rows = rows[np.argsort(-columns["score"][rows], kind="stable")][:count]
            of_image = {name: values[rows] for name, values in columns.items()}
            regions[image_id] = detections(of_image, *self._sizes[image_id])
        return regions

    def boxes(self, evaluator: CocoEvaluator | None, count: int) -> tuple[Boxes, Boxes] | None:
        """Detections and ground truth of at most `count` evaluated images; None without boxes."""
        if evaluator is None or "bbox" not in evaluator.iou_types:
            return None
        ids = set(evaluator.img_ids[:count])
        columns = _of_known_classes(evaluator)
        if len(ids) < len(evaluator.img_ids):
            here = np.isin(columns["image_id"], list(ids))
            columns = {name: values[here] for name, values in columns.items()}
        image_id, label, box, score = (columns[key] for key in ("image_id", "label", "box", "score"))
        found = Boxes(image_id, label, box, score, np.zeros(len(score), bool))
        objects = [a for a in evaluator.coco_gt.anns.values() if a["image_id"] in ids]
        truth = Boxes(
            np.array([a["image_id"] for a in objects], np.int64),
            np.array([a["category_id"] for a in objects], np.int64),
            np.array([a["bbox"] for a in objects], float).reshape(-1, 4),
            np.full(len(objects), np.nan),
            np.array([bool(a.get("iscrowd", 0)) for a in objects], bool),
        )
        return found, truth

    def class_figures(self, evaluator: CocoEvaluator | None) -> dict[str, Sequence[dict[str, Any]]]:
        """Rows of figures in [0, 1] by `id`: `bbox` and `segm` (AP, AP50, AR), `panoptic` (pq, sq, rq)."""
        figures: dict[str, Sequence[dict[str, Any]]] = {}
        if self.panoptic_folder is not None:
            numbers = ("pq", "sq", "rq")
            with open(self.panoptic_folder / "per_class.csv", newline="", encoding="utf-8") as file:
                figures["panoptic"] = [
                    {**row, "id": int(row["id"]), **{k: float(row[k]) if row[k] else None for k in numbers}}
                    for row in csv.DictReader(file)
                ]
        if evaluator is not None:
            figures |= {kind: evaluator.per_class(kind) for kind in evaluator.iou_types}
        return figures

    def predicted_segments(self, image_ids: Sequence[int]) -> dict[int, list[Region]]:
        """The panoptic predictions that the evaluator wrote."""
        from datasets.panoptic_png import read_ids  # pages of boxes need none of it

        assert self.panoptic_folder is not None
        content = json.loads((self.panoptic_folder / "predictions.json").read_text(encoding="utf-8"))
        entries = {entry["image_id"]: entry for entry in content["annotations"]}
        regions = {}
        for image_id in image_ids:
            ids = thinned(read_ids(self.panoptic_folder / entries[image_id]["file_name"]))
            masks = [(ids == s["id"], s["category_id"]) for s in entries[image_id]["segments_info"]]
            regions[image_id] = [Region(label, bounds(mask), None, mask) for mask, label in masks]
        return regions


def _of_known_classes(evaluator: CocoEvaluator) -> dict[str, np.ndarray]:
    """The predictions of classes that the ground truth lists: others are not evaluated."""
    columns = evaluator.predictions()
    known = np.isin(columns["label"], list(evaluator.coco_gt.cats))
    return {name: values[known] for name, values in columns.items()}


def detections(columns: dict[str, np.ndarray], width: int, height: int) -> list[Region]:
    """The predictions of one image, as columns, as regions."""
    masks: Sequence[np.ndarray | None] = [None] * len(columns["score"])
    if "rle" in columns:
        from pycocotools import mask as coco_mask

        codes = zip(columns["size"].tolist(), columns["rle"], strict=True)
        decoded = (coco_mask.decode({"size": size, "counts": counts}) for size, counts in codes)
        masks = [thinned(mask).astype(bool) for mask in decoded]
    boxes = columns["box"].copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = (boxes / [width, height, width, height]).clip(0, 1)
    rows = zip(columns["label"].tolist(), boxes.tolist(), columns["score"].tolist(), masks, strict=True)
    return [Region(label, tuple(box), score, mask) for label, box, score, mask in rows]


def bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box around a mask [h, w], relative to it; empty for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
