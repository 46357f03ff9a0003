"""COCO's twelve box figures from the project's evaluator."""

from typing import Any

import numpy as np
import torch

from tests.reference.compare import Values
from tests.reference.settings import quiet
from tests.reference.streams import float_tensor, stream

IMAGES, DETECTIONS = 40, 30  # images, and detections in each
CATEGORIES = [1, 2, 3, 7, 44, 90]


def _draw_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """[count, 4]: left, top, width, height in a picture of 640 × 480."""
    ranges = ((0, 500), (0, 380), (5, 140), (5, 100))
    return np.stack([random.uniform(low, high, count) for low, high in ranges], axis=1)


def _draw_image(random: np.random.Generator, image_id: int) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Annotations, none in every seventh image, a tenth of them crowds; and noisy detections of them."""
    count = int(random.poisson(5)) if image_id % 7 else 0
    boxes, categories = _draw_boxes(random, count), random.choice(CATEGORIES, count)
    annotations = [
        {
            "image_id": image_id,
            "category_id": int(category),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3] * 0.8),
            "iscrowd": int(random.random() < 0.1),
        }
        for box, category in zip(boxes, categories, strict=True)
    ]
    found = _draw_boxes(random, DETECTIONS)
    labels, scores = random.choice(CATEGORIES, DETECTIONS), random.random(DETECTIONS)
    count = min(count, DETECTIONS)
    found[:count] = boxes[:count] + random.normal(0, 5, (count, 4))
    labels[:count] = categories[:count]
    corners = np.hstack([found[:, :2], found[:, :2] + found[:, 2:].clip(1)])
    return annotations, {
        "scores": float_tensor(scores),
        "labels": torch.from_numpy(labels),
        "boxes": float_tensor(corners),
    }


def coco_figures(seed: int) -> Values:
    """The figures after updates of two images each, as an evaluation in batches gives them."""
    from pycocotools.coco import COCO

    from datasets.coco_eval import CocoEvaluator

    random = stream("cocoeval", seed)
    annotations: list[dict[str, Any]] = []
    detections = {}
    for image_id in range(1, IMAGES + 1):
        entries, detections[image_id] = _draw_image(random, image_id)
        annotations += [{"id": len(annotations) + 1 + i, **entry} for i, entry in enumerate(entries)]
    ground_truth = COCO()
    ground_truth.dataset = {
        "info": {},
        "images": [{"id": image_id, "width": 640, "height": 480} for image_id in detections],
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in CATEGORIES],
    }
    with quiet():
        ground_truth.createIndex()
        evaluator = CocoEvaluator(ground_truth, ("bbox",))
        for first in range(1, IMAGES + 1, 2):
            evaluator.update({image_id: detections[image_id] for image_id in (first, first + 1)})
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    return {"coco_eval/stats": np.array(evaluator.coco_eval["bbox"].stats)}
