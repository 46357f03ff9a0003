"""Figures of COCO boxes and of panoptic quality, from predictions that are already made."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from benchmarks.measure import Work
from benchmarks.reference import evaluation as plain
from benchmarks.settings import Settings
from benchmarks.stages import Stage
from benchmarks.workloads import coco_predictions, write_panoptic
from datasets.coco_eval import CocoEvaluator
from datasets.panoptic_eval import panoptic_quality


def _coco(settings: Settings, side: str, images: int) -> Work:
    """100 predictions for each image, until the twelve figures are printed."""
    coco, predictions = coco_predictions(settings.pick(images, 10), 100)

    def ours() -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = CocoEvaluator(coco, ["bbox"])
            for image_id, found in predictions.items():
                evaluator.update({image_id: found})
            evaluator.accumulate()
            evaluator.summarize()
        return evaluator.coco_eval["bbox"].stats.tolist()

    def reference() -> list[float]:
        return plain.coco_figures(coco, predictions)

    return Work(ours if side == "ours" else reference, items=len(predictions))


def _panoptic_quality(settings: Settings, side: str) -> Work:
    """Files of truth and predictions, in one process; the reference counts pixels in a dictionary."""
    images = settings.pick(48, 3)
    folder = settings.folder / f"panoptic{images}"
    files = write_panoptic(folder, images, *settings.image_size(480, 640))

    def ours() -> list[float]:
        figures = panoptic_quality(*files, workers=1)
        return [figures[group]["pq"] or 0.0 for group in ("All", "Things", "Stuff")]

    def reference() -> list[float]:
        return list(plain.panoptic_quality(*files).values())

    return Work(ours if side == "ours" else reference, items=images)


def _largest_difference(a: list[Any], b: list[Any]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


STAGES = [
    Stage(
        "coco",
        "COCO evaluation, 2,000 images x 100 boxes",
        lambda settings, side: _coco(settings, side, 2000),
        target=7,
        rounds=3,
        difference=_largest_difference,
        tolerance=1e-6,
    ),
    Stage(
        "coco-5000",
        "COCO evaluation, 5,000 images x 100 boxes",
        lambda settings, side: _coco(settings, side, 5000),
        rounds=1,
        difference=_largest_difference,
        tolerance=1e-6,
    ),
    Stage(
        "coco-5000-memory",
        "memory of that evaluation",
        lambda settings, side: _coco(settings, side, 5000),
        rounds=1,
        unit="bytes",
    ),
    Stage(
        "pq",
        "panoptic quality, 48 images",
        _panoptic_quality,
        target=5,
        difference=_largest_difference,
        tolerance=1e-9,
    ),
]
