"""COCO figures by pycocotools, and panoptic quality by its definition, one segment after the other."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor


def coco_figures(coco: COCO, predictions: dict[int, dict[str, Tensor]]) -> list[float]:
    """The twelve figures of boxes, from scores, labels and xyxy boxes of each image."""
    rows = []
    for image_id, found in predictions.items():
        boxes = found["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        columns = (found["labels"].tolist(), boxes.tolist(), found["scores"].tolist())
        rows += [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(*columns, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.params.imgIds = sorted(predictions)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def panoptic_quality(
    truth_json: Path, truth_folder: Path, found_json: Path, found_folder: Path
) -> dict[str, float]:
    """PQ over all classes, over things and over stuff, in [0, 1]; pixels are counted one by one."""
    truth, found = json.loads(truth_json.read_text()), json.loads(found_json.read_text())
    by_image = {entry["image_id"]: entry for entry in found["annotations"]}
    jobs = [
        (
            truth_folder / e["file_name"],
            e,
            found_folder / by_image[e["image_id"]]["file_name"],
            by_image[e["image_id"]],
        )
        for e in truth["annotations"]
    ]
    counted = _count_all(jobs)
    figures = {}
    for name, kinds in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        qualities = []
        for category in (c for c in truth["categories"] if c["isthing"] in kinds):
            iou, matched, missed, surplus = counted.get(category["id"], (0.0, 0, 0, 0))
            if matched + missed + surplus:
                qualities.append(iou / (matched + missed / 2 + surplus / 2))
        figures[name] = sum(qualities) / len(qualities) if qualities else 0.0
    return figures


def _count_all(jobs: list[tuple[Path, dict, Path, dict]]) -> dict[int, list[float]]:
    counts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
    for true_png, truth, found_png, found in jobs:
        _count_image(
            counts, _read(true_png), truth["segments_info"], _read(found_png), found["segments_info"]
        )
    return dict(counts)


def _read(path: Path) -> np.ndarray:
    channels = np.array(Image.open(path).convert("RGB")).astype(np.uint32)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]


def _count_image(
    counts: dict[int, list[float]],
    truth: np.ndarray,
    true_info: list[dict],
    found: np.ndarray,
    info: list[dict],
) -> None:
    """Add one image to [IoU, matched, missed, surplus] of each category."""
    true_segments = {segment["id"]: segment for segment in true_info}
    segments = {segment["id"]: segment for segment in info}
    areas: Counter[int] = Counter(found.ravel().tolist())
    overlaps = Counter(zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True))
    matched = set()
    for (t, f), pixels in overlaps.items():
        if t not in true_segments or f not in segments or true_segments[t]["iscrowd"]:
            continue
        category = true_segments[t]["category_id"]
        if segments[f]["category_id"] != category:
            continue
        iou = pixels / (true_segments[t]["area"] + areas[f] - pixels - overlaps.get((0, f), 0))
        if iou > 0.5:
            matched |= {("true", t), ("found", f)}
            counts[category][0] += iou
            counts[category][1] += 1
    crowds = {s["category_id"]: s["id"] for s in true_segments.values() if s["iscrowd"]}
    for t, segment in true_segments.items():
        if not segment["iscrowd"] and ("true", t) not in matched:
            counts[segment["category_id"]][2] += 1
    for f, segment in segments.items():
        if ("found", f) in matched:
            continue
        excused = overlaps.get((0, f), 0)
        if segment["category_id"] in crowds:
            excused += overlaps.get((crowds[segment["category_id"]], f), 0)
        if excused / areas[f] <= 0.5:
            counts[segment["category_id"]][3] += 1
