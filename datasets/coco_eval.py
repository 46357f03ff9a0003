"""The COCO figures of boxes and instance masks, with pycocotools' interface and C++ speed.

Predictions are kept as arrays. Only when figures are wanted are they turned, one category at a time, into the
dicts that faster-coco-eval reads: no category's figures depend on another's, so memory is that of the largest
category. What a user reads stays pycocotools': each value of `coco_eval` is a pycocotools COCOeval, with
`eval` and `stats` filled.

Shape letters: N predictions; T IoU thresholds, R recall thresholds, K categories, A area ranges, M limits of
predictions per image.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import faster_coco_eval
import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from util.distributed import all_gather, is_main_process
from util.errors import UserError

Columns = dict[str, np.ndarray]  # of N predictions, see _to_columns
Curves = dict[str, np.ndarray]  # precision [T, R, K, A, M], recall [T, K, A, M], scores [T, R, K, A, M]


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection: a million new dicts, none in a cycle, would make it search the heap often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CocoEvaluator:
    """Collects predictions over a data set and computes the twelve COCO figures.

    Only images given to `update` are evaluated; one without predictions counts with all it should have had.
    An image given more than once, by one process or by several, counts once, as it was given first. The
    ground truth is read, never changed.

    Args:
        coco_gt: ground truth as a pycocotools COCO object, read from a file or built in memory.
        iou_types: 'bbox', 'segm' or both.
        max_dets: a further limit of predictions per image, reported beside the standard 1, 10 and 100; the
            twelve figures do not change.

    Attributes:
        img_ids: ids of the images seen; after `synchronize_between_processes` sorted and of all processes.
        coco_eval: for each IoU type a pycocotools COCOeval. Its `eval` (after `accumulate`) holds params,
            counts, date, precision [T, R, K, A, M], recall [T, K, A, M] and scores [T, R, K, A, M], -1 where
            there is no ground truth; its `stats` (after `summarize`) the twelve figures [12].
        max_dets_stats: for each IoU type AP, AP50, AP75 and AR at `max_dets` (after `accumulate`).

    Raises:
        ValueError: another IoU type, or a limit below 1.
    """

    def __init__(self, coco_gt: COCO, iou_types: Sequence[str], max_dets: int | None = None) -> None:
        if isinstance(iou_types, str) or not set(iou_types) <= {"bbox", "segm"}:
            raise ValueError(f"iou_types must be a sequence of 'bbox' and 'segm', not {iou_types!r}")
        if max_dets is not None and max_dets < 1:
            raise ValueError(f"max_dets must be at least 1, not {max_dets}")
        self.coco_gt, self.iou_types, self.max_dets = coco_gt, iou_types, max_dets
        self.img_ids: list[int] = []
        self.coco_eval = {iou_type: COCOeval(coco_gt, iouType=iou_type) for iou_type in iou_types}
        self.max_dets_stats: dict[str, dict[str, float]] = {}
        self._seen: set[int] = set()
        self._parts: list[Columns] = [_to_columns({}, iou_types)]

    def update(self, predictions: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Add the predictions of some images.

        Args:
            predictions: for each image id a dict of `scores` [k], `labels` [k] (category ids), for 'bbox'
                `boxes` [k, 4] (x0, y0, x1, y1 in pixels of the original image) and for 'segm' `masks`
                [k, 1, h, w] at the original size. An image without predictions has tensors of length 0 or
                an empty dict. Any device; scores, labels and boxes of all images travel in one copy.

        Raises:
            UserError: an image id that the ground truth lacks, a score or box that is not finite.
        """
        new = {int(i): entry for i, entry in predictions.items() if int(i) not in self._seen}
        for image_id in new:
            if image_id not in self.coco_gt.imgs:
                raise UserError(f"image id {image_id} was predicted, but the ground truth has no such image")
        columns = _to_columns(new, self.iou_types)
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
        for img_ids, columns in all_gather((self.img_ids, _concatenate(self._parts))):
            is_new = ~np.isin(columns["image_id"], seen)
            parts.append({name: values[is_new] for name, values in columns.items()})
            seen = np.union1d(seen, np.array(img_ids, np.int64))
        self._parts, self.img_ids = [_concatenate(parts)], seen.tolist()
        self._seen = set(self.img_ids)

    @_collector_paused()
    def accumulate(self) -> None:
        """Match predictions with ground truth and fill `coco_eval[...].eval`.

        Thresholds, area ranges and limits are those of `coco_eval[...].params`; its useCats must stay 1.

        Raises:
            UserError: an annotation without the box or the mask that is to be evaluated.
        """
        columns = _concatenate(self._parts)
        for iou_type, result in self.coco_eval.items():
            params = result.params
            params.imgIds = sorted(self.img_ids)
            params.catIds = sorted(set(self.coco_gt.getCatIds()))
            params.maxDets = sorted(params.maxDets)
            limits = sorted({*params.maxDets, self.max_dets or params.maxDets[-1]})
            curves = _evaluate(self.coco_gt, columns, params, limits)
            if self.max_dets is not None:
                place = ..., 0, limits.index(self.max_dets)  # all categories, all areas
                self.max_dets_stats[iou_type] = _figures(curves, place, params.iouThrs)
            standard = [limits.index(limit) for limit in params.maxDets]
            result.eval = {
                "params": params,
                "counts": [*curves["precision"].shape[:-1], len(standard)],
                "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
                **{name: values[..., standard] for name, values in curves.items()},
            }

    def summarize(self) -> None:
        """Compute `coco_eval[...].stats` and, on the main process, print them as pycocotools does."""
        for iou_type, result in self.coco_eval.items():
            with contextlib.nullcontext() if is_main_process() else contextlib.redirect_stdout(io.StringIO()):
                print(f"IoU metric: {iou_type}")
                result.summarize()
                if self.max_dets is not None:
                    figures = [f"{k} = {v:0.3f}" for k, v in self.max_dets_stats[iou_type].items()]
                    print(f" With up to {self.max_dets} predictions per image: {', '.join(figures)}")

    def predictions(self) -> Columns:
        """What was given, of all processes behind `synchronize_between_processes`, as columns of N rows.

        Returns:
            image_id, label (category id) and score [N]; box [N, 4], x, y, width and height in pixels; with
            'segm' the masks' rle [N] and size [N, 2].
        """
        return _concatenate(self._parts)

    def per_class(self, iou_type: str = "bbox") -> list[dict[str, Any]]:
        """Figures of each category after `accumulate`, over all areas, with up to 100 predictions per image.

        Returns:
            A dict for each category: `id`, `name`, and in [0, 1] `AP`, `AP50` and `AR`, which are None where
            the images seen hold no ground truth of the category.
        """
        result, rows = self.coco_eval[iou_type], []
        for k, category_id in enumerate(result.params.catIds):
            figures = _figures(result.eval, (..., k, 0, -1), result.params.iouThrs)
            row = {"id": category_id, "name": self.coco_gt.cats[category_id].get("name", str(category_id))}
            rows.append(row | {f: None if figures[f] < 0 else figures[f] for f in ("AP", "AP50", "AR")})
        return rows


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run-length codes of masks [k, 1, h, w]: k dicts of `size` [h, w], `counts` (bytes).

    Inside is what is True, an integer other than 0, or a floating-point number above 0.5. Any device.
    """
    inside = masks[:, 0] > 0.5 if masks.is_floating_point() else masks[:, 0].bool()
    # The code runs down columns; transposed on the device, the bytes on the host already lie in that order.
    columns = inside.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8)  # [k, w, h]
    return mask_utils.encode(columns.transpose(2, 1, 0)) if len(columns) else []  # [h, w, k], Fortran order


def _to_columns(predictions: Mapping[int, Mapping[str, torch.Tensor]], iou_types: Sequence[str]) -> Columns:
    """The predictions of some images as columns on the host.

    Returns:
        image_id, score, label [N]; box [N, 4], x, y, width, height ([N, 0] without 'bbox'); with 'segm' the
        masks' rle [N] (bytes), size [N, 2] (height, width) and area [N].
    """
    entries = [entry for entry in predictions.values() if entry]
    counts = [len(entry["scores"]) if entry else 0 for entry in predictions.values()]
    table = np.zeros((0, 6 if "bbox" in iou_types else 2))
    if entries:
        parts = [torch.cat([entry[key] for entry in entries])[:, None] for key in ("scores", "labels")]
        if "bbox" in iou_types:
            corners = torch.cat([entry["boxes"] for entry in entries])
            parts += [corners[:, :2], corners[:, 2:] - corners[:, :2]]
        # float64 holds every float32 and every id up to 2^53; Apple's devices lack it.
        dtype = torch.float32 if parts[0].device.type == "mps" else torch.float64
        table = torch.cat([part.detach().to(dtype) for part in parts], 1).cpu().double().numpy()
    columns = {
        "image_id": np.repeat(np.array(list(predictions), np.int64), counts),
        "score": table[:, 0],
        "label": table[:, 1].astype(np.int64),
        "box": table[:, 2:],
    }
    if "segm" in iou_types:
        rles = [rle for entry in entries for rle in encode_masks(entry["masks"])]
        columns["rle"] = np.array([rle["counts"] for rle in rles], object)
        columns["size"] = np.array([rle["size"] for rle in rles], np.int64).reshape(-1, 2)
        # In parts: pycocotools 2.0.11 counts what it is given in eight bits.
        parts = [mask_utils.area(rles[i : i + 128]) for i in range(0, len(rles), 128)]
        columns["area"] = np.concatenate([np.zeros(0), *parts])
    return columns


def _concatenate(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _ground_truth(coco_gt: COCO, place: dict[int, int], iou_type: str) -> dict[int, list[dict[str, Any]]]:
    """By category, copies of the annotations of the images that `place` numbers: C++ rounds large ids."""
    key = "bbox" if iou_type == "bbox" else "segmentation"
    truth: dict[int, list[dict[str, Any]]] = {}
    annotations = coco_gt.loadAnns(coco_gt.getAnnIds(imgIds=list(place))) if place else []
    for number, annotation in enumerate(annotations, 1):
        if not annotation.get(key):
            raise UserError(f"annotation id {annotation['id']} has no {key}, and {iou_type} is evaluated")
        region = annotation[key] if iou_type == "bbox" else coco_gt.annToRLE(annotation)
        area = region[2] * region[3] if iou_type == "bbox" else float(mask_utils.area(region))
        entry = {
            "id": number if annotation["id"] else 0,  # pycocotools takes 0 for "not matched"
            "image_id": place.get(annotation["image_id"]),
            "category_id": 1,
            "iscrowd": int(annotation.get("iscrowd", 0)),
            "area": annotation.get("area", area),
            key: region,
        }
        if entry["image_id"] is not None:  # an annotation id used twice may lead to another image
            truth.setdefault(annotation["category_id"], []).append(entry)
    return truth


def _as_dicts(columns: Columns, iou_type: str) -> list[dict[str, Any]]:
    """The predictions of one category in COCO's form, numbered from 1."""
    if iou_type == "bbox":
        key, regions, areas = "bbox", columns["box"].tolist(), columns["box"][:, 2] * columns["box"][:, 3]
    else:
        codes = zip(columns["size"].tolist(), columns["rle"], strict=True)
        key, regions, areas = "segmentation", [{"size": s, "counts": c} for s, c in codes], columns["area"]
    rows = zip(columns["image_id"].tolist(), columns["score"].tolist(), areas.tolist(), regions, strict=True)
    return [
        {"id": n, "image_id": i, "category_id": 1, "score": score, "area": area, key: region}
        for n, (i, score, area, region) in enumerate(rows, 1)
    ]


def _evaluate(coco_gt: COCO, columns: Columns, params: Any, limits: list[int]) -> Curves:
    """The curves of all categories at the given limits of predictions per image."""
    place = {image_id: i for i, image_id in enumerate(params.imgIds)}
    images = [dict(coco_gt.imgs[image_id], id=i) for image_id, i in place.items()]
    truth = _ground_truth(coco_gt, place, params.iouType)
    order = np.argsort(columns["label"], kind="stable")  # equal scores rank in the order in which they came
    columns = {name: values[order] for name, values in columns.items()}
    columns["image_id"] = np.searchsorted(params.imgIds, columns["image_id"])
    shape = (len(params.iouThrs), len(params.recThrs), len(params.catIds), len(params.areaRng), len(limits))
    curves = {"precision": -np.ones(shape), "recall": -np.ones(shape)[:, 0], "scores": -np.ones(shape)}
    for k, category_id in enumerate(params.catIds):
        if category_id not in truth:
            continue  # -1, whatever was predicted
        start, end = np.searchsorted(columns["label"], (category_id, category_id + 1))
        predicted = _as_dicts({name: v[start:end] for name, v in columns.items()}, params.iouType)
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
    for name in ("iouThrs", "recThrs", "areaRng", "areaRngLbl"):
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
