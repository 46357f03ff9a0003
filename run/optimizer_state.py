"""A saved optimizer, looked at before it is taken over: torch itself would crash on a wrong one, or worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def load_adamw(optimizer: Optimizer, saved: Any) -> None:
    """Continue AdamW's moments and rates.

    Raises:
        ValueError: what is saved is not AdamW's state, or that of other parameters.
    """
    if not _is_adamw(saved):
        raise ValueError("its optimizer is not AdamW")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group["params"]) for group in saved["param_groups"]] != sizes:
        raise ValueError(
            "its optimizer trains other parameters than this run (is --lr_backbone 0 in one of them, or "
            "--frozen_weights?); unless the flags can be those that it was trained with"
        )
    if not _moments_fit(saved, optimizer):
        raise ValueError("its optimizer's moments are not those that AdamW has of this model's parameters")
    # How a step is computed is this run's choice, not the old one's.
    groups = [
        {**group, "fused": ours["fused"]} if "fused" in ours else group
        for group, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def _is_adamw(saved: Any) -> bool:
    """Whether a state is laid out as AdamW's, whatever it trains."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return False
    groups = saved.get("param_groups")
    return isinstance(groups, list) and all(
        isinstance(group, Mapping)
        and isinstance(group.get("params"), list)
        and {"lr", "betas", "eps", "weight_decay"} <= group.keys()
        for group in groups
    )


def _moments_fit(saved: Mapping[str, Any], optimizer: Optimizer) -> bool:
    """Whether every stored state belongs to the parameter in its place.

    The optimizer does not look: it reads and writes beyond the end of moments that are too short.
    """
    for group, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        moments = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group.get("amsgrad") else ()))
        for key, parameter in zip(group["params"], ours["params"], strict=True):
            state = saved["state"].get(key, {})  # none of a parameter that had no gradient yet
            if not isinstance(state, Mapping):
                return False
            if not state:
                continue
            step = state.get("step")
            if not (isinstance(step, int | float) or (isinstance(step, Tensor) and step.numel() == 1)):
                return False
            if any(getattr(state.get(name), "shape", None) != parameter.shape for name in moments):
                return False
    return True
