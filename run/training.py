"""A training run: train, save, evaluate and record each epoch, from where the checkpoint stands."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import DataLoader

import engine
from run.checkpoint import (
    Position,
    RunState,
    best_so_far,
    can_resume,
    position_of,
    warmup_length,
)
from run.evaluation import Evaluation, options_for
from run.finite_check import NotFinite
from run.records import RunRecords, output_folder, per_class_table, write_crash_report
from run.resume import Source
from run.saving import Saver
from run.state import WeightAverage, build_schedules
from run.summary import describe, steps_per_epoch
from util.distributed import (
    StepVote,
    broadcast_buffers,
    data_parallel,
    get_rank,
    is_main_process,
    settle_buckets,
)
from util.interruption import Interruption
from util.meters import MetricLogger
from util.random_state import random_state_kept, set_random_state

if TYPE_CHECKING:
    from models.query_groups import QueryGroups
    from report import RunReport

KEEP_EVERY = 100  # epochs, as published


class Training:
    """All epochs of a run: train, save, evaluate, record.

    Args:
        args: every flag, resolved.
        model: on its device, with the weights to start from.
        groups: the model with further groups of queries to train, with `--query_groups`.
        optimizer: of its weights.
        criterion: its loss.
        loader: the training set's batches.
        evaluation: what is done after each epoch.
        records: where log.txt and its like go.
        report: what writes report.html, if anything does.
        categories: id -> name, for the checkpoint.
        source: the checkpoint of `--resume`; it may be let go of afterwards.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: nn.Module,
        groups: QueryGroups | None,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module,
        loader: DataLoader,
        evaluation: Evaluation,
        records: RunRecords,
        report: RunReport | None,
        categories: dict[int, str],
        source: Source | None,
    ):
        self.args, self.model, self.optimizer, self.criterion = args, model, optimizer, criterion
        self.groups = groups
        self.loader, self.evaluation = loader, evaluation
        self.records, self.report, self.categories = records, report, categories
        self.precision = evaluation.precision
        self.n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.average = WeightAverage(model, args.ema) if args.ema else None
        warmup_steps = warmup_length(source, args.warmup_steps)
        self.drops, self.warmup = build_schedules(optimizer, args.lr_drop, warmup_steps)
        self.best = best_so_far(source)
        self.state = RunState(
            args,
            categories,
            getattr(loader.dataset, "is_thing", None),  # of panoptic data
            model,
            groups,
            optimizer,
            self.drops,
            self.warmup,
            self.average,
            self.precision.scaler,
            self.best,
        )
        self.position = position_of(source, args, steps_per_epoch(loader, args))
        self.resumed_from = None
        if source is not None and can_resume(source.checkpoint):
            self.state.restore(source)
            self.resumed_from = source.path
        self.interruption = Interruption()
        self.saver = Saver(
            output_folder(args),
            self.state.entries,
            args.save_every_minutes,
            args.save_every_steps,
            args.keep,
            self.interruption,
            StepVote(args.dist_timeout),
        )
        if args.compile:
            from models.compilation import warm_up

            warm_up(model, args.batch_size, self.precision, groups)
        self.wrapped: nn.Module = groups or model
        if args.distributed:
            self.wrapped = data_parallel(self.wrapped, self.precision.device)
            settle_buckets(self.wrapped, self.precision.device)

    def run(self) -> None:
        """Train to the last epoch, from the beginning or from where the checkpoint of `--resume` left off."""
        args, position = self.args, self.position
        logged = self.records.begin(position.epoch + 1, args, self.categories)
        self.best.follow(logged)
        epochs = range(position.epoch + 1, args.epochs)
        if is_main_process():
            if self.resumed_from is not None:
                steps = f" and {position.step} steps" if position.step else ""
                print(f"--resume {self.resumed_from}: goes on after {position.epoch + 1} epochs{steps}")
            loaders = [("train", self.loader), ("val", self.evaluation.loader)]
            print(describe(args, self.model, loaders, self.categories, epochs))
            if not epochs:
                print(f"finished already: all {args.epochs} epochs are trained")
        start = time.time()
        with self.interruption:
            if position.train_stats is not None and position.epoch not in [line["epoch"] for line in logged]:
                # The run was killed between saving and evaluating.
                self.finish_epoch(position.epoch, position.train_stats)
            if position.random is not None:
                set_random_state(position.random)
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

    def train_epoch(self, epoch: int, position: Position) -> dict[str, float]:
        """Train an epoch, or what is left of it after a position -> its averages."""
        args = self.args
        if hasattr(self.loader.dataset, "set_epoch"):  # a user-defined data set draws as it likes
            self.loader.dataset.set_epoch(epoch)
        self.loader.batch_sampler.set_epoch(epoch, position.step * args.accum_steps)  # type: ignore
        try:
            stats = engine.train_one_epoch(
                self.wrapped,
                self.criterion,
                self.loader,
                self.optimizer,
                self.precision.device,
                epoch,
                args.clip_max_norm,
                **options_for(
                    engine.train_one_epoch,
                    warmup=(self.warmup, "--warmup_steps" if self.warmup else ""),
                    accum_steps=(args.accum_steps, "--accum_steps" if args.accum_steps > 1 else ""),
                    start_step=(position.step, "--resume inside an epoch" if position.step else ""),
                    meters=(position.meters, ""),
                    after_step=(self.after_step(epoch), "--ema" if args.ema else ""),
                    precision=(self.precision, "" if args.amp == "off" else "--amp"),
                ),
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
        """What is done after each optimizer step: the average moves, then perhaps all is saved."""
        save = self.saver.inside_epoch(epoch)

        def update_and_save(step: int, logger: MetricLogger) -> None:
            if self.groups is not None and step == 1 and epoch == self.position.epoch + 1:
                self.groups.check_gradient()  # once a run, because it waits for the device
            if self.average is not None:
                self.average.update(self.model)
            save(step, logger)

        return update_and_save

    def finish_epoch(self, epoch: int, train_stats: dict[str, float]) -> None:
        """Keep copies of, evaluate and record an epoch that is trained and saved.

        A run that is killed in here does all of it again when it is resumed.
        """
        args = self.args
        if (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % KEEP_EVERY == 0:
            self.saver.copy_as(f"checkpoint{epoch:04}.pth")
        # Evaluation must not move the training's random numbers: a resumed run may have no need of it.
        with random_state_kept(), self.interruption.at_once():
            tested, evaluator = self.evaluation(self.model, self.average)
        line = {f"train_{name}": value for name, value in train_stats.items()} | tested
        line |= {"epoch": epoch, "n_parameters": self.n_parameters}
        if self.best.improves(line):
            self.saver.copy_as("checkpoint_best.pth")
        if evaluator is not None:
            self.records.save_evaluation(evaluator, epoch)
            if epoch == args.epochs - 1 and is_main_process():
                print(per_class_table(evaluator))
        self.records.finish_epoch(line)
        if self.report is not None:
            self.report.write(evaluator)
