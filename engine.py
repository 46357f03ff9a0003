"""The two loops: one epoch of training, one pass of evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datasets.coco_eval import CocoEvaluator
from util.errors import UserError
from util.meters import MetricLogger, SmoothedValue

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
) -> dict[str, float]:
    """Train on every batch of a loader once.

    Args:
        data_loader: batches (samples, targets) as the collate functions of util.nested_tensor make them.
        epoch: its number, for the printed lines.
        max_norm: clip the gradient's norm to this; 0 leaves it alone.
        warmup: a schedule that steps behind every optimizer step.

    Returns:
        Averages over the epoch and over ranks by name: the weighted `loss` and its weighted terms, every
        term under `*_unscaled`, `class_error` (weighted by matched objects) and `lr`.

    Raises:
        UserError: the loss or the gradient is not finite. The weights are as they were before that step.
    """
    model.train()
    criterion.train()
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    logger.add_meter("class_error", SmoothedValue(window_size=1, fmt="{value:.2f}"))
    finite = _FiniteCheck(optimizer, device)

    for samples, targets in logger.log_every(data_loader, PRINT_EVERY, f"Epoch: [{epoch}]"):
        samples, targets = _to_device(samples, targets, device)
        outputs = model(samples)
        losses = criterion(outputs, targets)
        finite.verify_previous()  # the matcher has just waited for the device: this reads without waiting
        loss, logged = _weigh(losses, criterion.weight_dict)  # type: ignore[arg-type]

        optimizer.zero_grad()
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if max_norm > 0:
            norm = nn.utils.clip_grad_norm_(parameters, max_norm)
            finite.guard(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        else:
            finite.guard(torch.isfinite(loss.detach()))
        optimizer.step()

        _log(logger, logged, outputs, targets)
        logger.update(lr=optimizer.param_groups[0]["lr"])
        if warmup is not None:
            warmup.step()

    finite.verify_previous(wait=True)
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
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("class_error", SmoothedValue(window_size=1, fmt="{value:.2f}"))
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


def _to_device(samples: Any, targets: Iterable[Mapping], device: torch.device) -> tuple[Any, list[dict]]:
    moved = [{k: v.to(device, non_blocking=True) for k, v in target.items()} for target in targets]
    return samples.to(device, non_blocking=True), moved


def _weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses, and all that is logged: by name, scaled and unscaled."""
    weighted = [name for name in losses if name in weights]
    terms = torch.stack([losses[name].float() for name in weighted])
    factors = torch.tensor([weights[name] for name in weighted], dtype=terms.dtype)
    scaled = terms * factors.to(terms.device, non_blocking=True)
    loss = scaled.sum()
    logged = {"loss": loss.detach(), **dict(zip(weighted, scaled.detach().unbind(), strict=True))}
    logged |= {f"{name}_unscaled": value.detach() for name, value in losses.items()}
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


class _FiniteCheck:
    """Stops training at a loss or gradient that is not finite, before it reaches the weights.

    On a CPU the flag is simply looked at. On a GPU looking would wait for the device, so the fused optimizer
    is told on the device to leave out the step, and the flag is read one step later, when it has arrived.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer = optimizer
        self.deferred = device.type == "cuda" and bool(optimizer.defaults.get("fused"))
        self.flag = torch.ones((), dtype=torch.bool, pin_memory=self.deferred)
        self.step = 0

    def guard(self, finite: Tensor) -> None:
        """Let the next optimizer step happen only if `finite`, a scalar bool on the device, is true."""
        self.step += 1
        if self.deferred:
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.flag.copy_(finite, non_blocking=True)
        elif not bool(finite):
            self._stop(self.step)

    def verify_previous(self, wait: bool = False) -> None:
        """Raise if an earlier step was not finite; `wait` for the device first."""
        if wait and self.deferred:
            torch.cuda.synchronize()
        if not bool(self.flag):
            self._stop(self.step)

    @staticmethod
    def _stop(step: int) -> None:
        raise UserError(
            f"the loss or its gradient is not finite at step {step} of this epoch; the weights are as they "
            "were before it. Lower --lr, or look for faulty boxes among the annotations"
        )
