"""What a CocoEvaluator's `coco_eval` holds: pycocotools' COCOeval, whose `evalImgs` are computed when read.

The usual evaluation needs no dict of each image, category and area range; who counts hits and misses of an
image does. pycocotools computes them, from copies of the ground truth.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.coco_columns import Columns, as_dicts
from datasets.masks import run_lengths
from util.distributed import all_gather
from util.errors import UserError


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
            images = list(self.cocoGt.imgs.values())
            with contextlib.redirect_stdout(io.StringIO()):
                both = [_index(images, part) for part in (truth, as_dicts(self._columns, self._iou_type))]
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
            evaluated[key] = mask = _mask_of(annotation, coco_gt)
            area = float(mask_utils.area(mask))
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


def _mask_of(annotation: Mapping[str, Any], coco_gt: COCO) -> dict[str, Any]:
    """An annotation's mask in compressed run lengths."""
    if isinstance(annotation["segmentation"], dict):
        return coco_gt.annToRLE(annotation)
    image = coco_gt.imgs[annotation["image_id"]]
    try:
        return run_lengths(annotation["segmentation"], image["height"], image["width"])
    except Exception as error:  # pycocotools raises plain Exception for what it does not understand
        raise UserError(
            f"the segmentation of annotation {annotation['id']} gives no mask ({error}): "
            "correct it, or evaluate boxes alone"
        ) from error


def _index(images: list[dict], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": []}
    coco.createIndex()
    return coco
