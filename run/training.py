"""A training run: train, save, evaluate and record each epoch, from where the checkpoint stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.data import DataLoader

import engine
from run.checkpoint import Position, RunState
from run.evaluation import Evaluation, options_for
from run.finite_check import NotFinite
from run.records import RunRecords, output_folder, per_class_table, write_crash_report
from run.saving import Saver
from run.summary import describe
from util.distributed import (
    StepVote,
    get_rank,
    is_main_process,
)
from util.interruption import Interruption
from util.meters import MetricLogger
from util.random_state import random_state_kept, set_random_state

if TYPE_CHECKING:
    from report import RunReport

KEEP_EVERY = 100  # epochs, as published


class Training:
    """All epochs of a run: train, save, evaluate, record.

    Args:
        state: what changes while it trains.
        position: where it begins.
        loader: the training set's batches.
        evaluation: what is done after each epoch.
        records: where log.txt and its like go.
        report: what writes report.html, if anything does.
    """

    def __init__(
        self,
        state: RunState,
        position: Position,
        loader: DataLoader,
        evaluation: Evaluation,
        records: RunRecords,
        report: RunReport | None,
    ):
        self.state, self.position = state, position
        self.loader, self.evaluation = loader, evaluation
        self.records, self.report = records, report
        self.args = args = state.args
        self.precision = evaluation.precision
        self.interruption = Interruption()
        self.saver = Saver(
            output_folder(args),
            state.entries,
            args.save_every_minutes,
            args.save_every_steps,
            args.keep,
            self.interruption,
            StepVote(args.dist_timeout),
        )
        if args.compile:
            from models.compilation import warm_up

            warm_up(state.model, args.batch_size, self.precision, state.groups)
        self.wrapped: nn.Module = state.groups or state.model
        if args.distributed:
            from run.data_parallel import data_parallel, settle_buckets

            self.wrapped = data_parallel(self.wrapped, self.precision.device)
            settle_buckets(self.wrapped, self.precision.device)

    def run(self) -> None:
        """Train to the last epoch, from the beginning or from where the checkpoint of `--resume` left off."""
        args, position, state = self.args, self.position, self.state
        logged = self.records.begin(position.epoch + 1, args, state.categories)
        state.best.follow(logged)
        epochs = range(position.epoch + 1, args.epochs)
        if is_main_process():
            if position.resumed_from is not None:
                steps = f" and {position.step} steps" if position.step else ""
                print(f"--resume {position.resumed_from}: goes on after {position.epoch + 1} epochs{steps}")
            loaders = [("train", self.loader), ("val", self.evaluation.loader)]
            print(describe(args, state.model, loaders, state.categories, epochs))
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
                if state.best.out_of_patience(epoch - 1, args.patience):
                    if is_main_process():
                        since = f"nothing better since epoch {state.best.epoch}"
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
        args, state = self.args, self.state
        if hasattr(self.loader.dataset, "set_epoch"):  # a user-defined data set draws as it likes
            self.loader.dataset.set_epoch(epoch)
        self.loader.batch_sampler.set_epoch(epoch, position.step * args.accum_steps)  # type: ignore
        try:
            stats = engine.train_one_epoch(
                self.wrapped,
                self.evaluation.criterion,
                self.loader,
                state.optimizer,
                self.precision.device,
                epoch,
                args.clip_max_norm,
                **options_for(
                    engine.train_one_epoch,
                    warmup=(state.warmup, "--warmup_steps" if state.warmup else ""),
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
        state.drops.step()
        if args.distributed:
            from run.data_parallel import broadcast_buffers

            broadcast_buffers(state.model)
            if state.average is not None:
                broadcast_buffers(state.average.model)
        return stats

    def after_step(self, epoch: int) -> Callable[[int, MetricLogger], None]:
        """What is done after each optimizer step: the average moves, then perhaps all is saved."""
        save, state = self.saver.inside_epoch(epoch), self.state

        def update_and_save(step: int, logger: MetricLogger) -> None:
            if state.groups is not None and step == 1 and epoch == self.position.epoch + 1:
                state.groups.check_gradient()  # once a run, because it waits for the device
            if state.average is not None:
                state.average.update(state.model)
            save(step, logger)

        return update_and_save

    def finish_epoch(self, epoch: int, train_stats: dict[str, float]) -> None:
        """Keep copies of, evaluate and record an epoch that is trained and saved.

        A run that is killed in here does all of it again when it is resumed.
        """
        args, state = self.args, self.state
        if (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % KEEP_EVERY == 0:
            self.saver.copy_as(f"checkpoint{epoch:04}.pth")
        # Evaluation must not move the training's random numbers: a resumed run may have no need of it.
        with random_state_kept(), self.interruption.at_once():
            tested, evaluator = self.evaluation(state.model, state.average)
        line = {f"train_{name}": value for name, value in train_stats.items()} | tested
        trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        line |= {"epoch": epoch, "n_parameters": trained}
        if state.best.improves(line):
            self.saver.copy_as("checkpoint_best.pth")
        if evaluator is not None:
            self.records.save_evaluation(evaluator, epoch)
            if epoch == args.epochs - 1 and is_main_process():
                print(per_class_table(evaluator))
        self.records.finish_epoch(line)
        if self.report is not None:
            self.report.write(evaluator)
