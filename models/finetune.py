"""Starting from another model's weights: what fits is loaded, what does not starts anew, and both are told.

Most models are not trained from scratch: some hundred pictures are far too few for DETR (NEEDS: weights of a
model with other classes, or another number of queries).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from util.errors import UserError


@dataclass
class FineTuneReport:
    """What became of each tensor of the model.

    Attributes:
        loaded: taken over whole.
        partly: taken over as far as it reaches, with what was done.
        fresh: initialised anew, with the reason.
        unused: tensors of the checkpoint that the model has no place for.
    """

    loaded: list[str] = field(default_factory=list)
    partly: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"  in part  {name}: {what}" for name, what in self.partly.items()]
        lines += [f"  fresh    {name}: {why}" for name, why in self.fresh.items()]
        if self.unused:
            lines.append(f"  unused   {len(self.unused)} tensors of the checkpoint, first {self.unused[0]}")
        return "\n".join(lines)


def detector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The detector's weights among those of a detector, or of a mask model with its prefix `detr.`."""
    if not any(key.startswith("detr.") for key in state):
        return dict(state)
    return {key.removeprefix("detr."): value for key, value in state.items() if key.startswith("detr.")}


def load_for_finetuning(model: nn.Module, state: Mapping[str, Tensor], source: str) -> FineTuneReport:
    """Load every tensor that fits into a freshly initialised model.

    Queries and learned position tables of another number are taken over as far as both reach. The mask
    model's `detr.` prefix is added or taken away as needed.

    Args:
        model: changed in place.
        state: another model's weights.
        source: where they come from, for messages.

    Raises:
        UserError: not a single tensor fits.
    """
    own = model.state_dict()
    state = _with_matching_prefix(state, own)
    report = FineTuneReport(unused=sorted(state.keys() - own.keys()))
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in state:
                if not name.endswith("num_batches_tracked"):
                    report.fresh[name] = "not in the checkpoint"
            elif state[name].shape == tensor.shape:
                tensor.copy_(state[name])
                report.loaded.append(name)
            elif _is_table(name) and state[name].shape[1:] == tensor.shape[1:]:
                rows = min(len(tensor), len(state[name]))
                tensor[:rows].copy_(state[name][:rows])
                report.partly[name] = f"the first {rows} of {len(tensor)} rows"
            else:
                report.fresh[name] = f"{tuple(state[name].shape)} there, {tuple(tensor.shape)} here"
    if not report.loaded:
        raise UserError(f"--finetune {source}: none of its tensors fits this model; is it a DETR checkpoint?")
    return report


def _is_table(name: str) -> bool:
    return name.endswith(("query_embed.weight", "row_embed.weight", "col_embed.weight"))


def _with_matching_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with `detr.` in front of the detector's keys where the model wants it."""
    theirs, ours = (any(key.startswith("detr.") for key in keys) for keys in (state, own))
    if ours and not theirs:
        return {"detr." + key: value for key, value in state.items()}
    if theirs and not ours:
        return {key.removeprefix("detr."): value for key, value in state.items()}
    return dict(state)
