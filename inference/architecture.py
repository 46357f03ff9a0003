"""Settings of a DETR read off its weights: what a file with nothing else in it still says.

The names and shapes of the tensors fix everything that changes the function, but for three things: dilation
leaves no trace; the number of heads shows only in a mask head; and what kind of data a model was trained for
has to be guessed from the number of its classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.resnet import RESNETS, STAGES, Bottleneck
from util.coco_names import default_num_classes
from util.errors import UserError

BODY = "backbone.0.body."


def settings_from_weights(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The flags of main.py that a state_dict decides, by name.

    `backbone`, `backbone_norm` and `backbone_stages` are missing where the backbone is none of torchvision's
    ResNets, and `nheads` where there is no mask head.

    Args:
        state: of a DETR, or of a DETRsegm, whose detector has the prefix `detr.`.
        source: where it comes from, for messages.

    Raises:
        UserError: it is not the state of a DETR.
    """
    masks = any(name.startswith("detr.") for name in state)
    detector = {name.removeprefix("detr."): tensor for name, tensor in state.items()} if masks else state
    missing = [
        name
        for name in ("class_embed.bias", "query_embed.weight", "transformer.decoder.layers.0.linear1.weight")
        if name not in detector
    ]
    if missing:
        raise UserError(
            f"{source}: no checkpoint of a DETR, its weights lack {missing[0]} (their first is "
            f"{next(iter(state))})"
        )
    queries, width = detector["query_embed.weight"].shape
    num_classes = len(detector["class_embed.bias"]) - 1
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "num_queries": queries,
        "hidden_dim": width,
        "enc_layers": _count(detector, "transformer.encoder.layers."),
        "dec_layers": _count(detector, "transformer.decoder.layers."),
        "dim_feedforward": len(detector["transformer.decoder.layers.0.linear1.weight"]),
        "pre_norm": "transformer.encoder.norm.weight" in detector,
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in detector else "sine",
        "masks": masks,
    }
    if "mask_head.lay1.weight" in state:
        settings["nheads"] = len(state["mask_head.lay1.weight"]) - width  # a channel for each head's map
    panoptic = masks and num_classes == default_num_classes("coco_panoptic")
    settings["dataset_file"] = "coco_panoptic" if panoptic else "coco"
    fitting = fitting_resnets(detector)
    if fitting:
        counters = any(name.startswith(BODY) and name.endswith("num_batches_tracked") for name in detector)
        settings["backbone"] = fitting[0]
        settings["backbone_norm"] = "batch" if counters else "frozen"
        settings["backbone_stages"] = sum(count > 0 for count in _blocks(detector))
    return settings


def fitting_resnets(state: Mapping[str, Tensor]) -> list[str]:
    """The ResNets whose stages, as far as a detector's state holds them, have these blocks and widths.

    Where the last stages are left out, several may be the same: any of them is the right one.
    """
    blocks = _blocks(state)
    first = state.get(BODY + "layer1.0.conv2.weight")
    if first is None or not 0 < sum(count > 0 for count in blocks) <= STAGES:
        return []
    bottleneck = BODY + "layer1.0.conv3.weight" in state
    stages = max(stage for stage, count in enumerate(blocks, 1) if count)
    return [
        name
        for name, depth in RESNETS.items()
        if issubclass(depth.block, Bottleneck) == bottleneck
        and depth.blocks[:stages] == blocks[:stages]
        # Outputs, and inputs of each group
        and tuple(first.shape[:2]) == (depth.width_per_group * depth.groups, depth.width_per_group)
    ]


def _blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many blocks each of the four stages has."""
    return tuple(_count(state, f"{BODY}layer{stage}.") for stage in range(1, STAGES + 1))


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers 0, 1, ... follow a prefix."""
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(match[1]) for match in map(numbered.match, state) if match}
    return max(found, default=-1) + 1
