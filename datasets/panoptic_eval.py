"""Panoptic quality of predictions: while a model is evaluated, and of files.

    python -m datasets.panoptic_eval --gt_json gt.json --gt_folder gt --pred_json pred.json --pred_folder pred

The files are COCO's: a JSON whose `annotations` hold image_id, file_name and segments_info, and a folder of
PNGs; the ground truth's JSON has `categories` with `isthing`, too. The figures are panopticapi's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.command_line import OneLineParser
from util.errors import UserError, exit_status

if TYPE_CHECKING:
    from datasets.panoptic_quality import Evaluation

# What counts is imported where it counts: engine.py has the evaluator's name in runs on boxes, too.


class PanopticEvaluator:
    """Collects panoptic predictions over a data set and computes panoptic quality.

    All images of the ground truth are evaluated. An image given more than once, by one process or by
    several, counts once, as it was given first. PNGs, some kilobytes each, are kept in memory and travel
    between processes with the rest, so that these need no folder in common.

    Args:
        ann_file: COCO panoptic JSON of the ground truth.
        ann_folder: the folder of its PNGs.
        output_dir: the main process writes PNGs, predictions.json and per_class.csv there; empty: nothing
            is kept.

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
            UserError: see panoptic_files.evaluate_files.
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
        from datasets.panoptic_files import evaluate_files

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
        from datasets.panoptic_files import evaluate_files

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
