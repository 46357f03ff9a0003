"""Evaluation against pycocotools and against losses averaged by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from engine import evaluate
from models.postprocess import PostProcess
from tests.reference.settings import quiet
from tests.stand_in import (
    CLASSES,
    CPU,
    WEIGHTS,
    Batch,
    assert_equal_weights,
    make_batch,
    make_criterion,
    make_detector,
    weights_of,
)


def ground_truth(batches: list[Batch]) -> COCO:
    """The targets of some batches as a pycocotools object; image ids must differ."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for target in (target for _, targets in batches for target in targets):
        height, width = target["orig_size"].tolist()
        image_id = int(target["image_id"])
        images.append({"id": image_id, "height": height, "width": width})
        scale = torch.tensor([width, height, width, height])
        for label, (x, y, w, h) in zip(
            target["labels"].tolist(), (target["boxes"] * scale).tolist(), strict=True
        ):
            record = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "iscrowd": 0}
            annotations.append({**record, "bbox": [x - w / 2, y - h / 2, w, h], "area": w * h})
    coco = COCO()
    categories = [{"id": i, "name": str(i)} for i in range(1, CLASSES)]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with quiet():
        coco.createIndex()
    return coco


def batches_like_predictions(model: nn.Module, number: int) -> list[Batch]:
    """Batches of two images, in which most objects are where the model sees some: its AP is above 0."""
    draw = torch.Generator().manual_seed(3)
    batches = []
    for i in range(number):
        samples, targets = make_batch(3, 2, seed=i)
        with torch.no_grad():
            out = model(samples)
        made = []
        for k, target in enumerate(targets):
            count = len(target["labels"])
            near = out["pred_boxes"][k, :count] * (0.9 + 0.2 * torch.rand(count, 4, generator=draw))
            labels = out["pred_logits"][k, :count, 1:-1].argmax(-1) + 1
            made.append({**target, "labels": labels, "boxes": near, "image_id": torch.tensor([10 * i + k])})
        batches.append((samples, tuple(made)))
    return batches


def evaluate_quietly(model: nn.Module, criterion: nn.Module, batches: Any, truth: COCO) -> Any:
    with quiet():
        return evaluate(model, criterion, {"bbox": PostProcess()}, batches, truth, CPU, "")


def figures_by_pycocotools(model: nn.Module, batches: list[Batch], truth: COCO) -> np.ndarray:
    results = []
    for samples, targets in batches:
        with torch.no_grad():
            sizes = torch.stack([target["orig_size"] for target in targets])
            detections = PostProcess()(model(samples), sizes)
        for target, found in zip(targets, detections, strict=True):
            corners = found["boxes"].double().numpy()
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
            rows = zip(boxes, found["scores"].tolist(), found["labels"].tolist(), strict=True)
            image_id = int(target["image_id"])
            results += [{"image_id": image_id, "bbox": b, "score": s, "category_id": c} for b, s, c in rows]
    with quiet():
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_evaluation_gives_cocos_figures() -> None:
    model = make_detector()
    batches = batches_like_predictions(model, 4)
    truth = ground_truth(batches)
    stats, evaluator = evaluate_quietly(model, make_criterion(), batches, truth)
    figures = figures_by_pycocotools(model, batches, truth)
    assert 0.1 < figures[0] < 0.9, "else little is tested"
    assert stats["coco_eval_bbox"] == pytest.approx(figures.tolist(), abs=1e-9)
    assert evaluator.coco_eval["bbox"].stats.tolist() == stats["coco_eval_bbox"]
    assert {"params", "precision", "recall", "scores"} <= set(evaluator.coco_eval["bbox"].eval)


def test_evaluation_sets_the_mode_of_model_and_criterion() -> None:
    model, criterion = make_detector().train(), make_criterion().train()
    evaluate_quietly(model, criterion, [make_batch(1)], ground_truth([make_batch(1)]))
    assert not model.training and not criterion.training


def test_evaluation_averages_the_losses_of_its_batches() -> None:
    model = make_detector()
    batches = batches_like_predictions(model, 3)
    weights = weights_of(model)
    stats, _ = evaluate_quietly(model, make_criterion(), batches, ground_truth(batches))
    with torch.no_grad():
        rows = [make_criterion()(model(samples), list(targets)) for samples, targets in batches]
    means = {name: float(np.mean([float(row[name]) for row in rows])) for name in rows[0]}
    expected = {f"{name}_unscaled": value for name, value in means.items()}
    expected |= {name: means[name] * weight for name, weight in WEIGHTS.items()}
    expected |= {"class_error": means["class_error"], "loss": sum(expected[name] for name in WEIGHTS)}
    assert set(stats) == {*expected, "coco_eval_bbox"}
    assert {name: stats[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert_equal_weights(weights_of(model), weights)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_without_objects_is_evaluated() -> None:
    model = make_detector()
    batches = [make_batch(0, 2)]
    stats, evaluator = evaluate_quietly(model, make_criterion(), batches, ground_truth(batches))
    assert sorted(evaluator.img_ids) == [0, 1]
    assert len(stats["coco_eval_bbox"]) == 12 and math.isfinite(stats["loss"])
