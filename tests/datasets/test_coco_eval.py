"""The COCO evaluator against pycocotools' own COCOeval, its promises about memory, files and processes."""

import contextlib
import copy
import functools
import gc
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.coco_eval import CocoEvaluator, encode_masks
from tests.ranks import ranks
from tests.reference.settings import quiet
from util.errors import UserError

BOTH = ("bbox", "segm")
HEIGHT, WIDTH = 180, 240  # boxes in it are small, medium and large


def build_coco(dataset):
    coco = COCO()
    coco.dataset = dataset
    with quiet():
        coco.createIndex()
    return coco


def ellipse(box):
    """A mask [h, w] inside a box of x, y, width, height."""
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    across, down = (columns - x - width / 2) / (width / 2), (rows - y - height / 2) / (height / 2)
    return across**2 + down**2 < 1


def random_boxes(random, count):
    corner = random.uniform(0, [WIDTH * 0.5, HEIGHT * 0.5], (count, 2))
    return np.concatenate([corner, random.uniform(6, [WIDTH * 0.7, HEIGHT * 0.7], (count, 2))], 1)


def annotation(random, annotation_id, image_id, category, box, crowd):
    x, y, width, height = box.tolist()
    polygon = [x, y, x + width, y, x + width * 0.9, y + height, x, y + height * 0.8]
    run_lengths = mask_utils.encode(np.asfortranarray(ellipse(box).astype(np.uint8)))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category,
        "bbox": [x, y, width, height],
        "area": width * height * 0.8,
        "iscrowd": int(crowd),
        "segmentation": {**run_lengths, "counts": run_lengths["counts"].decode()} if crowd else [polygon],
    }


def scene(seed, images=30, predictions=40, categories=(1, 3, 90), masks=False, ids=None, grain=2):
    """Ground truth (a dataset dict) and predictions: images without objects, without predictions, crowds,
    a category that nothing shows, one that ground truth lacks, and scores of few values, hence ties."""
    random = np.random.default_rng(seed)
    ids = list(ids or range(7, 7 + 3 * images, 3))
    annotations: list[dict] = []
    predicted: dict[int, dict] = {}
    for index, image_id in enumerate(ids):
        boxes = random_boxes(random, 0 if index % 7 == 3 else random.poisson(6))
        labels = random.choice(categories, len(boxes))
        for box, label in zip(boxes, labels, strict=True):
            crowd = random.random() < 0.15
            annotations.append(annotation(random, len(annotations) + 1, image_id, int(label), box, crowd))
        count = 0 if index % 5 == 2 else int(random.integers(1, predictions + 1))
        found = random_boxes(random, count)
        near = min(count, len(boxes))
        found[:near] = boxes[:near] + random.normal(0, 3, (near, 4))
        found[:, 2:] = found[:, 2:].clip(1)
        found_labels = random.choice([*categories, 1000], count)
        found_labels[:near] = labels[:near]
        scores = random.random(count)
        scores[:near] **= 0.5
        corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
        predicted[image_id] = {
            "scores": torch.from_numpy(scores.round(grain)).float(),
            "labels": torch.from_numpy(found_labels),
            "boxes": torch.from_numpy(corners).float(),
        }
        if masks:
            shapes = np.array([ellipse(box) for box in found], bool).reshape(count, 1, HEIGHT, WIDTH)
            shapes[count // 2 : count // 2 + 1] = False  # an empty mask
            predicted[image_id]["masks"] = torch.from_numpy(shapes)
    dataset = {
        "info": {},
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in reversed(ids)],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in (*categories, 17)],
    }
    return dataset, predicted


@functools.cache
def scene_of_masks():
    """One scene for many tests, none of which changes it."""
    return scene(2, images=8, predictions=60, masks=True)


def results_of(predicted, iou_type):
    """The predictions as the list of dicts that pycocotools loads."""
    results = []
    for image_id, entry in predicted.items():
        boxes = torch.cat([entry["boxes"][:, :2], entry["boxes"][:, 2:] - entry["boxes"][:, :2]], 1)
        for row, (score, label) in enumerate(zip(entry["scores"], entry["labels"], strict=True)):
            result = {"image_id": image_id, "category_id": label.item(), "score": score.item()}
            if iou_type == "bbox":
                result["bbox"] = boxes[row].tolist()
            else:
                pixels = np.asfortranarray(entry["masks"][row, 0].numpy().astype(np.uint8))
                result["segmentation"] = mask_utils.encode(pixels)
            results.append(result)
    return results


def set_params(result, params):
    for name, value in params.items():
        setattr(result.params, name, copy.deepcopy(value))


def plain_evaluation(dataset, predicted, iou_type, max_dets=(1, 10, 100), params=None):
    """pycocotools' COCOeval over the images that were predicted, and what it printed last."""
    coco = build_coco(copy.deepcopy(dataset))
    results = results_of(predicted, iou_type)
    text = io.StringIO()
    with quiet():
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), iou_type)
        evaluation.params.imgIds = list(predicted)
        evaluation.params.maxDets = list(max_dets)
        set_params(evaluation, params or {})
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(text):
        evaluation.summarize()
    return evaluation, text.getvalue()


def evaluate(dataset, predicted, iou_types, batch=4, max_dets=None, params=None):
    """The evaluator given `batch` images at a time, and what it printed."""
    evaluator = CocoEvaluator(build_coco(dataset), iou_types, max_dets)
    for result in evaluator.coco_eval.values():
        set_params(result, params or {})
    ids = list(predicted)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        for start in range(0, len(ids), batch):
            evaluator.update({i: predicted[i] for i in ids[start : start + batch]})
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator, text.getvalue()


def figures(evaluator):
    """Accumulate and summarize, anew where it was done before, without printing."""
    with quiet():
        evaluator.accumulate()
        evaluator.summarize()


def assert_as_pycocotools(dataset, predicted, iou_type="bbox", **options):
    """The evaluator's figures are pycocotools' -> the evaluator's result."""
    result = evaluate(dataset, predicted, [iou_type], **options)[0].coco_eval[iou_type]
    assert_same(result, plain_evaluation(dataset, predicted, iou_type)[0])
    return result


def assert_same(result, expected):
    assert list(result.eval["counts"]) == list(expected.eval["counts"])
    for name in ("precision", "recall", "scores"):
        assert result.eval[name].shape == expected.eval[name].shape
        np.testing.assert_allclose(result.eval[name], expected.eval[name], rtol=0, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(result.stats, expected.stats, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "iou_types, seed", [*((["bbox"], n) for n in range(6)), *((BOTH, n) for n in range(3))]
)
def test_figures_as_pycocotools(iou_types, seed):
    masks = "segm" in iou_types
    dataset, predicted = scene(seed, predictions=20 if masks else 40, masks=masks)
    evaluator, text = evaluate(dataset, predicted, iou_types, batch=1 + seed)
    expected_text = ""
    for iou_type in iou_types:
        expected, printed = plain_evaluation(dataset, predicted, iou_type)
        assert (expected.stats > 0.01).all() and (expected.stats < 0.95).all()  # it holds right and wrong
        assert_same(evaluator.coco_eval[iou_type], expected)
        expected_text += f"IoU metric: {iou_type}\n" + printed
    assert text == expected_text
    assert evaluator.img_ids == sorted(predicted)


def test_many_masks_in_one_update():
    dataset, predicted = scene(5, images=4, predictions=70, masks=True)
    assert_as_pycocotools(dataset, predicted, "segm", batch=4)  # 280 masks at once


def test_masks_alone_need_no_boxes():
    dataset, predicted = scene(5, predictions=10, masks=True)
    expected, _ = plain_evaluation(dataset, predicted, "segm")
    for entry in predicted.values():
        del entry["boxes"]
    assert_same(evaluate(dataset, predicted, ["segm"])[0].coco_eval["segm"], expected)


@pytest.mark.parametrize("max_dets", [5, 100, 250])
def test_further_limit_leaves_the_standard_figures(max_dets):
    """Of more predictions than pycocotools looks at, many of one score."""
    dataset, predicted = scene(1, images=8, predictions=500, categories=(1, 2), grain=1)
    assert max(int((entry["labels"] == 1).sum()) for entry in predicted.values()) > 100
    evaluator, text = evaluate(dataset, predicted, ["bbox"], max_dets=max_dets)
    assert_same(evaluator.coco_eval["bbox"], plain_evaluation(dataset, predicted, "bbox")[0])
    beyond = plain_evaluation(dataset, predicted, "bbox", max_dets=(1, 10, max_dets))[0].eval
    column = sorted((1, 10, max_dets)).index(max_dets)
    precision, recall = beyond["precision"][..., 0, column], beyond["recall"][..., 0, column]
    stats = evaluator.max_dets_stats["bbox"]
    assert stats["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert stats["AP50"] == pytest.approx(precision[0][precision[0] > -1].mean(), abs=1e-12)
    assert stats["AR"] == pytest.approx(recall[recall > -1].mean(), abs=1e-12)
    assert f"up to {max_dets} predictions per image: AP = {stats['AP']:.3f}" in text


def test_large_ids_and_images_out_of_order():
    base = 2**53
    ids = [base + 5, 3, base + 4, 1, base + 6, 9_000_000_000, base + 7, 2]
    dataset, predicted = scene(3, ids=ids, categories=(2**24 + 1, 2**24 + 2, 2**50))
    for number, entry in enumerate(dataset["annotations"]):
        entry["id"] = 2**60 + number
    assert_as_pycocotools(dataset, predicted, batch=3)


@pytest.mark.filterwarnings("error")
def test_annotation_oddities_as_pycocotools():
    """An id of 0, a stale `ignore`, no polygons, further keys."""
    dataset, predicted = scene(4)
    for number, entry in enumerate(dataset["annotations"]):
        entry["id"] = number
        entry["ignore"] = number % 2
        entry["is_crowd"] = 1
        entry["segmentation"] = []
    with_zero = assert_as_pycocotools(dataset, predicted)
    for entry in dataset["annotations"]:
        entry["id"] += 1
    without = plain_evaluation(dataset, predicted, "bbox")[0]
    assert not np.array_equal(with_zero.eval["precision"], without.eval["precision"])  # 0 does matter


def test_absent_area_and_crowd_flag():
    """pycocotools stops with a KeyError; here the box gives the area, and no flag means no crowd."""
    dataset, predicted = scene(2)
    complete = copy.deepcopy(dataset)
    for bare, full in zip(dataset["annotations"], complete["annotations"], strict=True):
        full["area"], full["iscrowd"] = full["bbox"][2] * full["bbox"][3], 0
        del bare["area"], bare["iscrowd"]
    assert_same(
        evaluate(dataset, predicted, ["bbox"])[0].coco_eval["bbox"],
        plain_evaluation(complete, predicted, "bbox")[0],
    )


def test_annotation_id_used_twice():
    """pycocotools then takes the last annotation with the id, even where it belongs to another image."""
    dataset, predicted = scene(1, images=8)
    entries = dataset["annotations"]
    entries[1]["id"] = entries[0]["id"]
    entries[2]["id"] = entries[-1]["id"]
    some = dict(list(predicted.items())[:4])  # without the image of the last annotation
    assert entries[-1]["image_id"] not in some and entries[2]["image_id"] in some
    assert_as_pycocotools(dataset, some)


def test_first_of_repeated_images_counts():
    dataset, predicted = scene(0)
    evaluator = CocoEvaluator(build_coco(dataset), ["bbox"])
    evaluator.update(predicted)
    worse = {i: {**entry, "scores": 1 - entry["scores"]} for i, entry in predicted.items()}
    evaluator.update(worse)
    for _ in range(2):  # gathering twice changes nothing
        evaluator.synchronize_between_processes()
    figures(evaluator)
    assert_same(evaluator.coco_eval["bbox"], plain_evaluation(dataset, predicted, "bbox")[0])


def test_nothing_predicted():
    dataset, predicted = scene(0, masks=True)
    for nothing in ({}, {k: v[:0] for k, v in predicted[7].items()}):
        evaluator, _ = evaluate(dataset, dict.fromkeys(predicted, nothing), ("bbox", "segm"))
        for result in evaluator.coco_eval.values():
            assert (result.stats == 0).any() and set(result.stats) <= {0.0, -1.0}
            assert result.stats[0] == 0 and result.eval["recall"][0, 0, 0, 2] == 0


def test_no_image_and_no_ground_truth():
    dataset, predicted = scene(0)
    assert set(evaluate(dataset, {}, ["bbox"])[0].coco_eval["bbox"].stats) == {-1.0}
    dataset["annotations"] = []
    assert set(assert_as_pycocotools(dataset, predicted).stats) == {-1.0}


def test_inputs_stay_as_they_are():
    dataset, predicted = scene(0, images=8, predictions=8, masks=True)
    coco, before = build_coco(dataset), copy.deepcopy(dataset)
    boxes = {i: entry["boxes"].clone() for i, entry in predicted.items()}
    evaluator = CocoEvaluator(coco, ("bbox", "segm"))
    evaluator.update(predicted)
    evaluator.accumulate()
    assert coco.dataset == before
    assert evaluator.coco_gt is coco
    assert gc.isenabled()  # it rests while dicts are made
    assert all(torch.equal(entry["boxes"], boxes[i]) for i, entry in predicted.items())


def test_one_copy_to_the_host_an_update(monkeypatch):
    dataset, predicted = scene(0, images=6)
    copies, original = [], torch.Tensor.cpu

    def spy(self):
        copies.append(self.shape)
        return original(self)

    monkeypatch.setattr(torch.Tensor, "cpu", spy)
    CocoEvaluator(build_coco(dataset), ["bbox"]).update(predicted)
    assert copies == [(sum(len(entry["scores"]) for entry in predicted.values()), 6)]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_mask_codes_as_pycocotools(dtype):
    random = np.random.default_rng(0)
    pixels = random.random((5, 1, 7, 11)) < 0.5
    pixels[3], pixels[4] = True, False
    expected = [mask_utils.encode(np.asfortranarray(mask[0].astype(np.uint8))) for mask in pixels]
    masks = torch.from_numpy(pixels).to(dtype)
    if dtype.is_floating_point:
        masks = masks * 0.4 + 0.2  # 0.2 outside, 0.6 inside
    assert encode_masks(masks) == expected
    assert encode_masks(masks[:0]) == []


def test_per_class_figures():
    dataset, predicted = scene(0)
    dataset["categories"][0]["name"] = 7  # of digits, say
    evaluator, _ = evaluate(dataset, predicted, ["bbox"])
    rows = evaluator.per_class()
    names = {1: "7", 3: "class 3", 17: "class 17", 90: "class 90"}
    assert [(row["id"], row["name"]) for row in rows] == list(names.items())
    for row in rows:
        if row["id"] == 17:
            assert row["AP"] is row["AP50"] is row["AR"] is None
            continue
        one = copy.deepcopy(dataset)
        one["categories"] = [{"id": row["id"], "name": ""}]
        stats = plain_evaluation(one, predicted, "bbox")[0].stats
        assert [row["AP"], row["AP50"], row["AR"]] == pytest.approx([stats[0], stats[1], stats[8]], abs=1e-12)


TWO_AREAS = {"areaRng": [[0, 1e10], [0, 50**2]], "areaRngLbl": ["all", "small"]}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    "params",
    [
        {"catIds": [3]},
        {"catIds": np.array([90, 1, 1])},
        {"catIds": range(1, 4)},  # 2 is no category
        {"catIds": 1},
        {"catIds": []},
        {"imgIds": [22, 10, 7, 10]},
        {"imgIds": []},
        {"useCats": 0},
        {"useCats": 0, "catIds": [1, 90], "imgIds": [7, 10, 13, 16]},
        {"maxDets": [7, 1, 3]},
        {"maxDets": np.array([1, 10, 100, 250])},
        {"maxDets": [5, 5, 5]},
        {"iouThrs": np.array([0.3, 0.5, 0.62])},
        {"iouThrs": [0.5]},
        {"recThrs": np.linspace(0, 1, 11)},
        {"areaRng": [[0, 1e10], [0, 2000], [2000, 9000], [9000, 1e10]]},
        TWO_AREAS,
    ],
    ids=str,
)
def test_chosen_params_as_pycocotools(params, iou_type):
    dataset, predicted = scene_of_masks()
    # pycocotools cannot summarize a list of thresholds.
    plain_params = {name: np.array(v) if name == "iouThrs" else v for name, v in params.items()}
    expected, expected_text = plain_evaluation(dataset, predicted, iou_type, params=plain_params)
    assert list(expected.eval["counts"]) != [10, 101, 4, 4, 3] or not np.allclose(
        expected.stats, plain_evaluation(dataset, predicted, iou_type)[0].stats
    )
    evaluator, text = evaluate(dataset, predicted, [iou_type], params=params)
    result = evaluator.coco_eval[iou_type]
    assert_same(result, expected)
    assert text == f"IoU metric: {iou_type}\n" + expected_text
    for name in ("catIds", "imgIds", "maxDets"):
        assert list(getattr(result.eval["params"], name)) == list(getattr(expected.eval["params"], name))
    assert len(evaluator.per_class(iou_type)) == result.eval["counts"][2]
    stats = result.stats
    figures(evaluator)  # again
    assert np.array_equal(result.stats, stats)


def test_one_class_between_gathering_and_figures():
    """How forks ask for one class's AP: after `synchronize_between_processes`, before `accumulate`."""
    dataset, predicted = scene(0)
    evaluator, _ = evaluate(dataset, predicted, ["bbox"])
    for category_id in (90, 1):
        params = {"catIds": [category_id]}
        set_params(evaluator.coco_eval["bbox"], params)
        figures(evaluator)
        expected = plain_evaluation(dataset, predicted, "bbox", params=params)[0]
        assert_same(evaluator.coco_eval["bbox"], expected)
        assert [row["id"] for row in evaluator.per_class()] == [category_id]


def test_images_added_after_the_figures():
    dataset, predicted = scene(0)
    some = dict(list(predicted.items())[:11])
    evaluator, _ = evaluate(dataset, some, ["bbox"])
    evaluator.update(predicted)
    figures(evaluator)
    assert_same(evaluator.coco_eval["bbox"], plain_evaluation(dataset, predicted, "bbox")[0])


@pytest.mark.parametrize(
    "params, message",
    [
        ({"imgIds": [7, 10, 13]}, r"coco_eval\['bbox'\].params.imgIds: image id 13 was never given"),
        ({"iouType": "segm"}, "leave iouType"),
        ({"useSegm": 1}, "leave iouType"),
        ({"maxDets": [100]}, r"params.maxDets: .* three limits, .* not \[100\]"),
    ],
)
def test_params_that_cannot_be_honoured(params, message):
    dataset, predicted = scene(0)
    with pytest.raises(UserError, match=message):
        evaluate(dataset, {i: predicted[i] for i in (7, 10)}, ["bbox"], params=params)


def assert_same_matches(entries, expected):
    assert len(entries) == len(expected)
    assert any(entry is not None and entry["dtMatches"].any() for entry in expected)
    for entry, wanted in zip(entries, expected, strict=True):
        assert (entry is None) == (wanted is None)
        if wanted is not None:
            assert set(entry) == set(wanted)
            for name, value in wanted.items():
                np.testing.assert_array_equal(entry[name], value, err_msg=name)


@pytest.mark.parametrize(
    "params", [{}, {"catIds": [3], "imgIds": [7, 10], **TWO_AREAS}, {"useCats": 0}], ids=str
)
def test_matches_of_each_image_as_pycocotools(params):
    dataset, predicted = scene(2, images=8, predictions=20, masks=True)
    before = copy.deepcopy(dataset)
    evaluator, _ = evaluate(dataset, predicted, ("bbox", "segm"), params=params)
    for iou_type, result in evaluator.coco_eval.items():
        precision = result.eval["precision"]
        expected = plain_evaluation(dataset, predicted, iou_type, params=params)[0]
        assert_same_matches(result.evalImgs, expected.evalImgs)
        assert result.evalImgs is result.evalImgs
        assert result.eval["precision"] is precision
        grid = evaluator.eval_imgs[iou_type]
        assert grid.shape == (*result.eval["counts"][2:4], len(result.params.imgIds))
        assert grid.ravel().tolist() == result.evalImgs
        with quiet():
            result.accumulate()  # pycocotools' own, over these
        np.testing.assert_allclose(result.eval["precision"], precision, atol=1e-12)
    assert dataset == before


def test_matches_are_computed_only_where_they_are_read(monkeypatch):
    dataset, predicted = scene(2, images=8, predictions=20)
    calls, original = [], COCOeval.evaluate

    def spy(self):
        calls.append(self)
        return original(self)

    monkeypatch.setattr(COCOeval, "evaluate", spy)
    evaluator = CocoEvaluator(build_coco(dataset), ["bbox"])
    assert evaluator.coco_eval["bbox"].evalImgs == [] and evaluator.eval_imgs["bbox"].shape == (4, 4, 0)
    some = dict(list(predicted.items())[:4])
    evaluator.update(some)
    evaluator.synchronize_between_processes()
    assert not calls
    assert evaluator.eval_imgs["bbox"].shape == (4, 4, 4) and len(calls) == 1
    evaluator.update(predicted)
    evaluator.accumulate()
    assert evaluator.per_class() and len(calls) == 1
    assert evaluator.eval_imgs["bbox"].shape == (4, 4, 8) and len(calls) == 2
    evaluator = pickle.loads(pickle.dumps(evaluator))
    assert evaluator.eval_imgs["bbox"].shape == (4, 4, 8) and len(calls) == 2


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_predictions_prepared_as_results(iou_type, tmp_path):
    dataset, predicted = scene(0, images=6, predictions=8, masks=True)
    predicted[9_000_000_000] = {}
    evaluator = CocoEvaluator(build_coco(dataset), ["bbox"])
    results = evaluator.prepare(predicted, iou_type)
    expected = results_of({i: entry for i, entry in predicted.items() if entry}, iou_type)
    for result in expected:
        if iou_type == "segm":
            result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
    assert results == expected and len(results) > 20
    kind = {"bbox": "detection", "segm": "segmentation"}[iou_type]
    assert getattr(evaluator, f"prepare_for_coco_{kind}")(predicted) == results
    assert evaluator.prepare({}, iou_type) == evaluator.prepare({7: {}}, iou_type) == []
    assert evaluator.img_ids == []
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    assert json.loads(file.read_text()) == expected
    with quiet():
        loaded = evaluator.coco_gt.loadRes(str(file))
    assert len(loaded.anns) == len(results)
    with pytest.raises(ValueError, match="'points'"):
        evaluator.prepare(predicted, "points")


def test_mistakes_are_named():
    dataset, predicted = scene(0, images=4)
    evaluator = CocoEvaluator(build_coco(dataset), ["bbox"])
    with pytest.raises(UserError, match="image id 5 "):
        evaluator.update({5: predicted[7]})
    broken = {**predicted[7], "scores": torch.full_like(predicted[7]["scores"], float("nan"))}
    with pytest.raises(UserError, match="image id 7: .* NaN"):
        evaluator.update({10: predicted[10], 7: broken})
    assert evaluator.img_ids == []
    del dataset["annotations"][2]["bbox"], dataset["annotations"][3]["segmentation"]
    with pytest.raises(UserError, match="annotation id 3 has no bbox"):
        evaluate(dataset, {i: {} for i in predicted}, ["bbox"])
    with pytest.raises(UserError, match="annotation id 4 has no segmentation"):
        evaluate(dataset, {i: {} for i in predicted}, ["segm"])
    for polygon in ([1, 2, 3], [1, 2, 3, math.nan, 5, 6], [1, 2, 3, 1e8, 5, 6]):
        dataset["annotations"][3]["segmentation"] = [polygon]
        with pytest.raises(UserError, match="segmentation of annotation 4 gives no mask"):
            evaluate(dataset, {i: {} for i in predicted}, ["segm"])
    for iou_types in ("bbox", "keypoints", ["bbox", "points"]):
        with pytest.raises(ValueError, match="iou_types"):
            CocoEvaluator(evaluator.coco_gt, iou_types)
    with pytest.raises(ValueError, match="max_dets"):
        CocoEvaluator(evaluator.coco_gt, ["bbox"], max_dets=0)


def test_saved_figures_load_with_pycocotools_alone():
    dataset, predicted = scene(0, images=5, masks=True)
    evaluator, _ = evaluate(dataset, predicted, ("bbox", "segm"))
    expected, _ = plain_evaluation(dataset, predicted, "bbox")
    assert set(evaluator.coco_eval["bbox"].eval) == set(expected.eval)
    for iou_type, result in evaluator.coco_eval.items():
        used: set[str] = set()

        class Unpickler(pickle.Unpickler):
            def find_class(self, module, name, used=used):
                used.add(module.partition(".")[0])
                return super().find_class(module, name)

        saved = Unpickler(io.BytesIO(pickle.dumps(result.eval))).load()
        assert used <= {"numpy", "pycocotools", "collections", "builtins", "_codecs", "datetime"}, used
        assert type(saved["params"]).__module__ == "pycocotools.cocoeval"
        assert saved["precision"].shape == (10, 101, 4, 4, 3)
        assert (saved["params"].iouType, saved["params"].maxDets) == (iou_type, [1, 10, 100])


def evaluate_share():
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    dataset, predicted = scene(0, images=20, predictions=15, masks=True)
    shared = set(list(predicted)[:3])  # images that both processes were dealt
    ids = [i for n, i in enumerate(predicted) if n % world_size == rank or i in shared]
    evaluator, text = evaluate(dataset, {i: predicted[i] for i in ids}, ("bbox", "segm"), batch=2)
    curves = {t: (r.eval["precision"], r.eval["recall"], r.stats) for t, r in evaluator.coco_eval.items()}
    return curves, evaluator.img_ids, text


def test_two_processes_as_one():
    answers = ranks().run(2, evaluate_share)
    dataset, predicted = scene(0, images=20, predictions=15, masks=True)
    whole, whole_text = evaluate(dataset, predicted, ("bbox", "segm"))
    for curves, img_ids, _ in answers:
        assert img_ids == sorted(predicted)
        for iou_type, (precision, recall, stats) in curves.items():
            result = whole.coco_eval[iou_type]
            assert np.array_equal(precision, result.eval["precision"])
            assert np.array_equal(recall, result.eval["recall"])
            assert np.array_equal(stats, result.stats)
    assert [text for *_, text in answers] == [whole_text, ""]
