"""Panoptic quality of COCO's files: every image of the ground truth with its prediction, over processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.layouts import read_json
from datasets.panoptic_png import read_ids
from datasets.panoptic_quality import Category, Counts, Evaluation, Table, count_image
from datasets.workers import process_map, usable_cores
from util.errors import UserError

_CHUNK = 32  # images a task; fixed, so that sums do not depend on the number of processes


def evaluate_files(
    gt_json: str | Path,
    gt_folder: str | Path,
    pred_json: str | Path,
    pred_folder: str | Path,
    workers: int | None = None,
) -> Evaluation:
    """Count matches over all images that the ground truth annotates; further predictions are not looked at.

    Args:
        gt_json, gt_folder: COCO panoptic JSON and the folder of its PNGs.
        pred_json, pred_folder: the same of predictions; of two for one image the last counts.
        workers: processes; left out, one for each usable core, as far as there is work for them. The result
            is the same for any number.

    Raises:
        UserError: a file is missing or faulty, an image has no prediction, or one that does not fit: see
            datasets.panoptic_quality.count_image.
    """
    truth = read_json(gt_json)
    try:
        records = sorted(truth["categories"], key=lambda record: record["id"])
        categories = {r["id"]: Category(str(r.get("name", r["id"])), bool(r["isthing"])) for r in records}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{gt_json}: categories must be a list of objects with id and isthing") from error
    predicted = {entry["image_id"]: entry for entry in _entries(read_json(pred_json), pred_json)}
    pairs = []
    for entry in _entries(truth, gt_json):
        if entry["image_id"] not in predicted:
            raise UserError(f"{pred_json} has no prediction for image {entry['image_id']} of {gt_json}")
        pairs.append(
            _Pair(
                entry["image_id"],
                os.path.join(gt_folder, entry["file_name"]),
                os.path.join(pred_folder, predicted[entry["image_id"]]["file_name"]),
                entry["segments_info"],
                predicted[entry["image_id"]]["segments_info"],
            )
        )
    chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
    workers = min(workers or usable_cores(), len(chunks))
    counts = Counts.zeros(len(categories))
    with process_map(workers) as mapper:
        for part in mapper(_count_chunk, chunks, [list(categories)] * len(chunks)):
            counts = counts.plus(part)
    return Evaluation(counts, categories)


def panoptic_quality(
    gt_json: str | Path,
    gt_folder: str | Path,
    pred_json: str | Path,
    pred_folder: str | Path,
    workers: int | None = None,
) -> dict[str, Any]:
    """The figures that panopticapi gives: `evaluate_files(...).figures()`."""
    return evaluate_files(gt_json, gt_folder, pred_json, pred_folder, workers).figures()


class _Pair(NamedTuple):
    """One image: its PNGs and the segments of both sides, as their files give them."""

    image_id: int
    true_png: str
    predicted_png: str
    truth: list[dict[str, Any]]
    predicted: list[dict[str, Any]]


def _entries(content: Mapping[str, Any], source: str | Path) -> list[dict[str, Any]]:
    entries = content.get("annotations")
    if not isinstance(entries, list):
        raise UserError(f"{source}: it has no list of annotations, as a COCO panoptic file must")
    for place, entry in enumerate(entries):
        for key, kind in (("image_id", int), ("file_name", str), ("segments_info", list)):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise UserError(f"{source}: annotation number {place} has no {key} of type {kind.__name__}")
    return entries


def _count_chunk(pairs: list[_Pair], category_ids: list[int]) -> Counts:
    classes = np.array(category_ids, np.int64)
    counts = Counts.zeros(len(classes))
    for pair in pairs:
        true_ids, predicted_ids = read_ids(pair.true_png), read_ids(pair.predicted_png)
        try:
            truth = Table.of(pair.truth, with_area=True)
            predicted = Table.of(pair.predicted, with_area=False)
            counts = counts.plus(count_image(true_ids, predicted_ids, truth, predicted, classes))
        except (KeyError, TypeError, AttributeError) as error:
            where = f"image {pair.image_id}: a segment of {pair.true_png} or {pair.predicted_png}"
            raise UserError(f"{where} has no valid id, category_id or area") from error
        except ValueError as error:
            raise UserError(f"image {pair.image_id} ({pair.predicted_png}): {error}") from error
    return counts
