"""Starting from another model's weights: what fits is loaded, what does not starts anew, and both are listed.

Most models are not trained from scratch: a few hundred pictures are far too few for DETR. The classification
head is carried over by name: a class `car` starts from the row of the checkpoint's `car`, whatever its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from util.checkpoint_file import stored_categories, stored_flags
from util.coco_names import COCO_NUM_CLASSES, COCO_PANOPTIC, COCO_THINGS, plain_name
from util.errors import UserError

NO_OBJECT = "(no object)"
TABLES = ("query_embed.weight", "row_embed.weight", "col_embed.weight")
_ROWS_SHOWN = 40  # classes of each kind that the report lists
# Rows of the published heads, that of no-object included -> names of their classes. The published panoptic
# models have 250 classes, merely more than the highest id; 201 is what fits.
_PUBLISHED_HEADS = {COCO_NUM_CLASSES + 1: COCO_THINGS, 251: COCO_PANOPTIC, 202: COCO_PANOPTIC}


class HeadRow(NamedTuple):
    """A row of the classification head.

    Attributes:
        name: of the class.
        new_id: its row in the model.
        old_id: the row of the checkpoint that it starts from; None: it starts anew.
    """

    name: str
    new_id: int
    old_id: int | None


@dataclass
class FineTuneReport:
    """What became of each tensor of the model.

    Attributes:
        loaded: taken over whole.
        partly: taken over as far as it reaches, with what was done.
        fresh: initialised anew, with the reason.
        unused: tensors of the checkpoint that the model has no place for.
        head: the rows of a classification head that was carried over by name, by id; no-object is the last.
    """

    loaded: list[str] = field(default_factory=list)
    partly: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    head: list[HeadRow] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"  in part  {name}: {what}" for name, what in self.partly.items()]
        lines += [f"  fresh    {name}: {why}" for name, why in self.fresh.items()]
        if self.unused:
            lines.append(f"  unused   {len(self.unused)} tensors of the checkpoint, first {self.unused[0]}")
        # The table of classes, carried ones first
        width = max((len(row.name) for row in self.head), default=0)
        if self.head:
            lines.append(f"  {'class':{width}}  old id  new id")
        for carried in (True, False):
            rows = [row for row in self.head if (row.old_id is not None) == carried]
            for name, new_id, old_id in rows[:_ROWS_SHOWN]:
                old, what = ("-", "initialised") if old_id is None else (str(old_id), "carried")
                lines.append(f"  {name:{width}}  {old:>6}  {new_id:>6}  {what}")
            if len(rows) > _ROWS_SHOWN:
                what = "carried" if carried else "initialised"
                lines.append(f"  … and {len(rows) - _ROWS_SHOWN} more {what}")
        return "\n".join(lines)


def detector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The detector's weights among those of a detector, or of a mask model with its prefix `detr.`."""
    if not any(key.startswith("detr.") for key in state):
        return dict(state)
    return {key.removeprefix("detr."): value for key, value in state.items() if key.startswith("detr.")}


def class_names(checkpoint: Mapping[str, Any]) -> dict[int, str]:
    """The classes that a checkpoint's head tells apart, id -> name; empty where nobody knows.

    They are stored beside the weights. Published checkpoints hold none; their heads have the rows of COCO's
    things, or of its panoptic classes.
    """
    stored = stored_categories(checkpoint)
    if stored:
        return stored
    dataset = stored_flags(checkpoint).get("dataset_file", "coco")
    state = checkpoint.get("model", checkpoint)
    heads = [value for key, value in state.items() if key.endswith("class_embed.bias")]
    if not heads or dataset not in ("coco", "coco_panoptic"):
        return {}
    return dict(_PUBLISHED_HEADS.get(len(heads[0]), {}))


def match_classes(
    new: Mapping[int, str], old: Mapping[int, str], new_classes: int, old_classes: int
) -> list[HeadRow]:
    """The row of the old head that each class of a new one starts from, by name.

    Case, spaces, underscores and hyphens do not count: `Traffic_Light` is `traffic light`. Of several old
    classes of one name the first counts.

    Args:
        new, old: id -> name; ids that the heads have no row for are left out.
        new_classes, old_classes: rows of the heads without the last, that of no-object, which is always
            carried.

    Returns:
        One row a class, by id, and that of no-object.
    """
    known: dict[str, int] = {}
    for number in sorted(number for number in old if 0 <= number < old_classes):
        known.setdefault(plain_name(old[number]), number)
    known.pop("", None)
    ids = sorted(number for number in new if 0 <= number < new_classes)
    rows = [HeadRow(new[number], number, known.get(plain_name(new[number]))) for number in ids]
    return [*rows, HeadRow(NO_OBJECT, new_classes, old_classes)]


def load_for_finetuning(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    names: Mapping[int, str] | None = None,
    old_names: Mapping[int, str] | None = None,
) -> FineTuneReport:
    """Load every tensor that fits into a freshly initialised model.

    The classification head is carried over row by row where the names of both sides' classes are known.
    Without them, a head of the same size is loaded as it is, and of another one the row of no-object alone.

    Queries of another number are taken over as far as both reach. So are learned position tables: their rows
    stand for the first, second, … cell of the feature map at any image size, so that interpolating them would
    move what was learned. Rows beyond start anew, as they are in every model that saw smaller pictures only.
    The mask model's `detr.` prefix is added or taken away as needed.

    Args:
        model: changed in place.
        state: another model's weights.
        source: where they come from, for messages.
        names: the classes that the model is to learn, id -> name.
        old_names: those of the other model; see `class_names`.

    Raises:
        UserError: not a single tensor fits.
    """
    own = model.state_dict()
    state = _with_matching_prefix(state, own)
    report = FineTuneReport(unused=sorted(state.keys() - own.keys()))
    misfit = how = ""
    for key in own.keys() & state.keys():
        if key.endswith("class_embed.weight"):
            (ours, width), (theirs, old_width) = own[key].shape, state[key].shape
            if width == old_width:
                report.head, how = _plan_head(ours - 1, theirs - 1, names or {}, old_names or {})
            else:
                misfit = f"the head reads {old_width} features there, {width} here"
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in state:
                if not name.endswith("num_batches_tracked"):
                    report.fresh[name] = "not in the checkpoint"
            elif report.head and _is_head(name):
                for _, row, old_row in report.head:
                    if old_row is not None:
                        tensor[row].copy_(state[name][old_row])
                report.partly[name] = how
            elif misfit and _is_head(name):
                report.fresh[name] = misfit
            elif state[name].shape == tensor.shape:
                tensor.copy_(state[name])
                report.loaded.append(name)
            elif name.endswith(TABLES) and state[name].shape[1:] == tensor.shape[1:]:
                rows = min(len(tensor), len(state[name]))
                tensor[:rows].copy_(state[name][:rows])
                report.partly[name] = f"the first {rows} of {len(tensor)} rows"
            else:
                report.fresh[name] = f"{tuple(state[name].shape)} there, {tuple(tensor.shape)} here"
    if not report.loaded:
        raise UserError(f"--finetune {source}: none of its tensors fits this model; is it a DETR checkpoint?")
    return report


def _plan_head(
    new_classes: int, old_classes: int, names: Mapping[int, str], old_names: Mapping[int, str]
) -> tuple[list[HeadRow], str]:
    """(rows to carry over, in words) for heads of one width; none where the head is loaded as a whole."""
    rows = match_classes(names, old_names, new_classes, old_classes)
    if new_classes == old_classes and (
        not names or not old_names or all(row.new_id == row.old_id for row in rows)
    ):
        return [], ""
    if not names or not old_names:
        return rows, "the row of no-object alone, since the names of the classes are not known"
    count = sum(row.old_id is not None for row in rows)
    return rows, f"{count} of {new_classes + 1} rows, by the name of the class"


def _is_head(name: str) -> bool:
    return name.endswith(("class_embed.weight", "class_embed.bias"))


def _with_matching_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with `detr.` in front of the detector's keys where the model wants it."""
    theirs, ours = (any(key.startswith("detr.") for key in keys) for keys in (state, own))
    if ours and not theirs:
        return {"detr." + key: value for key, value in state.items()}
    if theirs and not ours:
        return {key.removeprefix("detr."): value for key, value in state.items()}
    return dict(state)
