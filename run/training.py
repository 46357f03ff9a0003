"""A run of training: epochs that are trained, saved, evaluated and recorded, from wherever one left off."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

import engine
from datasets.coco_eval import CocoEvaluator
from models.compilation import warm_up
from report import Report
from run.best import Best
from run.ema import WeightAverage
from run.finite_check import NotFinite
from run.records import RunRecords, per_class_table, write_crash_report
from run.resume import Position, Source, output_folder, position_of, resume_extras
from run.saving import Saver
from run.schedule import build_schedules, resume_optimisation, warmup_steps_of
from run.summary import describe, steps_per_epoch
from util.amp import Precision
from util.distributed import broadcast_buffers, data_parallel, get_rank, is_main_process, settle_buckets
from util.interruption import Interruption
from util.meters import MetricLogger
from util.random_state import random_state_kept


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
        return engine.evaluate(
            model,
            self.criterion,
            self.postprocessors,
            self.loader,
            self.base_ds,
            self.precision.device,
            output_dir,
            per_class=self.args.eval,
            max_dets=self.args.max_dets,
            precision=self.precision,
        )


class Training:
    """All epochs of a run: train, save, evaluate, record.

    Args:
        args: every flag, resolved.
        model: on its device, with the weights to start from.
        optimizer: of its weights.
        criterion: its loss.
        loader: the training set's batches.
        evaluation: what is done behind each epoch.
        records: where log.txt and its like go.
        report: what writes report.html, if anything does.
        categories: id -> name, for the checkpoint.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module,
        loader: DataLoader,
        evaluation: Evaluation,
        records: RunRecords,
        report: Report | None,
        categories: dict[int, str],
    ):
        self.args, self.model, self.optimizer, self.criterion = args, model, optimizer, criterion
        self.loader, self.evaluation = loader, evaluation
        self.records, self.report, self.categories = records, report, categories
        self.precision = evaluation.precision
        self.n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def run(self, source: Source | None) -> None:
        """Train to the last epoch, from the beginning or from where the checkpoint of `--resume` left off."""
        args = self.args
        position = self.prepare(source)
        logged = self.records.begin(position.epoch + 1, args, self.categories)
        self.best.follow(logged)
        epochs = range(position.epoch + 1, args.epochs)
        if is_main_process():
            if source is not None and position.resumes:
                steps = f" and {position.step} steps" if position.step else ""
                print(f"--resume {source.path}: goes on behind {position.epoch + 1} epochs{steps}")
            self.announce(epochs)
        start = time.time()
        with Interruption() as self.interruption:
            times = args.save_every_minutes, args.save_every_steps
            self.saver = Saver(output_folder(args), self.state, *times, args.keep, self.interruption)
            if position.unrecorded is not None and position.epoch not in [line["epoch"] for line in logged]:
                self.finish_epoch(position.epoch, position.unrecorded)  # killed between saving and evaluating
            position.restore_random_state()
            for epoch in epochs:
                if self.best.out_of_patience(epoch - 1, args.patience):
                    if is_main_process():
                        since = f"nothing better since epoch {self.best.epoch}"
                        print(f"--patience {args.patience}: {since}, ending")
                    break
                train_stats = self.train_epoch(epoch, position)
                self.saver.save(epoch, train_stats=train_stats)
                self.finish_epoch(epoch, train_stats)
                position = Position(epoch)
        self.records.close()
        if is_main_process():
            print(f"Training time {timedelta(seconds=int(time.time() - start))}")

    def prepare(self, source: Source | None) -> Position:
        """Bring everything to where a checkpoint left off, if there is one -> where that is."""
        args, model = self.args, self.model
        self.average = WeightAverage(model, args.ema) if args.ema else None
        warmup_steps = warmup_steps_of(source, args.warmup_steps)
        self.drops, self.warmup = build_schedules(self.optimizer, args.lr_drop, warmup_steps)
        self.best = Best() if source is None else Best(**source.checkpoint.get("best", {}))
        position = position_of(source, args, steps_per_epoch(self.loader, args))
        if source is not None and position.resumes:
            resume_optimisation(source, self.optimizer, self.drops, self.warmup, args)
            resume_extras(source, self.average, self.precision)
        if args.compile:
            warm_up(model, args.batch_size, self.precision)
        self.trained = model
        if args.distributed:
            self.trained = data_parallel(model, args.gpu)
            settle_buckets(self.trained, self.precision.device)
        return position

    def announce(self, epochs: range) -> None:
        """Print what is about to happen."""
        loaders = [("train", self.loader), ("val", self.evaluation.loader)]
        print(describe(self.args, self.model, loaders, self.categories, epochs))
        if not epochs:
            print(f"finished already: all {self.args.epochs} epochs are trained")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the position."""
        scaler, data = self.precision.scaler, self.loader.dataset
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.drops.state_dict(),
            "warmup": None if self.warmup is None else self.warmup.state_dict(),
            "best": vars(self.best),
            "args": vars(self.args),
            "categories": self.categories,
            **({"is_thing": data.is_thing} if hasattr(data, "is_thing") else {}),  # panoptic
            **({} if scaler is None else {"scaler": scaler.state_dict()}),
            **({} if self.average is None else self.average.state_dict()),
        }

    def train_epoch(self, epoch: int, position: Position) -> dict[str, float]:
        """Train an epoch, or what is left of it behind a position -> its averages."""
        args = self.args
        self.loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        self.loader.batch_sampler.set_epoch(epoch, position.step * args.accum_steps)  # type: ignore
        try:
            stats = engine.train_one_epoch(
                self.trained,
                self.criterion,
                self.loader,
                self.optimizer,
                self.precision.device,
                epoch,
                args.clip_max_norm,
                warmup=self.warmup,
                accum_steps=args.accum_steps,
                start_step=position.step,
                meters=position.meters,
                after_step=self.after_step(epoch),
                precision=self.precision,
            )
        except NotFinite as error:
            remark = write_crash_report(self.saver.folder, error.report, get_rank())
            raise NotFinite(f"{error}{remark}", error.report) from error
        self.drops.step()
        broadcast_buffers(self.model)
        if self.average is not None:
            broadcast_buffers(self.average.model)
        return stats

    def after_step(self, epoch: int) -> Callable[[int, MetricLogger], None]:
        """What is done behind each optimizer step: the average moves, then perhaps all is saved."""
        save = self.saver.inside_epoch(epoch)
        average = self.average
        if average is None:
            return save

        def update_and_save(step: int, logger: MetricLogger) -> None:
            average.update(self.model)
            save(step, logger)

        return update_and_save

    def finish_epoch(self, epoch: int, train_stats: dict[str, float]) -> None:
        """Keep, evaluate and record an epoch that is trained and saved; a kill inside is made up for."""
        args = self.args
        if (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % 100 == 0:
            self.saver.copy_as(f"checkpoint{epoch:04}.pth")
        with random_state_kept(), self.interruption.at_once():  # a resumed run may not evaluate again
            tested, evaluator = self.evaluation(self.model, self.average)
        line = {f"train_{name}": value for name, value in train_stats.items()} | tested
        line |= {"epoch": epoch, "n_parameters": self.n_parameters}
        if self.best.improves(line):
            self.saver.copy_as("checkpoint_best.pth")
        if evaluator is not None:
            self.records.save_evaluation(evaluator, epoch)
            if epoch == args.epochs - 1 and is_main_process():
                print(per_class_table(evaluator.per_class()))
        self.records.finish_epoch(line)
        if self.report is not None:
            self.report.write(evaluator)
