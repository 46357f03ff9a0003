"""What a user should know about a run before it starts, as one block of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

CLASSES_SHOWN = 30


class Split(NamedTuple):
    """One split of the data: its name, its number of images, and its objects per category id."""

    name: str
    images: int
    objects: Mapping[int, int]


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
    rows = [(f"{split.name} data", _size(split)) for split in splits]
    rows += [("parameters", _parameters(model)), *((title, str(value)) for title, value in facts.items())]
    width = max(len(title) for title, _ in rows)
    lines = [f"{title:<{width}}  {text}" for title, text in rows]
    return "\n".join([*lines, *_class_table(splits, categories)])


def _size(split: Split) -> str:
    return f"{split.images:,} images, {sum(split.objects.values()):,} objects"


def _parameters(model: nn.Module) -> str:
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return f"{trains:,} train, {frozen:,} are frozen"


def _class_table(splits: list[Split], categories: Mapping[int, str]) -> list[str]:
    """Objects of each class in each split, the first CLASSES_SHOWN classes."""
    names = [split.name for split in splits]
    lines = [f"{'id':>6}  {'class':<24}" + "".join(f"{name + ' objects':>16}" for name in names)]
    for category, name in list(categories.items())[:CLASSES_SHOWN]:
        counts = "".join(f"{split.objects.get(category, 0):>16,}" for split in splits)
        lines.append(f"{category:>6}  {name[:24]:<24}{counts}")
    hidden = len(categories) - CLASSES_SHOWN
    return [*lines, f"{'':>6}  ... and {hidden} more classes"] if hidden > 0 else lines
