"""How transformers' DETR names and splits the tensors that this project holds.

The names are those of the modules of transformers 5; what its files on disk call them, it translates itself.
Only the name of a module is translated: the last word (weight, bias, running_mean, ...) is the same in both.
A module's name with `#` holds a number, one with `@` a number that transformers counts from 0 and we from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

_BODY, _STAGE = "backbone.0.body", "model.backbone.model.encoder.stages.@.layers.#"

# transformers' own ResNet
_OWN_BACKBONE = {
    f"{_BODY}.conv1": "model.backbone.model.embedder.embedder.convolution",
    f"{_BODY}.bn1": "model.backbone.model.embedder.embedder.normalization",
    f"{_BODY}.layer@.#.conv@": f"{_STAGE}.layer.@.convolution",
    f"{_BODY}.layer@.#.bn@": f"{_STAGE}.layer.@.normalization",
    f"{_BODY}.layer@.#.downsample.0": f"{_STAGE}.shortcut.convolution",
    f"{_BODY}.layer@.#.downsample.1": f"{_STAGE}.shortcut.normalization",
}

# timm's, which keeps torchvision's names
_TIMM_BACKBONE = {
    f"{_BODY}.conv1": "model.backbone.model.conv1",
    f"{_BODY}.bn1": "model.backbone.model.bn1",
    f"{_BODY}.layer#.#.conv#": "model.backbone.model.layer#.#.conv#",
    f"{_BODY}.layer#.#.bn#": "model.backbone.model.layer#.#.bn#",
    f"{_BODY}.layer#.#.downsample.#": "model.backbone.model.layer#.#.downsample.#",
}

_ENCODER, _DECODER = "transformer.encoder.layers.#", "transformer.decoder.layers.#"
_DETECTOR = {
    "backbone.1.row_embed": "model.position_embedding.row_embeddings",
    "backbone.1.col_embed": "model.position_embedding.column_embeddings",
    "input_proj": "model.input_projection",
    "query_embed": "model.query_position_embeddings",
    f"{_ENCODER}.self_attn.out_proj": "model.encoder.layers.#.self_attn.o_proj",
    f"{_ENCODER}.norm1": "model.encoder.layers.#.self_attn_layer_norm",
    f"{_ENCODER}.linear1": "model.encoder.layers.#.mlp.fc1",
    f"{_ENCODER}.linear2": "model.encoder.layers.#.mlp.fc2",
    f"{_ENCODER}.norm2": "model.encoder.layers.#.final_layer_norm",
    f"{_DECODER}.self_attn.out_proj": "model.decoder.layers.#.self_attn.o_proj",
    f"{_DECODER}.norm1": "model.decoder.layers.#.self_attn_layer_norm",
    f"{_DECODER}.multihead_attn.out_proj": "model.decoder.layers.#.encoder_attn.o_proj",
    f"{_DECODER}.norm2": "model.decoder.layers.#.encoder_attn_layer_norm",
    f"{_DECODER}.linear1": "model.decoder.layers.#.mlp.fc1",
    f"{_DECODER}.linear2": "model.decoder.layers.#.mlp.fc2",
    f"{_DECODER}.norm3": "model.decoder.layers.#.final_layer_norm",
    "transformer.decoder.norm": "model.decoder.layernorm",
    "class_embed": "class_labels_classifier",
    "bbox_embed.layers.#": "bbox_predictor.layers.#",
}

# One tensor here, of three times the width; three there: q_proj, k_proj, v_proj.
_PACKED = {
    f"{_ENCODER}.self_attn": "model.encoder.layers.#.self_attn",
    f"{_DECODER}.self_attn": "model.decoder.layers.#.self_attn",
    f"{_DECODER}.multihead_attn": "model.decoder.layers.#.encoder_attn",
}
_PARTS = ("q_proj", "k_proj", "v_proj")

_MASKS = {
    "bbox_attention.q_linear": "bbox_attention.q_proj",
    "bbox_attention.k_linear": "bbox_attention.k_proj",
    "mask_head.lay1": "mask_head.conv1.conv",
    "mask_head.gn1": "mask_head.conv1.norm",
    "mask_head.lay2": "mask_head.conv2.conv",
    "mask_head.gn2": "mask_head.conv2.norm",
    "mask_head.lay3": "mask_head.fpn_stages.0.refine.conv",
    "mask_head.gn3": "mask_head.fpn_stages.0.refine.norm",
    "mask_head.lay4": "mask_head.fpn_stages.1.refine.conv",
    "mask_head.gn4": "mask_head.fpn_stages.1.refine.norm",
    "mask_head.lay5": "mask_head.fpn_stages.2.refine.conv",
    "mask_head.gn5": "mask_head.fpn_stages.2.refine.norm",
    "mask_head.out_lay": "mask_head.output_conv",
    "mask_head.adapter1": "mask_head.fpn_stages.0.fpn_adapter",
    "mask_head.adapter2": "mask_head.fpn_stages.1.fpn_adapter",
    "mask_head.adapter3": "mask_head.fpn_stages.2.fpn_adapter",
}

_COUNTER = "num_batches_tracked"  # of ordinary batch norms; no computation here or there reads it
_WRAPPED = "detr."  # a detector inside a model with masks, in both


def state_to_hf(state: Mapping[str, Tensor], timm: bool) -> dict[str, Tensor]:
    """Our state_dict under transformers' names, packed projections taken apart.

    Args:
        state: of a DETR or a DETRsegm.
        timm: the backbone there is timm's.

    Raises:
        KeyError: a tensor that transformers has no place for.
    """
    return dict(_translated(state, timm, forward=True))


def state_from_hf(state: Mapping[str, Tensor], timm: bool) -> dict[str, Tensor]:
    """The reverse of `state_to_hf`: the state_dict of transformers' model under our names.

    Raises:
        KeyError: a tensor that we have no place for.
    """
    return dict(_translated(packed_projections(state), timm, forward=False))


def counters_of(state: Mapping[str, Tensor]) -> list[int]:
    """What ordinary batch norms in our state_dict count, in the order of their names; frozen ones do not."""
    return [int(state[name]) for name in sorted(state) if name.endswith(_COUNTER)]


def with_counters(state: Mapping[str, Tensor], counters: Sequence[int]) -> dict[str, Tensor]:
    """Our state_dict with each batch norm's counter after its other tensors.

    Args:
        counters: as `counters_of` gave them; none: the norms are frozen.
    """
    variance = "running_var"
    norms = sorted(name.removesuffix(variance) for name in state if name.endswith(variance))
    found = {
        norm + variance: (norm + _COUNTER, torch.tensor(counter))
        for norm, counter in zip(norms, counters, strict=False)
    }
    full: dict[str, Tensor] = {}
    for name, tensor in state.items():
        full[name] = tensor
        full.update([found[name]] if name in found else [])
    return full


def _translated(state: Mapping[str, Tensor], timm: bool, forward: bool) -> Iterator[tuple[str, Tensor]]:
    modules = _rules({**(_TIMM_BACKBONE if timm else _OWN_BACKBONE), **_DETECTOR, **_MASKS}, forward)
    packed = _rules(_PACKED, forward)
    for full_name, tensor in state.items():
        wrapped = _WRAPPED if full_name.startswith(_WRAPPED) else ""
        module, _, leaf = full_name.removeprefix(wrapped).rpartition(".")
        if leaf == _COUNTER:
            continue
        if not leaf.startswith("in_proj_"):
            yield f"{wrapped}{_rename(module, modules, forward)}.{leaf}", tensor
            continue
        attention = wrapped + _rename(module, packed, forward)
        if not forward:
            yield f"{attention}.{leaf}", tensor
            continue
        for part, piece in zip(_PARTS, tensor.chunk(len(_PARTS)), strict=True):
            yield f"{attention}.{part}.{leaf.removeprefix('in_proj_')}", piece


def packed_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state_dict with q_proj, k_proj and v_proj of each attention as one `in_proj_*`."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        attention, _, part = name.rpartition(".")[0].rpartition(".")
        if part not in _PARTS or attention.endswith("bbox_attention"):  # the mask head's two stay apart
            joined[name] = tensor
        elif part == _PARTS[0]:
            leaf = name.rpartition(".")[2]
            joined[f"{attention}.in_proj_{leaf}"] = torch.cat(
                [state[f"{attention}.{part}.{leaf}"] for part in _PARTS]
            )
    return joined


Rule = tuple[re.Pattern[str], str, list[str]]
"""What a module's name looks like on one side, its template on the other, and its placeholders in turn."""


def _rules(table: Mapping[str, str], forward: bool) -> list[Rule]:
    pairs = table.items() if forward else ((theirs, ours) for ours, theirs in table.items())
    return [
        (
            re.compile(re.sub("[#@]", r"(\\d+)", re.escape(source).replace(r"\#", "#"))),
            target,
            re.findall("[#@]", source),
        )
        for source, target in pairs
    ]


def _rename(module: str, rules: list[Rule], forward: bool) -> str:
    """Raises KeyError: no rule fits."""
    for pattern, target, placeholders in rules:
        found = pattern.fullmatch(module)
        if found is None:
            continue
        for number, kind in zip(found.groups(), placeholders, strict=True):
            shift = 0 if kind == "#" else -1 if forward else 1
            target = target.replace(kind, str(int(number) + shift), 1)
        return target
    raise KeyError(module)
