"""What users of the published evaluator do with it: keypoints, and its functions one by one."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets import coco_eval
from datasets.coco_eval import CocoEvaluator
from tests.datasets.test_coco_eval import build_coco, results_of, scene
from tests.reference.settings import quiet
from util.errors import UserError

POINTS = 17


def people(seed: int) -> tuple[COCO, dict[int, dict[str, torch.Tensor]], list[dict[str, Any]]]:
    """Ground truth, predictions as `update` takes them, and the same as pycocotools loads them."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    predicted: dict[int, dict[str, torch.Tensor]] = {}
    results: list[dict[str, Any]] = []
    for image_id in range(5, 25):
        scores, points = [], []
        for _ in range(random.poisson(3)):
            x, y, side = random.uniform([10, 10, 40], [90, 90, 120])
            true = np.stack([random.uniform(x, x + side, POINTS), random.uniform(y, y + side, POINTS)], 1)
            seen = random.integers(0, 3, POINTS) * (random.random() < 0.9)
            record: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1}
            record |= {"iscrowd": 0, "bbox": [x, y, side, side], "area": side * side * 0.6}
            flat = np.column_stack([true, seen]).flatten().tolist()
            annotations.append({**record, "keypoints": flat, "num_keypoints": int((seen > 0).sum())})
            for _ in range(random.integers(0, 3)):
                points.append(np.column_stack([true + random.normal(0, 6, true.shape), np.ones(POINTS)]))
                scores.append(float(random.random()))
        entry = {
            "scores": torch.tensor(scores, dtype=torch.float32),
            "labels": torch.ones(len(scores), dtype=torch.int64),
            "boxes": torch.zeros(len(scores), 4),
            "keypoints": torch.from_numpy(np.array(points).reshape(-1, POINTS, 3)).float(),
        }
        predicted[image_id] = entry
        for score, one in zip(entry["scores"].tolist(), entry["keypoints"].flatten(1).tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": 1, "keypoints": one, "score": score})
    names = [str(i) for i in range(POINTS)]
    images = [{"id": i, "height": 240, "width": 240} for i in range(5, 25)]
    categories = [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}]
    coco = build_coco({"info": {}, "images": images, "annotations": annotations, "categories": categories})
    return coco, predicted, results


@pytest.mark.parametrize("seed", [0, 1])
def test_keypoints_as_pycocotools(seed: int) -> None:
    truth, predicted, results = people(seed)
    evaluator = CocoEvaluator(truth, ["keypoints"])
    for image_id, entry in predicted.items():
        evaluator.update({image_id: entry})
    evaluator.synchronize_between_processes()
    with quiet():
        evaluator.accumulate()
        evaluator.summarize()
        expected = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    found = evaluator.coco_eval["keypoints"]
    assert len(found.stats) == 10 and 0.1 < expected.stats[0] < 0.95
    np.testing.assert_allclose(found.stats, expected.stats, atol=1e-12)
    np.testing.assert_allclose(found.eval["precision"], expected.eval["precision"], atol=1e-12)
    assert evaluator.prepare(predicted, "keypoints") == results
    assert evaluator.prepare_for_coco_keypoint(predicted) == results
    assert len(found.evalImgs) == len(expected.evalImgs)


def test_an_annotation_without_keypoints_is_named() -> None:
    truth, predicted, _ = people(0)
    del truth.anns[2]["keypoints"]
    evaluator = CocoEvaluator(truth, ["keypoints"])
    evaluator.update(predicted)
    with pytest.raises(UserError, match="annotation id 2 has no keypoints"):
        evaluator.accumulate()


def evaluated(truth: COCO, predicted: dict, iou_type: str, image_ids: list[int]) -> tuple[COCOeval, Any]:
    with quiet():
        results = results_of({i: predicted[i] for i in image_ids}, iou_type)
        one = COCOeval(truth, truth.loadRes(results), iou_type)
    one.params.imgIds = list(image_ids)
    return one, coco_eval.evaluate(one)


@pytest.mark.parametrize("use_cats", [0, 1])
def test_evaluate_gives_the_grid_of_its_images(use_cats: int, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, predicted = scene(3)
    truth = build_coco(dataset)
    ids = [i for i in predicted if len(predicted[i]["scores"])][:6]
    with quiet():
        one = COCOeval(truth, truth.loadRes(results_of({i: predicted[i] for i in ids}, "bbox")), "bbox")
        one.params.imgIds, one.params.useCats = ids[::-1], use_cats
        expected = copy.deepcopy(one)
        expected.evaluate()
    image_ids, grid = coco_eval.evaluate(one)
    assert capsys.readouterr().out == ""
    assert image_ids == sorted(ids)
    assert grid.shape == (len(one.params.catIds) if use_cats else 1, 4, 6)
    assert [e and e["dtIds"] for e in grid.flatten()] == [e and e["dtIds"] for e in expected.evalImgs]


def test_merged_batches_are_one_evaluation() -> None:
    """As the published evaluator does it, a batch at a time; an image that is there twice counts once."""
    dataset, predicted = scene(4)
    truth = build_coco(dataset)
    ids = [i for i in predicted if len(predicted[i]["scores"])]
    parts = [evaluated(truth, predicted, "bbox", part) for part in (ids[:4], ids[4:], ids[:2])]
    seen = [i for _, (image_ids, _) in parts for i in image_ids]
    grid = np.concatenate([grid for _, (_, grid) in parts], 2)
    merged_ids, merged = coco_eval.merge(seen, grid)
    assert merged_ids.tolist() == sorted(ids) and merged.shape[2] == len(ids)
    together = parts[0][0]
    coco_eval.create_common_coco_eval(together, seen, grid)
    expected, _ = evaluated(truth, predicted, "bbox", ids)
    with quiet():
        for one in (together, expected):
            one.accumulate()
            one.summarize()
    assert expected.stats[0] > 0.1
    np.testing.assert_array_equal(together.stats, expected.stats)
