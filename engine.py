"""The two loops: one epoch of training, one pass of evaluation.

Both use of a model, a criterion, batches and targets only what the published loops use: `model(samples)`, a
dict of losses from `criterion(outputs, targets)`, `criterion.weight_dict`, and `.to(device)`.

Longer than 300 lines: both loops and what they share are read together, and edited together, in one file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.coco_eval import CocoEvaluator
from datasets.panoptic_eval import PanopticEvaluator
from run.finite_check import StepGuard, naming
from util import misc as utils  # noqa: F401  a name of the published file, for loops that are edited
from util.amp import Precision
from util.distributed import all_gather
from util.files import write_whole
from util.meters import AUXILIARY_AND_UNSCALED, MetricLogger, SmoothedValue
from util.nested_tensor import ByteBatch, NestedTensor
from util.progress import length

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
    precision: Precision | None = None,
) -> dict[str, float]:
    """Train on every batch of a loader, (samples, targets), once.

    Longer than 60 lines, because half of them say what goes in and what comes out.

    Args:
        epoch: its number, for the printed lines.
        max_norm: clip the gradient's norm to this; 0 leaves it alone.
        warmup: a learning-rate schedule, stepped after every optimizer step.
        accum_steps: batches to one optimizer step; the gradient is that of one batch of all their images.
            Batches left over at the end are dropped.
        start_step, meters: continue inside an epoch, after so many optimizer steps and with the state of its
            meters; the loader gives the batches that are left.
        after_step: called with the number of optimizer steps done in this epoch, and with the meters.
        precision: number format of the forward pass; None: float32.

    Returns:
        Averages over the epoch and over ranks by name: the weighted `loss` and its weighted terms, every
        term under `*_unscaled`, `class_error` (weighted by matched objects) and `lr`.

    Raises:
        NotFinite: the loss or the gradient is not finite. The weights are as they were before that step.
        UserError: out of memory; the message names shape and images.
    """
    device = torch.device(device)
    precision = precision or Precision("off", device)
    model.train()
    criterion.train()
    logger = _new_logger()
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    if meters is not None:
        logger.load_state_dict(meters)
    guard = StepGuard(optimizer, device, epoch, tolerant=precision.scaler is not None)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    batches = length(data_loader)
    total = None if batches is None else start_step + batches // accum_steps
    steps = _steps(data_loader, accum_steps)
    logged = logger.log_every(steps, PRINT_EVERY, f"Epoch: [{epoch}]", start_step, total)
    for step, (samples, targets) in enumerate(logged, start_step + 1):
        guard.begin(step, samples, targets)
        optimizer.zero_grad()
        loss = _accumulate_gradients(model, criterion, samples, targets, precision, guard, logger)
        precision.unscale(optimizer)
        # Computed even where nothing is clipped: the guard looks at the norm.
        norm = nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
        if guard.allows(loss, norm):
            optimizer.step()
        precision.adapt()
        logger.update(lr=optimizer.param_groups[0]["lr"])
        if warmup is not None:
            warmup.step()
        if after_step is not None:
            after_step(step, logger)

    guard.verify_previous(wait=True)
    logger.synchronize_between_processes()
    return {name: meter.global_avg for name, meter in logger.meters.items()}


def _steps(loader: Iterable, batches: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Samples and targets of the batches of each optimizer step; what is left at the end makes no step."""
    samples_of, targets_of = [], []
    for samples, targets in loader:
        samples_of.append(samples)
        targets_of.append(targets)
        if len(samples_of) == batches:
            yield samples_of, targets_of
            samples_of, targets_of = [], []


def _accumulate_gradients(
    model: nn.Module,
    criterion: nn.Module,
    samples_of: Sequence[Any],
    targets_of: Sequence[Sequence[Mapping]],
    precision: Precision,
    guard: StepGuard,
    logger: MetricLogger,
) -> Tensor:
    """Forward and backward over the batches of one optimizer step -> its loss, on the device."""
    batches = len(samples_of)
    total = torch.zeros((), device=precision.device)
    # A criterion that takes `normalizers` divides by the counts of the whole step, so that the losses of its
    # batches add up to the step's. Any other criterion's losses are averaged.
    sums = batches > 1 and _takes(criterion, "normalizers")
    options: dict[str, Any] = {}
    for i, (samples, targets) in enumerate(zip(samples_of, targets_of, strict=True)):
        # Under DistributedDataParallel, gradients travel with the last batch of a step only.
        parallel = isinstance(model, nn.parallel.DistributedDataParallel)
        with guard, model.no_sync() if parallel and i < batches - 1 else nullcontext():  # type: ignore[operator]
            samples, targets = _to_device(samples, targets, precision.device)
            outputs, matched = _forward(model, criterion, samples, targets, precision)
            if sums and not options:
                options = {"normalizers": criterion.normalizers(targets_of, outputs)}  # type: ignore[operator]
            losses = criterion(outputs, targets, **matched, **options)
            guard.verify_previous()  # matching has just waited for the device: this reads without waiting
            loss, logged = _weighted_sum(losses, criterion.weight_dict, batches if sums else 1)  # type: ignore
            if not sums:
                loss = loss / batches
            precision.backward(loss)
        total += loss.detach()
        _log(logger, logged, outputs, targets)
    return total


@torch.no_grad()
def evaluate(
    model: nn.Module,
    criterion: nn.Module,
    postprocessors: Mapping[str, nn.Module],
    data_loader: Any,
    base_ds: Any,
    device: torch.device,
    output_dir: Any,
    *,
    per_class: bool = False,
    max_dets: int | None = None,
    precision: Precision | None = None,
) -> tuple[dict[str, Any], CocoEvaluator | None]:
    """Evaluate on every batch of a loader; ranks communicate only at the end.

    Longer than 60 lines, because half of them say what goes in and what comes out.

    Args:
        postprocessors: `bbox`, perhaps `segm` and `panoptic`; each adds its figures.
        base_ds: the ground truth of boxes and masks, a pycocotools COCO; None: neither is evaluated.
        output_dir: panoptic predictions and figures go to its folder panoptic_eval; empty: nothing is kept.
        per_class: print panoptic quality of each class, too.
        max_dets: also report AP and AR with so many detections an image, as `max_dets_bbox`, `max_dets_segm`.

    Returns:
        Averages over batches as in training, with `coco_eval_bbox` and `coco_eval_masks` (the 12 COCO figures
        of each), `PQ_all`, `PQ_th` and `PQ_st` (dicts of pq, sq, rq in [0, 1], n), as far as they are
        evaluated; and the COCO evaluator, if there is one.
    """
    device = torch.device(device)
    precision = precision or Precision("off", device)
    model.eval()
    criterion.eval()
    logger = _new_logger()
    kinds = [kind for kind in ("bbox", "segm") if kind in postprocessors]
    options = {} if max_dets is None else {"max_dets": max_dets}
    coco = None if base_ds is None else CocoEvaluator(base_ds, kinds, **options)
    segm = coco is not None and "segm" in kinds
    panoptic = None
    if "panoptic" in postprocessors:
        dataset, folder = data_loader.dataset, Path(output_dir) / "panoptic_eval" if output_dir else ""
        panoptic = PanopticEvaluator(dataset.ann_file, dataset.ann_folder, folder)
    panoptic_select = getattr(postprocessors.get("panoptic"), "select", None)
    # A user-defined panoptic post-processor, which does not say which masks it reads, gets them all.
    every_mask = segm or (panoptic is not None and panoptic_select is None)

    for samples, targets in logger.log_every(data_loader, PRINT_EVERY, "Test:"):
        image_ids = [int(target["image_id"]) for target in targets]  # still on the host
        samples, targets = _to_device(samples, targets, device)
        with naming(image_ids):
            outputs, matched = _forward(
                model, criterion, samples, targets, precision, panoptic_select, every_mask
            )
            losses = criterion(outputs, targets, **matched)
        _, logged = _weighted_sum(losses, criterion.weight_dict)  # type: ignore[arg-type]
        _log(logger, logged, outputs, targets)

        original_sizes = torch.stack([target["orig_size"] for target in targets])
        if coco is not None:
            results = postprocessors["bbox"](outputs, original_sizes)
            if segm:
                results = postprocessors["segm"](results, outputs, original_sizes, _sizes(targets))
            coco.update(dict(zip(image_ids, results, strict=True)))
        if panoptic is not None:
            maps = postprocessors["panoptic"](outputs, _sizes(targets), original_sizes)
            names = [{"image_id": i, "file_name": f"{i:012d}.png"} for i in image_ids]
            panoptic.update([{**one, **name} for one, name in zip(maps, names, strict=True)])

    logger.synchronize_between_processes()
    stats: dict[str, Any] = {name: meter.global_avg for name, meter in logger.meters.items()}
    if coco is not None:
        stats |= _coco_figures(coco, kinds, max_dets)
    if panoptic is not None:
        stats |= _panoptic_figures(panoptic, per_class)
    return stats, coco


def _forward(
    model: nn.Module,
    criterion: nn.Module,
    samples: Any,
    targets: list[dict],
    precision: Precision,
    also: Callable | None = None,
    every_mask: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outputs in float32, and, where the model asked for them, the matches to hand to the criterion.

    Masks are drawn for the queries that the criterion compares, which are matched on the way, and for those
    that `also` selects; all of them for `every_mask`, or where model or criterion are user-defined.
    """
    select = None
    if not every_mask and _takes(model, "select") and hasattr(criterion, "matched_queries"):
        select = criterion.matched_queries(targets, also)  # type: ignore[operator]
    options = {} if select is None else {"select": precision.outside(select)}
    with precision.autocast():
        outputs = model(samples, **options)
    return precision.outputs(outputs), {} if select is None else {"matches": select.matches}


def _takes(module: nn.Module, argument: str) -> bool:
    """Whether forward has an argument of this name; a user-defined one may have the published ones alone."""
    parameters = inspect.signature(module.forward).parameters
    wrapped = getattr(module, "module", None)
    if isinstance(wrapped, nn.Module) and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return _takes(wrapped, argument)  # DistributedDataParallel and its like hand on what they are given
    return argument in parameters


def _sizes(targets: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """(height, width) of the images as the model sees them, without padding: [B, 2]."""
    return torch.stack([target["size"] for target in targets])


def _coco_figures(coco: CocoEvaluator, kinds: Sequence[str], max_dets: int | None) -> dict[str, Any]:
    """The 12 figures of boxes and masks, for every process; with `max_dets` those of so many detections."""
    coco.synchronize_between_processes()
    coco.accumulate()
    coco.summarize()
    names = {"bbox": "coco_eval_bbox", "segm": "coco_eval_masks"}
    figures = {names[kind]: coco.coco_eval[kind].stats.tolist() for kind in kinds}
    if max_dets is not None:
        figures |= {f"max_dets_{kind}": values for kind, values in coco.max_dets_stats.items()}
    return figures


def _panoptic_figures(evaluator: Any, per_class: bool) -> dict[str, dict[str, Any]]:
    """PQ by group, for every process; the main one writes the figures of each class."""
    evaluator.synchronize_between_processes()
    figures = all_gather(evaluator.summarize())[0]
    evaluation = getattr(evaluator, "evaluation", None)  # of ours, on the main process
    if evaluation is not None:
        table = evaluation.class_table()
        if per_class:
            print(table)
        if evaluator.output_dir:
            write_whole(Path(evaluator.output_dir) / "per_class.txt", table + "\n")
    assert figures is not None
    return {"PQ_all": figures["All"], "PQ_th": figures["Things"], "PQ_st": figures["Stuff"]}


def _new_logger() -> MetricLogger:
    logger = MetricLogger("  ", hidden=AUXILIARY_AND_UNSCALED)
    logger.add_meter("class_error", SmoothedValue(fmt="{median:.2f} ({global_avg:.2f})"))
    return logger


def _to_device(samples: Any, targets: Iterable[Mapping], device: torch.device) -> tuple[Any, list[dict]]:
    """Both on the device; what can be copied without waiting is."""

    def moved(x: Any) -> Any:
        if isinstance(x, (Tensor, NestedTensor, ByteBatch)):
            return x.to(device, non_blocking=True)
        return x.to(device)

    return moved(samples), [{name: moved(value) for name, value in target.items()} for target in targets]


def _weighted_sum(
    losses: Mapping[str, Any], weights: Mapping[str, Any], shares: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and what is logged, scaled and unscaled.

    With `shares` > 1 these losses are one of that many summands of the step's loss. They are logged times
    `shares`, so that the logger's average is the step's loss; figures without a weight are averages already.
    """
    device = next((value.device for value in losses.values() if isinstance(value, Tensor)), None)
    # A user-defined criterion may give plain numbers, and vectors of one.
    values = {name: torch.as_tensor(value, device=device).reshape(()) for name, value in losses.items()}
    scaled = {name: value * weights[name] for name, value in values.items() if name in weights}
    loss = torch.stack(list(scaled.values())).sum() if scaled else torch.zeros((), device=device)
    logged = {name: value.detach() * shares for name, value in {"loss": loss, **scaled}.items()}
    for name, value in values.items():
        logged[f"{name}_unscaled"] = value.detach() * (shares if name in weights else 1)
    if "class_error" in values:
        logged["class_error"] = values["class_error"].detach()
    return loss, logged


def _log(
    logger: MetricLogger, logged: Mapping[str, Tensor], outputs: Any, targets: Iterable[Mapping]
) -> None:
    """Hand one step's figures to the logger, still on the device.

    class_error counts once for each object that a query can be matched with, where outputs and targets say
    how many there are: a batch without objects says nothing about it.
    """
    weights = {}
    has_logits = isinstance(outputs, Mapping) and "pred_logits" in outputs
    if "class_error" in logged and has_logits and all("labels" in target for target in targets):
        queries = outputs["pred_logits"].shape[1]
        matched = sum(min(queries, len(target["labels"])) for target in targets)
        weights = {"class_error": matched, "class_error_unscaled": matched}
    logger.update_vector(list(logged), torch.stack([value.float() for value in logged.values()]), weights)
