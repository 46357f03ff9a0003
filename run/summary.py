"""What a user should know about a run before it starts, as one block of text."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import DataLoader

from util.distributed import get_world_size
from util.machine import TF32_IN_WORDS, get_sha

CLASSES_SHOWN = 30
PRECISIONS = {
    "off": "float32",
    "bf16": "bfloat16, heads and losses in float32",
    "fp16": "float16, heads and losses in float32",
}
FEW_STEPS = 100_000
FEW_STEPS_ADVICE = (
    "from scratch DETR learns little in fewer than 100,000 steps on real pictures: consider --finetune"
)


class Split(NamedTuple):
    """One split of the data: its name, its number of images, and its objects per category id.

    Of a user-defined data set they may be unknown; then it is not `counted`.
    """

    name: str
    images: int
    objects: Mapping[int, int]
    counted: bool = True


def describe(
    args: Namespace,
    model: nn.Module,
    loaders: list[tuple[str, DataLoader]],
    categories: dict[int, str],
    epochs: range,
) -> str:
    """The block that is printed before a run of these epochs, none for an evaluation."""
    facts: dict[str, Any] = {"classes": f"{len(categories)}, num_classes {args.num_classes}"}
    if not args.eval:
        steps = steps_per_epoch(loaders[0][1], args)
        facts["steps"] = f"{steps * len(epochs):,} planned: {len(epochs)} epochs of {steps:,}"
        ranks, accumulated = get_world_size(), args.accum_steps
        parts = f"{args.batch_size} on each of {ranks} process(es)"
        facts["batch"] = f"{args.batch_size * ranks * accumulated} images: {parts}"
        if accumulated > 1:
            facts["batch"] += f", {accumulated} batches accumulated"
        starts_somewhere = args.finetune or args.frozen_weights or args.resume not in ("", "auto")
        real = args.dataset_file != "shapes" and epochs.start == 0
        if real and steps * len(epochs) < FEW_STEPS and not starts_somewhere:
            facts["advice"] = FEW_STEPS_ADVICE
    parts_that_train = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in model.named_children()
    }
    facts["trains"] = ", ".join(f"{name} {count:,}" for name, count in parts_that_train.items() if count)
    arithmetic = PRECISIONS[args.amp]
    if args.device.startswith("cuda"):
        arithmetic += f"; {TF32_IN_WORDS[args.tf32]}"
    facts |= {"device": args.device, "computes in": arithmetic, "seed": args.seed, "git": get_sha()}
    return run_summary(splits_of(loaders), categories, model, facts)


def splits_of(loaders: list[tuple[str, DataLoader]]) -> list[Split]:
    """What there is to train and evaluate on, by the name of the split."""
    splits = []
    for name, loader in loaders:
        annotations = getattr(loader.dataset, "annotations", None)  # a user-defined data set may have none
        counts = {} if annotations is None else annotations.objects_per_category
        splits.append(Split(name, len(loader.dataset), counts, annotations is not None))  # type: ignore[arg-type]
    return splits


def steps_per_epoch(loader: DataLoader, args: Namespace) -> int:
    """Optimizer steps of a whole epoch."""
    return loader.batch_sampler.batches_per_epoch // args.accum_steps  # type: ignore[union-attr]


def run_summary(
    splits: list[Split], categories: Mapping[int, str], model: nn.Module, facts: Mapping[str, Any]
) -> str:
    """The block printed at the start.

    Args:
        splits: what there is to train and evaluate on.
        categories: id -> name.
        model: its parameters are counted, those that train by component.
        facts: further lines, by their title.
    """
    rows = []
    for split in splits:
        objects = f", {sum(split.objects.values()):,} objects" if split.counted else ""
        rows.append((f"{split.name} data", f"{split.images:,} images{objects}"))
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    rows.append(("parameters", f"{trains:,} train, {frozen:,} are frozen"))
    rows += [(title, str(value)) for title, value in facts.items()]
    width = max(len(title) for title, _ in rows)
    lines = [f"{title:<{width}}  {text}" for title, text in rows]
    # Objects of each class in each split
    lines.append(f"{'id':>6}  {'class':<24}" + "".join(f"{split.name + ' objects':>16}" for split in splits))
    for category, name in list(categories.items())[:CLASSES_SHOWN]:
        counts = "".join(f"{split.objects.get(category, 0):>16,}" for split in splits)
        lines.append(f"{category:>6}  {name[:24]:<24}{counts}")
    hidden = len(categories) - CLASSES_SHOWN
    if hidden > 0:
        lines.append(f"{'':>6}  ... and {hidden} more classes")
    return "\n".join(lines)
