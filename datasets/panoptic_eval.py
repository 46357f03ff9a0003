"""Panoptic quality of predictions: while a model is evaluated, and of files.

    python -m datasets.panoptic_eval --gt_json gt.json --gt_folder gt --pred_json pred.json --pred_folder pred

The files are COCO's: a JSON whose `annotations` hold image_id, file_name and segments_info, and a folder of
PNGs; the ground truth's JSON has `categories` with `isthing`, too. The figures are panopticapi's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.layouts import read_json
from datasets.panoptic_png import read_ids
from datasets.panoptic_quality import Category, Counts, Evaluation, Table, count_image
from datasets.workers import process_map, usable_cores
from util.command_line import OneLineParser
from util.errors import UserError, exit_status

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
    categories = _categories(truth, gt_json)
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


def _categories(content: Mapping[str, Any], source: str | Path) -> dict[int, Category]:
    try:
        records = sorted(content["categories"], key=lambda record: record["id"])
        return {r["id"]: Category(str(r.get("name", r["id"])), bool(r["isthing"])) for r in records}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: categories must be a list of objects with id and isthing") from error


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


class PanopticEvaluator:
    """Collects panoptic predictions over a data set and computes panoptic quality.

    All images of the ground truth are evaluated. An image given more than once, by one process or by
    several, counts once, as it was given first. PNGs are kept in memory, some kilobytes each, and travel
    between processes with the rest, so that these need no folder in common.

    Args:
        ann_file: COCO panoptic JSON of the ground truth.
        ann_folder: the folder of its PNGs.
        output_dir: the main process writes PNGs, predictions.json and per_class.csv there; empty: they go
            to a temporary folder.

    Attributes:
        predictions: what was given, by image id.
        evaluation: on the main process, what was counted (after `summarize`).
    """

    def __init__(
        self, ann_file: str | Path, ann_folder: str | Path, output_dir: str | Path = "panoptic_eval"
    ) -> None:
        self.gt_json, self.gt_folder, self.output_dir = ann_file, ann_folder, output_dir
        self.predictions: dict[int, dict[str, Any]] = {}
        self.evaluation: Evaluation | None = None

    def update(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Add the predictions of some images.

        Args:
            predictions: for each image a dict of `image_id`; `file_name`, of its PNG; `png_string`, the
                PNG's content as bytes; and `segments_info`, a list of dicts with `id` and `category_id`.
        """
        for prediction in predictions:
            image_id = int(prediction["image_id"])
            self.predictions.setdefault(image_id, {**prediction, "image_id": image_id})

    def synchronize_between_processes(self) -> None:
        """Give every process the predictions of all; without torch.distributed there are no others."""
        from util.distributed import all_gather

        merged: dict[int, dict[str, Any]] = {}
        for predictions in all_gather(self.predictions):
            merged = {**predictions, **merged}
        self.predictions = dict(sorted(merged.items()))

    def summarize(self) -> dict[str, Any] | None:
        """Write the predictions, evaluate them, and print the groups' figures in percent.

        Returns:
            On the main process what datasets.panoptic_quality.figures gives, elsewhere None.

        Raises:
            UserError: see evaluate_files.
        """
        from util.distributed import is_main_process
        from util.files import write_table

        if not is_main_process():
            return None
        if self.output_dir:
            self.evaluation = self._evaluate(Path(self.output_dir))
            write_table(Path(self.output_dir) / "per_class.csv", self.evaluation.per_class())
        else:
            with tempfile.TemporaryDirectory() as folder:
                self.evaluation = self._evaluate(Path(folder))
        print(self.evaluation.group_table())
        return self.evaluation.figures()

    def _evaluate(self, folder: Path) -> Evaluation:
        entries = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for prediction in self.predictions.values():
                (folder / prediction["file_name"]).write_bytes(prediction["png_string"])
                entries.append({key: value for key, value in prediction.items() if key != "png_string"})
            pred_json = folder / "predictions.json"
            pred_json.write_text(json.dumps({"annotations": entries}), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write predictions to {folder}: {error.strerror or error}") from error
        return evaluate_files(self.gt_json, self.gt_folder, pred_json, folder)


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    parser = OneLineParser(
        prog="python -m datasets.panoptic_eval",
        description="Panoptic quality of predictions in COCO's format, as panopticapi computes it.",
    )
    flag = parser.add_argument
    flag("--gt_json", required=True, help="panoptic JSON of the ground truth")
    flag("--gt_folder", help="folder of its PNGs (left out: --gt_json without .json)")
    flag("--pred_json", required=True, help="panoptic JSON of the predictions")
    flag("--pred_folder", help="folder of their PNGs (left out: --pred_json without .json)")
    flag("--json", metavar="OUT", help="write the figures there, fractions of 1, as panopticapi names them")
    flag("--workers", type=int, help="processes (left out: one a core)")
    args = parser.parse_args(argv)

    def run() -> None:
        folders = [args.gt_folder or Path(args.gt_json).with_suffix("")]
        folders += [args.pred_folder or Path(args.pred_json).with_suffix("")]
        evaluation = evaluate_files(args.gt_json, folders[0], args.pred_json, folders[1], args.workers)
        if args.json:
            try:
                Path(args.json).write_text(json.dumps(evaluation.figures(), indent=1) + "\n")
            except OSError as error:
                raise UserError(f"--json {args.json}: cannot be written ({error.strerror})") from error
        print(evaluation.group_table(), evaluation.class_table(), sep="\n\n")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
