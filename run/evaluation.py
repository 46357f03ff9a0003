"""Evaluating a model during a run, and `--eval`, which does nothing else."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from torch.utils.data import DataLoader

import engine
from datasets.coco_eval import CocoEvaluator
from run.checkpoint import Source
from run.records import RunRecords, per_class_table
from run.summary import describe
from util.amp import Precision
from util.distributed import is_main_process
from util.errors import UserError

if TYPE_CHECKING:
    from report import RunReport
    from run.ema import WeightAverage


def options_for(loop: Callable, **options: tuple[Any, str]) -> dict[str, Any]:
    """Those keyword arguments that a loop of engine.py takes; an engine of somebody's own may know fewer.

    Args:
        options: by name the value, and the flag that asks for it, "" where it can be done without.

    Raises:
        UserError: the loop lacks what a flag asks for.
    """
    taken = inspect.signature(loop).parameters
    for name, (_, flag) in options.items():
        if flag and name not in taken:
            raise UserError(f"{flag}: {loop.__name__} of engine.py has no argument {name}; leave it out")
    return {name: value for name, (value, _) in options.items() if name in taken}


class Evaluation(NamedTuple):
    """What an evaluation needs beside the model; called with one, it evaluates it."""

    args: argparse.Namespace
    criterion: nn.Module
    postprocessors: dict[str, nn.Module]
    loader: DataLoader
    base_ds: Any
    precision: Precision

    def __call__(
        self, model: nn.Module, average: WeightAverage | None = None
    ) -> tuple[dict[str, Any], CocoEvaluator | None]:
        """Evaluate a model, and the average of its weights if there is one.

        Returns:
            The figures by their names in log.txt, the average's under `test_ema_*`; and the COCO evaluator of
            the model itself, if there is one.
        """
        stats, evaluator = self.evaluated(model, self.args.output_dir)
        line = {f"test_{name}": value for name, value in stats.items()}
        if average is not None:
            averaged, _ = self.evaluated(average.model, "")  # OUTPUT_DIR/panoptic_eval is the model's own
            line |= {f"test_ema_{name}": value for name, value in averaged.items()}
        return line, evaluator

    def evaluated(self, model: nn.Module, output_dir: str) -> tuple[dict[str, Any], CocoEvaluator | None]:
        """What engine.evaluate gives."""
        args = self.args
        return engine.evaluate(
            model,
            self.criterion,
            self.postprocessors,
            self.loader,
            self.base_ds,
            self.precision.device,
            output_dir,
            **options_for(
                engine.evaluate,
                per_class=(args.eval, ""),
                max_dets=(args.max_dets, "--max_dets" if args.max_dets else ""),
                precision=(self.precision, "" if args.amp == "off" else "--amp"),
            ),
        )


def evaluate_only(
    model: nn.Module,
    source: Source | None,
    evaluation: Evaluation,
    records: RunRecords,
    report: RunReport | None,
    categories: dict[int, str],
) -> None:
    """`--eval`: print and record the figures of a model, and with `--ema` of its averaged weights."""
    args = evaluation.args
    if is_main_process():
        print(describe(args, model, [("val", evaluation.loader)], categories, range(0)))
    average = None
    if args.ema:
        from run.ema import WeightAverage

        average = WeightAverage(model, args.ema)
        if source is None or not average.load_state_dict(*source):
            raise UserError(
                "--eval --ema: there are no averaged weights; pass --resume a checkpoint that has some"
            )
    line, evaluator = evaluation(model, average)
    if evaluator is not None:
        if is_main_process():
            print(per_class_table(evaluator))
        records.save_evaluation(evaluator)
    records.write_stats(line)
    if report is not None:
        report.write(evaluator, [line])
