"""The COCO figures of boxes and instance masks, with pycocotools' interface and C++ speed.

Predictions are kept as arrays. Only when figures are wanted are they turned, one category at a time, into the
dicts that faster-coco-eval reads: no category's figures depend on another's, so memory is that of the largest
category. What a user reads stays pycocotools': each value of `coco_eval` is a pycocotools COCOeval, with
`eval` and `stats` filled.

Shape letters: N predictions; T IoU thresholds, R recall thresholds, K categories, A area ranges, M limits of
predictions per image. Over 300 lines, so that the way from predictions to figures is in one place.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import warnings
from collections.abc import Mapping, Sequence
from functools import partialmethod
from typing import Any

import faster_coco_eval
import numpy as np
import torch
from pycocotools.coco import COCO

from datasets.coco_results import (
    Columns,
    LazyCOCOeval,
    annotations_of,
    as_dicts,
    as_results,
    concatenate,
    convert_to_xywh,
    create_common_coco_eval,
    encode_masks,
    evaluate,
    merge,
    to_columns,
)
from util.distributed import all_gather, is_main_process
from util.errors import UserError

# `evaluate`, `merge` and `create_common_coco_eval` are for user-defined evaluators; ours matches in C++.
__all__ = [
    "CocoEvaluator",
    "convert_to_xywh",
    "create_common_coco_eval",
    "encode_masks",
    "evaluate",
    "merge",
]

IOU_TYPES = ("bbox", "segm", "keypoints")

Curves = dict[str, np.ndarray]  # precision [T, R, K, A, M], recall [T, K, A, M], scores [T, R, K, A, M]


class CocoEvaluator:
    """Collects predictions over a data set and computes the twelve COCO figures.

    Only images given to `update` are evaluated; one without predictions counts with all it should have had.
    An image given more than once, by one process or by several, counts once, as it was given first. The
    ground truth is read, never changed.

    Args:
        coco_gt: ground truth as a pycocotools COCO object, read from a file or built in memory.
        iou_types: any of 'bbox', 'segm' and 'keypoints'. Keypoints have ten figures in place of twelve.
        max_dets: a further limit of predictions per image, reported beside the standard 1, 10 and 100; the
            twelve figures do not change.

    Attributes:
        img_ids: ids of the images seen; after `synchronize_between_processes` sorted and of all processes.
        coco_eval: for each IoU type a pycocotools COCOeval. Its `eval` (after `accumulate`) holds params,
            counts, date, precision [T, R, K, A, M], recall [T, K, A, M] and scores [T, R, K, A, M], -1 where
            there is no ground truth; its `stats` (after `summarize`) the twelve figures [12]. Its `params`
            may be changed before `accumulate`: with catIds or imgIds only these categories, or these of the
            images seen, are evaluated; with useCats 0 labels do not matter, and K is 1. Its `evalImgs` (after
            `synchronize_between_processes` or `accumulate`) are pycocotools' results of each image, which
            are computed, slowly, when they are first read.
        max_dets_stats: for each IoU type AP, AP50, AP75 and AR at `max_dets` (after `accumulate`).

    Raises:
        ValueError: another IoU type, or a limit below 1.
    """

    def __init__(self, coco_gt: COCO, iou_types: Sequence[str], max_dets: int | None = None) -> None:
        if isinstance(iou_types, str) or not set(iou_types) <= set(IOU_TYPES):
            raise ValueError(f"iou_types must be a sequence of {', '.join(IOU_TYPES)}, not {iou_types!r}")
        if max_dets is not None and max_dets < 1:
            raise ValueError(f"max_dets must be at least 1, not {max_dets}")
        self.coco_gt, self.iou_types, self.max_dets = coco_gt, iou_types, max_dets
        self.img_ids: list[int] = []
        self.coco_eval = {iou_type: LazyCOCOeval(coco_gt, iou_type) for iou_type in iou_types}
        self.max_dets_stats: dict[str, dict[str, float]] = {}
        self._seen: set[int] = set()
        self._parts: list[Columns] = [to_columns({}, iou_types)]

    def update(self, predictions: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Add the predictions of some images.

        Args:
            predictions: for each image id a dict of `scores` [k], `labels` [k] (category ids), for 'bbox'
                `boxes` [k, 4] (x0, y0, x1, y1 in pixels of the original image), for 'segm' `masks`
                [k, 1, h, w] at the original size and for 'keypoints' `keypoints` [k, points, 3] (x, y in
                pixels of the original image, visibility). An image without predictions has tensors of length
                0 or an empty dict. Any device; scores, labels and boxes of all images travel in one copy.

        Raises:
            UserError: an image id that the ground truth lacks, a score or box that is not finite.
        """
        new = {int(i): entry for i, entry in predictions.items() if int(i) not in self._seen}
        for image_id in new:
            if image_id not in self.coco_gt.imgs:
                raise UserError(f"image id {image_id} was predicted, but the ground truth has no such image")
        columns = to_columns(new, self.iou_types)
        finite = np.isfinite(columns["score"]) & np.isfinite(columns["box"]).all(1)
        if not finite.all():
            image_id = columns["image_id"][~finite][0]
            raise UserError(f"image id {image_id}: a predicted score or box is NaN or infinite")
        self._parts.append(columns)
        self._seen.update(new)
        self.img_ids.extend(new)

    def synchronize_between_processes(self) -> None:
        """Give every process the predictions of all; without torch.distributed there are no others."""
        parts, seen = [], np.zeros(0, np.int64)
        for img_ids, columns in all_gather((self.img_ids, concatenate(self._parts))):
            is_new = ~np.isin(columns["image_id"], seen)
            parts.append({name: values[is_new] for name, values in columns.items()})
            seen = np.union1d(seen, np.array(img_ids, np.int64))
        self._parts, self.img_ids = [concatenate(parts)], seen.tolist()
        self._seen = set(self.img_ids)
        self._hand_over()

    def _hand_over(self) -> Columns:
        """Tell the results what was predicted -> the same."""
        if len(self._parts) > 1:
            self._parts = [concatenate(self._parts)]
        for result in self.coco_eval.values():
            result.take(self._parts[0], self.img_ids)
        return self._parts[0]

    def accumulate(self) -> None:
        """Match predictions with ground truth and fill `coco_eval[...].eval`.

        Categories, images, thresholds, area ranges and limits are those of `coco_eval[...].params`.

        Raises:
            UserError: an annotation without the box or the mask that is to be evaluated; params that name an
                image never given to `update`, or another IoU type.
        """
        columns = self._hand_over()
        for iou_type, result in self.coco_eval.items():
            params = result.params
            limits = sorted({*params.maxDets, self.max_dets or params.maxDets[-1]})
            chosen = columns
            if len(params.imgIds) < len(self.img_ids):
                chosen = _rows(columns, np.isin(columns["image_id"], params.imgIds))
            curves = _evaluate(self.coco_gt, chosen, params, limits)
            if self.max_dets is not None:
                place = ..., 0, limits.index(self.max_dets)  # all categories, all areas
                self.max_dets_stats[iou_type] = _figures(curves, place, params.iouThrs)
            standard = [limits.index(limit) for limit in params.maxDets]
            evaluated = copy.copy(params)
            evaluated.catIds = params.catIds if params.useCats else [-1]  # as in pycocotools
            result.eval = {
                "params": evaluated,
                "counts": [*curves["precision"].shape[:-1], len(standard)],
                "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
                **{name: values[..., standard] for name, values in curves.items()},
            }

    def summarize(self) -> None:
        """Compute `coco_eval[...].stats` and, on the main process, print them as pycocotools does.

        Raises:
            UserError: params.maxDets of less than three limits, of which these figures are made.
        """
        for iou_type, result in self.coco_eval.items():
            if iou_type != "keypoints" and len(result.params.maxDets) < 3:
                raise UserError(
                    f"coco_eval[{iou_type!r}].params.maxDets: the twelve figures need three limits, such as "
                    f"[1, 10, 100], not {result.params.maxDets}; read `eval` for figures of other limits"
                )
            with contextlib.nullcontext() if is_main_process() else contextlib.redirect_stdout(io.StringIO()):
                print(f"IoU metric: {iou_type}")
                result.summarize()
                if self.max_dets is not None:
                    figures = [f"{k} = {v:0.3f}" for k, v in self.max_dets_stats[iou_type].items()]
                    print(f" With up to {self.max_dets} predictions per image: {', '.join(figures)}")

    @property
    def eval_imgs(self) -> dict[str, np.ndarray]:
        """For each IoU type the `evalImgs` of `coco_eval` as an array [K, A, images] of dicts or None."""
        grids = {}
        for iou_type, result in self.coco_eval.items():
            flat, params = np.array(result.evalImgs, object), result._paramsEval or result.params
            categories, areas = len(params.catIds) if params.useCats else 1, len(params.areaRng)
            grids[iou_type] = flat.reshape(categories, areas, len(flat) // max(categories * areas, 1))
        return grids

    def prepare(
        self, predictions: Mapping[int, Mapping[str, torch.Tensor]], iou_type: str
    ) -> list[dict[str, Any]]:
        """Predictions, as `update` takes them, as COCO's results file lists them; nothing is collected.

        Returns:
            For each prediction a dict, ready for JSON, of image_id, category_id, score and, for 'bbox', bbox
            [x, y, width, height]; for 'segm' segmentation, a dict of size [height, width] and counts (str);
            for 'keypoints' keypoints.

        Raises:
            ValueError: another IoU type.
        """
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_type must be one of {', '.join(IOU_TYPES)}, not {iou_type!r}")
        return as_results(to_columns(predictions, [iou_type]), iou_type)

    prepare_for_coco_detection = partialmethod(prepare, iou_type="bbox")
    prepare_for_coco_segmentation = partialmethod(prepare, iou_type="segm")
    prepare_for_coco_keypoint = partialmethod(prepare, iou_type="keypoints")

    def predictions(self) -> Columns:
        """What was given, of all processes after `synchronize_between_processes`, as columns of N rows.

        Returns:
            image_id, label (category id) and score [N]; box [N, 4], x, y, width and height in pixels; with
            'segm' the masks' rle [N] and size [N, 2].
        """
        return concatenate(self._parts)

    def per_class(self, iou_type: str = "bbox") -> list[dict[str, Any]]:
        """Figures of each category after `accumulate`, over all areas, with up to 100 predictions per image.

        With other params than pycocotools', at their first area range and largest limit; with useCats 0 there
        is one row, of id -1.

        Returns:
            A dict for each category: `id`, `name`, and in [0, 1] `AP`, `AP50` and `AR`, which are None where
            the images seen hold no ground truth of the category.
        """
        curves, rows = self.coco_eval[iou_type].eval, []
        for k, category_id in enumerate(curves["params"].catIds):
            figures = _figures(curves, (..., k, 0, -1), curves["params"].iouThrs)
            category = self.coco_gt.cats.get(category_id, {})
            row = {"id": category_id, "name": str(category.get("name", category_id))}
            rows.append(row | {f: None if figures[f] < 0 else figures[f] for f in ("AP", "AP50", "AR")})
        return rows


def _rows(columns: Columns, which: np.ndarray) -> Columns:
    return {name: values[which] for name, values in columns.items()}


def _evaluate(coco_gt: COCO, columns: Columns, params: Any, limits: list[int]) -> Curves:
    """The curves of all categories at the given limits of predictions per image."""
    place = {image_id: i for i, image_id in enumerate(params.imgIds)}  # C++ rounds large ids
    images = [dict(coco_gt.imgs[image_id], id=i) for image_id, i in place.items()]
    truth: dict[int, list[dict[str, Any]]] = {}  # by category
    for number, entry in enumerate(annotations_of(coco_gt, list(place), params.iouType), 1):
        if entry["image_id"] in place:  # an annotation id used twice may lead to another image
            truth.setdefault(entry["category_id"], []).append(entry)
            entry["id"] = number if entry["id"] else 0  # pycocotools takes 0 for "not matched"
            entry["image_id"], entry["category_id"] = place[entry["image_id"]], 1
    order = np.argsort(columns["label"], kind="stable")  # equal scores rank in the order in which they came
    columns = _rows(columns, order)
    columns["image_id"] = np.searchsorted(params.imgIds, columns["image_id"])
    categories, labels = params.catIds, columns["label"]
    if not params.useCats:  # all that belongs to a category counts as of one category
        columns = _rows(columns, np.isin(labels, categories))
        labels = np.full(len(columns["label"]), -1)
        truth, categories = {-1: [entry for c in categories for entry in truth.get(c, [])]}, [-1]
    columns["label"] = np.ones_like(labels)  # what C++ reads
    shape = (len(params.iouThrs), len(params.recThrs), len(categories), len(params.areaRng), len(limits))
    curves = {"precision": -np.ones(shape), "recall": -np.ones(shape)[:, 0], "scores": -np.ones(shape)}
    for k, category_id in enumerate(categories):
        if not truth.get(category_id):
            continue  # -1, whatever was predicted
        start, end = np.searchsorted(labels, (category_id, category_id + 1))
        predicted = as_dicts({name: v[start:end] for name, v in columns.items()}, params.iouType)
        of_category = _evaluate_category(images, truth[category_id], predicted, params, limits)
        for name, values in curves.items():
            values[..., k, :, :] = of_category[name][..., 0, :, :]
    return curves


def _evaluate_category(
    images: list[dict], truth: list[dict], predicted: list[dict], params: Any, limits: list[int]
) -> Curves:
    """The curves of one category, K = 1; image_id of truth and predicted is an index into images."""
    concerned = sorted({entry["image_id"] for entry in [*truth, *predicted]})  # other images add nothing
    common = {"images": [images[i] for i in concerned], "categories": [{"id": 1}]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an annotation id of 0 counts as in pycocotools
        both = [faster_coco_eval.COCO({**common, "annotations": part}) for part in (truth, predicted)]
    evaluation = faster_coco_eval.COCOeval_faster(*both, params.iouType, print_function=lambda *_: None)
    for name in ("iouThrs", "recThrs", "areaRng", "areaRngLbl", "kpt_oks_sigmas"):
        if hasattr(params, name):  # the last one is of keypoints alone
            setattr(evaluation.params, name, getattr(params, name))
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _figures(curves: Curves, place: tuple, iou_thresholds: np.ndarray) -> dict[str, float]:
    """AP, AP50, AP75 and AR at `place` of the last axes, averaged; -1 where there is nothing."""
    precision, recall = curves["precision"][place], curves["recall"][place]  # [T, ...]
    at_50, at_75 = (precision[np.isclose(iou_thresholds, threshold)] for threshold in (0.5, 0.75))
    parts = {"AP": precision, "AP50": at_50, "AP75": at_75, "AR": recall}
    return {name: float(v[v > -1].mean()) if (v > -1).any() else -1.0 for name, v in parts.items()}
