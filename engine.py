"""The two loops: one epoch of training, one pass of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from datasets.coco_eval import CocoEvaluator
from util.meters import MetricLogger, SmoothedValue
from util.step_guard import StepGuard

PRINT_EVERY = 10  # steps


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    data_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    epoch: int,
    max_norm: float = 0,
    *,
    warmup: torch.optim.lr_scheduler.LRScheduler | None = None,
    accum_steps: int = 1,
    start_step: int = 0,
    meters: Mapping[str, Any] | None = None,
    after_step: Callable[[int, MetricLogger], None] | None = None,
) -> dict[str, float]:
    """Train on every batch of a loader once.

    Args:
        data_loader: batches (samples, targets) as the collate functions of util.nested_tensor make them.
        epoch: its number, for the printed lines.
        max_norm: clip the gradient's norm to this; 0 leaves it alone.
        warmup: a schedule that steps behind every optimizer step.
        accum_steps: batches to one optimizer step; the gradient is that of one batch of all their images.
            Batches left over at the end are dropped.
        start_step, meters: continue inside an epoch, behind this many optimizer steps and with the state of
            its meters. The loader gives the batches that are left.
        after_step: called with the number of optimizer steps done in this epoch, and with the meters.

    Returns:
        Averages over the epoch and over ranks by name: the weighted `loss` and its weighted terms, every
        term under `*_unscaled`, `class_error` (weighted by matched objects) and `lr`.

    Raises:
        NotFinite: the loss or the gradient is not finite. The weights are as they were before that step.
        UserError: out of memory; the message names shape and images.
    """
    model.train()
    criterion.train()
    logger = _new_logger()
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    if meters is not None:
        logger.load_state_dict(meters)
    guard = StepGuard(optimizer, device, epoch)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batches = _Accumulated(data_loader, accum_steps)

    step = start_step
    for samples_of, targets_of in logger.log_every(batches, PRINT_EVERY, f"Epoch: [{epoch}]", start_step):
        step += 1
        guard.begin(step, samples_of, targets_of)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        options: dict[str, Any] = {}  # a criterion of a user's own takes outputs and targets alone
        for i, (samples, targets) in enumerate(zip(samples_of, targets_of, strict=True)):
            with guard, _gradients_shared(model, last=i == accum_steps - 1):
                samples, targets = _to_device(samples, targets, device)
                outputs = model(samples)
                if accum_steps > 1 and not options:
                    options["normalizers"] = criterion.normalizers(targets_of, outputs)  # type: ignore
                losses = criterion(outputs, targets, **options)
                guard.verify_previous()  # matching has just waited for the device: this reads without waiting
                loss, logged = _weigh(losses, criterion.weight_dict, accum_steps)  # type: ignore[arg-type]
                loss.backward()
            total += loss.detach()
            _log(logger, logged, outputs, targets)

        norm = nn.utils.clip_grad_norm_(parameters, max_norm) if max_norm > 0 else None
        guard.guard(total, norm)
        optimizer.step()
        logger.update(lr=optimizer.param_groups[0]["lr"])
        if warmup is not None:
            warmup.step()
        if after_step is not None:
            after_step(step, logger)

    guard.verify_previous(wait=True)
    logger.synchronize_between_processes()
    return {name: meter.global_avg for name, meter in logger.meters.items()}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    criterion: nn.Module,
    postprocessors: Mapping[str, nn.Module],
    data_loader: Iterable,
    base_ds: Any,
    device: torch.device,
    output_dir: Any,
) -> tuple[dict[str, Any], CocoEvaluator]:
    """Evaluate on every batch of a loader, without a collective before the end.

    Args:
        postprocessors: `bbox`, perhaps more; each adds its figures.
        base_ds: the ground truth, a pycocotools COCO.
        output_dir: unused by box evaluation; panoptic evaluation writes its files there.

    Returns:
        Averages over batches as in training, with `coco_eval_bbox` (the 12 COCO figures), and the evaluator.
    """
    model.eval()
    criterion.eval()
    logger = _new_logger()
    evaluator = CocoEvaluator(base_ds, ("bbox",))

    for samples, targets in logger.log_every(data_loader, PRINT_EVERY, "Test:"):
        image_ids = [int(target["image_id"]) for target in targets]  # still on the host
        samples, targets = _to_device(samples, targets, device)
        outputs = model(samples)
        losses = criterion(outputs, targets)
        _, logged = _weigh(losses, criterion.weight_dict)  # type: ignore[arg-type]
        _log(logger, logged, outputs, targets)

        original_sizes = torch.stack([target["orig_size"] for target in targets])
        results = postprocessors["bbox"](outputs, original_sizes)
        evaluator.update(dict(zip(image_ids, results, strict=True)))

    logger.synchronize_between_processes()
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    stats: dict[str, Any] = {name: meter.global_avg for name, meter in logger.meters.items()}
    stats["coco_eval_bbox"] = evaluator.coco_eval["bbox"].stats.tolist()
    return stats, evaluator


def _new_logger() -> MetricLogger:
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("class_error", SmoothedValue(fmt="{median:.2f} ({global_avg:.2f})"))
    return logger


class _Accumulated:
    """The batches of a loader in groups of one optimizer step each; what is left at the end is dropped."""

    def __init__(self, loader: Iterable, batches: int):
        self.loader = loader
        self.batches = batches

    def __len__(self) -> int:
        return len(self.loader) // self.batches  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[list[Any], list[Any]]]:
        group: list[tuple[Any, Any]] = []
        for samples, targets in self.loader:
            group.append((samples, targets))
            if len(group) == self.batches:
                yield [s for s, _ in group], [t for _, t in group]
                group = []


def _gradients_shared(model: nn.Module, last: bool) -> AbstractContextManager:
    """Under DistributedDataParallel, gradients travel with the last batch of a step only."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def _to_device(samples: Any, targets: Iterable[Mapping], device: torch.device) -> tuple[Any, list[dict]]:
    moved = [{k: v.to(device, non_blocking=True) for k, v in target.items()} for target in targets]
    return samples.to(device, non_blocking=True), moved


def _weigh(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], batches: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses, and all that is logged: by name, scaled and unscaled.

    Of the `batches` that make up a step each holds a share of every loss; times their number, the shares'
    average is the step's loss. Figures without a weight are averages already.
    """
    weighted = [name for name in losses if name in weights]
    terms = torch.stack([losses[name].float() for name in weighted])
    factors = torch.tensor([weights[name] for name in weighted], dtype=terms.dtype)
    scaled = terms * factors.to(terms.device, non_blocking=True)
    loss = scaled.sum()
    shares = [loss.detach(), *scaled.detach().unbind()]
    logged = dict(zip(["loss", *weighted], (share * batches for share in shares), strict=True))
    for name, value in losses.items():
        logged[f"{name}_unscaled"] = value.detach() * batches if name in weights else value.detach()
    if "class_error" in losses:
        logged["class_error"] = losses["class_error"].detach()
    return loss, logged


def _log(
    logger: MetricLogger,
    logged: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    targets: Iterable[Mapping],
) -> None:
    """Hand one step's figures to the logger, still on the device.

    class_error counts once for each object that a query can be matched with: a batch without objects says
    nothing about it.
    """
    queries = outputs["pred_logits"].shape[1]
    matched = sum(min(queries, len(target["labels"])) for target in targets)
    logger.update_vector(
        list(logged),
        torch.stack([value.float() for value in logged.values()]),
        weights={"class_error": matched, "class_error_unscaled": matched},
    )
