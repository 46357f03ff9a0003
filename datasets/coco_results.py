"""Predictions in COCO's forms: columns of numbers, the dicts of a results file, matches of each image.

The usual evaluation needs no dict of each image, category and area range; who counts hits and misses of an
image does. pycocotools computes them when they are read, from copies of the ground truth.

Shape letters: N predictions of all images, k of one.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.annotations import index_coco
from datasets.masks import run_lengths
from util.distributed import all_gather
from util.errors import UserError

Columns = dict[str, np.ndarray]  # of N predictions, see to_columns


def convert_to_xywh(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes [k, 4] of corners x0, y0, x1, y1 as x, y, width, height [k, 4]."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run-length codes of masks [k, 1, h, w]: k dicts of `size` [h, w], `counts` (bytes).

    Inside is what is True, an integer other than 0, or a floating-point number above 0.5. Any device.
    """
    inside = masks[:, 0] > 0.5 if masks.is_floating_point() else masks[:, 0].bool()
    # The code runs down columns; transposed on the device, the bytes on the host already lie in that order.
    columns = inside.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8)  # [k, w, h]
    return mask_utils.encode(columns.transpose(2, 1, 0)) if len(columns) else []  # [h, w, k], Fortran order


def to_columns(predictions: Mapping[int, Mapping[str, torch.Tensor]], iou_types: Sequence[str]) -> Columns:
    """The predictions of some images as columns on the host.

    Returns:
        image_id, score, label [N]; box [N, 4], x, y, width, height ([N, 0] without 'bbox'); with 'segm' the
        masks' rle [N] (bytes), size [N, 2] (height, width) and area [N]; with 'keypoints' keypoints [N], each
        a list of x, y and visibility, point after point.
    """
    entries = [entry for entry in predictions.values() if entry]
    counts = [len(entry["scores"]) if entry else 0 for entry in predictions.values()]
    table = np.zeros((0, 6 if "bbox" in iou_types else 2))
    if entries:
        parts = [torch.cat([entry[key] for entry in entries])[:, None] for key in ("scores", "labels")]
        if "bbox" in iou_types:
            parts.append(convert_to_xywh(torch.cat([entry["boxes"] for entry in entries])))
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
    if "keypoints" in iou_types:
        points = [row for entry in entries for row in entry["keypoints"].flatten(1).tolist()]
        columns["keypoints"] = np.fromiter(points, object, len(points))
    return columns


def concatenate(parts: list[Columns]) -> Columns:
    """The rows of all parts, in new arrays."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_dicts(columns: Columns, iou_type: str) -> list[dict[str, Any]]:
    """The predictions in COCO's form with their areas, numbered from 1; `counts` of masks are bytes."""
    if iou_type == "bbox":
        key, regions, areas = "bbox", columns["box"].tolist(), columns["box"][:, 2] * columns["box"][:, 3]
    elif iou_type == "keypoints":
        key, regions = "keypoints", columns["keypoints"].tolist()
        sides = [(max(p[0::3]) - min(p[0::3]), max(p[1::3]) - min(p[1::3])) for p in regions]
        areas = np.array([width * height for width, height in sides])  # of all points, as in pycocotools
    else:
        codes = zip(columns["size"].tolist(), columns["rle"], strict=True)
        key, regions, areas = "segmentation", [{"size": s, "counts": c} for s, c in codes], columns["area"]
    numbers = (columns[name].tolist() for name in ("image_id", "label", "score"))
    rows = zip(*numbers, areas.tolist(), regions, strict=True)
    return [
        {"id": n, "image_id": i, "category_id": label, "score": score, "area": area, key: region}
        for n, (i, label, score, area, region) in enumerate(rows, 1)
    ]


def as_results(columns: Columns, iou_type: str) -> list[dict[str, Any]]:
    """The predictions as COCO's results file lists them, ready for JSON; see CocoEvaluator.prepare."""
    results = as_dicts(columns, iou_type)
    for result in results:
        del result["id"], result["area"]
        if iou_type == "segm":
            result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
    return results


# ---- per image


class LazyCOCOeval(COCOeval):
    """pycocotools' COCOeval of one IoU type. Its `evalImgs` are computed when they are first read.

    Args:
        coco_gt, iou_type: as COCOeval takes them.
    """

    def __init__(self, coco_gt: COCO, iou_type: str) -> None:
        super().__init__(coco_gt, iouType=iou_type)
        self._iou_type = iou_type
        self._columns: Columns | None = None
        self._per_image: list | None = []  # None: not computed yet
        self._default_images = list(self.params.imgIds)

    def take(self, columns: Columns, img_ids: Sequence[int]) -> None:
        """Let these be the predictions of these images, and put `params` in order as pycocotools does.

        Raises:
            UserError: params of another IoU type, or of images that are not in `img_ids`.
        """
        params, name = self.params, f"coco_eval[{self._iou_type!r}].params"
        if params.iouType != self._iou_type or params.useSegm is not None:
            raise UserError(
                f"{name}: leave iouType and useSegm as they are, and give iou_types to CocoEvaluator"
            )
        params.imgIds, params.catIds = (np.unique(ids).tolist() for ids in (params.imgIds, params.catIds))
        params.maxDets = [int(limit) for limit in sorted(params.maxDets)]
        params.iouThrs, params.recThrs = np.atleast_1d(params.iouThrs), np.atleast_1d(params.recThrs)
        if params.imgIds == self._default_images:  # nobody chose
            self._default_images = sorted(img_ids)
            params.imgIds = list(self._default_images)
        unseen = set(params.imgIds) - set(img_ids)
        if unseen:
            raise UserError(f"{name}.imgIds: image id {min(unseen)} was never given to update; leave it out")
        self._columns, self._per_image = columns, None

    @property
    def evalImgs(self) -> Any:
        """Of each category, area range and image, in this order, pycocotools' dict of matches, or None."""
        if self._per_image is None and self._columns is not None:
            truth = list(annotations_of(self.cocoGt, self.params.imgIds, self._iou_type))
            predicted = as_dicts(self._columns, self._iou_type)
            head = {"images": list(self.cocoGt.imgs.values()), "categories": []}
            both = [index_coco({**head, "annotations": part}) for part in (truth, predicted)]
            with contextlib.redirect_stdout(io.StringIO()):
                plain = COCOeval(*both, self._iou_type)  # `evaluate` would clear `eval` here
                plain.params = copy.copy(self.params)
                plain.evaluate()
            self._per_image, self._paramsEval = plain.evalImgs, plain._paramsEval
        return self._per_image

    @evalImgs.setter
    def evalImgs(self, value: Any) -> None:
        self._per_image = value


def evaluate(coco_eval: COCOeval) -> tuple[list[int], np.ndarray]:
    """Evaluate the images of `coco_eval.params` one by one, as pycocotools does, printing nothing.

    Returns:
        The image ids, sorted, and an array [K, A, images] of dicts or None, over categories and area ranges.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        COCOeval.evaluate(coco_eval)
    params = coco_eval.params
    categories = len(params.catIds) if params.useCats else 1
    grid = np.array(coco_eval.evalImgs, object).reshape(categories, len(params.areaRng), len(params.imgIds))
    return params.imgIds, grid


def merge(img_ids: Sequence[int], eval_imgs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `evaluate` gave on every process, each image once, in ascending order of its id."""
    gathered = all_gather((list(img_ids), eval_imgs))
    every = np.concatenate([ids for ids, _ in gathered])
    ids, first = np.unique(every, return_index=True)
    return ids, np.concatenate([grid for _, grid in gathered], 2)[..., first]


def create_common_coco_eval(coco_eval: COCOeval, img_ids: Sequence[int], eval_imgs: np.ndarray) -> None:
    """Make `coco_eval` that of the images of all processes, ready for `accumulate`."""
    ids, grid = merge(img_ids, eval_imgs)
    coco_eval.evalImgs = list(grid.flatten())
    coco_eval.params.imgIds = ids.tolist()
    coco_eval._paramsEval = copy.deepcopy(coco_eval.params)


def annotations_of(coco_gt: COCO, img_ids: list[int], iou_type: str) -> Iterator[dict[str, Any]]:
    """Copies of the images' annotations, with all that is evaluated: neither library must change a user's."""
    key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[iou_type]
    for annotation in coco_gt.loadAnns(coco_gt.getAnnIds(imgIds=img_ids)) if img_ids else []:
        if not annotation.get(key):
            raise UserError(f"annotation id {annotation['id']} has no {key}, and {iou_type} is evaluated")
        evaluated = {
            "id": annotation["id"],
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        if iou_type == "segm":
            image, polygons = coco_gt.imgs[annotation["image_id"]], annotation[key]
            try:
                if isinstance(polygons, dict):
                    mask = coco_gt.annToRLE(annotation)
                else:
                    mask = run_lengths(polygons, image["height"], image["width"])
            except Exception as error:  # pycocotools raises plain Exception for what it does not understand
                raise UserError(
                    f"the segmentation of annotation {annotation['id']} gives no mask ({error}): "
                    "correct it, or evaluate boxes alone"
                ) from error
            evaluated[key], area = mask, float(mask_utils.area(mask))
        else:
            evaluated[key] = annotation[key]
            width, height = annotation["bbox"][2:]
            area = width * height
        if iou_type == "keypoints":
            visible = sum(v > 0 for v in annotation["keypoints"][2::3])
            evaluated |= {
                "bbox": annotation["bbox"],
                "num_keypoints": annotation.get("num_keypoints", visible),
            }
        yield {**evaluated, "area": annotation.get("area", area)}
