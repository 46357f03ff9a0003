"""Evaluators for detectron2: COCO's figures, and panoptic quality without panopticapi."""

import json
import logging
from collections import OrderedDict
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from datasets.panoptic_quality import Category, Counts, Evaluation, Table, count_image

__all__ = ["DetrPanopticEvaluator", "coco_evaluator"]


def coco_evaluator(cfg: Any, dataset_name: str, output_folder: str) -> COCOEvaluator:
    """detectron2's evaluator of boxes and, with MASK_ON, masks.

    detectron2's faster evaluation is part of its C++ extension; without that pycocotools does it.
    """
    try:
        from detectron2 import _C
    except ImportError:
        _C = None
    return COCOEvaluator(
        dataset_name,
        ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        distributed=True,
        output_dir=output_folder,
        use_fast_impl=hasattr(_C, "COCOevalEvaluateImages"),
    )


class DetrPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality of what a model gives under `panoptic_seg`, as panopticapi counts it.

    Args:
        dataset_name: a data set that register_coco_panoptic has registered.

    Figures are counted image by image, so that no predictions are kept.
    """

    def __init__(self, dataset_name: str):
        self.metadata = MetadataCatalog.get(dataset_name)
        with open(self.metadata.panoptic_json, encoding="utf-8") as file:
            content = json.load(file)
        self.truth = {record["image_id"]: record for record in content["annotations"]}
        records = sorted(content["categories"], key=lambda record: record["id"])
        self.categories = {r["id"]: Category(r["name"], bool(r["isthing"])) for r in records}
        things = self.metadata.thing_dataset_id_to_contiguous_id
        stuff = self.metadata.stuff_dataset_id_to_contiguous_id
        self.dataset_ids = {
            True: {contiguous: i for i, contiguous in things.items()},
            False: {contiguous: i for i, contiguous in stuff.items()},
        }
        self.reset()

    def reset(self) -> None:
        """Forget what has been counted."""
        self.counts = Counts.zeros(len(self.categories))

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count a batch: `image_id` of each input, and `panoptic_seg` of each output.

        That is a map of ids, [H, W] in the size of the original image, 0 where no segment is, and a list of
        dicts `id`, `isthing`, `category_id` (contiguous).
        """
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            predicted = [
                {"id": s["id"], "category_id": self.dataset_ids[s["isthing"]][s["category_id"]]}
                for s in segments
            ]
            truth = self.truth[record["image_id"]]
            with Image.open(f"{self.metadata.panoptic_root}/{truth['file_name']}") as image:
                colours = np.asarray(image.convert("RGB")).astype(np.int32)
            counts = count_image(
                colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2],
                ids.cpu().numpy().astype(np.int32),
                Table.of(truth["segments_info"], with_area=True),
                Table.of(predicted, with_area=False),
                np.array(list(self.categories)),
            )
            self.counts = self.counts.plus(counts)

    def evaluate(self) -> OrderedDict | None:
        """Under `panoptic_seg` the figures PQ, SQ and RQ in percent, of all classes, of things (_th) and of
        stuff (_st), with detectron2's names; None on all ranks but the first.
        """
        comm.synchronize()
        counts = Counts.zeros(len(self.categories))
        for part in comm.gather(self.counts):
            counts = counts.plus(part)
        if not comm.is_main_process():
            return None
        evaluation = Evaluation(counts, self.categories)
        logging.getLogger(__name__).info("panoptic quality:\n%s", evaluation.group_table())
        quality = evaluation.figures()
        result = {}
        for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
            for key in ("pq", "sq", "rq"):
                value = quality[group][key]
                result[key.upper() + suffix] = float("nan") if value is None else 100 * value
        return OrderedDict(panoptic_seg=result)
