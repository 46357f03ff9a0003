"""Settings of a DETR as transformers' configuration, and back: config.json and preprocessor_config.json.

What configurations cannot say of ours stands in an entry of its own, `detr_checkpoint`, which transformers
passes on unread: `args` (some flags of main.py), `is_thing`, and the counters of ordinary batch norms.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from util.errors import UserError, warn

if TYPE_CHECKING:
    from transformers import DetrConfig, DetrImageProcessor

NO_NAME = "N/A"  # what published configurations call ids without a category
ENTRY = "detr_checkpoint"
_STORED = ("backbone", "backbone_norm", "dataset_file")  # and the losses' weights that are not whole numbers

# Flag -> transformers' whole numbers, in training only.
_LOSSES = {
    "set_cost_class": "class_cost",
    "set_cost_bbox": "bbox_cost",
    "set_cost_giou": "giou_cost",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
}
# Flag -> every entry there that it decides.
_FLAGS = {
    "num_queries": ("num_queries",),
    "hidden_dim": ("d_model",),
    "enc_layers": ("encoder_layers",),
    "dec_layers": ("decoder_layers",),
    "dim_feedforward": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
    "dropout": ("dropout", "attention_dropout", "activation_dropout"),
    "position_embedding": ("position_embedding_type",),
    "eos_coef": ("eos_coefficient",),
}


def config_of(
    args: argparse.Namespace,
    names: Mapping[int, str],
    is_thing: Mapping[int, bool] | None,
    counters: Sequence[int],
) -> DetrConfig:
    """Our settings as transformers' configuration.

    Args:
        args: the flags of main.py, complete enough for build_model.
        is_thing: category id -> whether it is a thing, of panoptic models.
        counters: of ordinary batch norms; see hf_names.counters_of.

    Raises:
        UserError: transformers has no such model.
    """
    from transformers import DetrConfig

    if args.pre_norm:
        raise UserError("--pre_norm: transformers' DETR has no norms in front of its sub-layers")
    entries: dict[str, Any]
    entries = {theirs: getattr(args, ours) for ours, them in _FLAGS.items() for theirs in them}
    entries |= {"backbone_config": backbone_config(args), "dilation": args.dilation}
    whole = {ours: float(getattr(args, ours)) for ours in _LOSSES if float(getattr(args, ours)).is_integer()}
    entries |= {_LOSSES[ours]: int(value) for ours, value in whole.items()}
    kept = [name for name in (*_STORED, *_LOSSES) if name not in whole]
    own: dict[str, Any] = {"args": {name: getattr(args, name) for name in kept}}
    if is_thing is not None:
        own["is_thing"] = {str(i): bool(thing) for i, thing in is_thing.items()}
    if counters:
        own["num_batches_tracked"] = list(counters)
    if names:
        labels = {i: names.get(i, NO_NAME) for i in range(args.num_classes)}
        entries |= {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
    else:
        entries["num_labels"] = args.num_classes
    entries[ENTRY] = own
    return DetrConfig(**entries)


def backbone_config(args: argparse.Namespace) -> dict[str, Any]:
    """transformers' own ResNet where it computes the same; otherwise timm's."""
    from models.resnet import RESNETS, BasicBlock

    if args.backbone not in RESNETS:
        raise UserError(f"--backbone {args.backbone}: exchanged are {', '.join(RESNETS)}")
    depth = RESNETS[args.backbone]
    stages = range(1 if args.masks else args.backbone_stages, args.backbone_stages + 1)
    if args.dilation or depth.groups > 1 or depth.width_per_group != 64:
        stride = {"output_stride": 16} if args.dilation else {}
        return {
            "model_type": "timm_backbone",
            "backbone": args.backbone,
            "out_indices": list(stages),
            **stride,
        }
    return {
        "model_type": "resnet",
        "layer_type": "basic" if depth.block is BasicBlock else "bottleneck",
        "depths": list(depth.blocks[: args.backbone_stages]),
        "hidden_sizes": [64 * 2**i * depth.block.expansion for i in range(args.backbone_stages)],
        "out_features": [f"stage{stage}" for stage in stages],
    }


def uses_timm(config: DetrConfig) -> bool:
    """Whether a configuration's backbone is timm's."""
    body: Any = config.backbone_config
    return body.model_type == "timm_backbone"


def settings_of(config: DetrConfig, source: str) -> dict[str, Any]:
    """The flags of main.py that a configuration decides, where weights do not.

    Raises:
        UserError: it describes a model that this project has not.
    """
    for entry, only in (("activation_function", "relu"), ("num_channels", 3), ("auxiliary_loss", False)):
        if getattr(config, entry) != only:
            why = (
                "; with it, transformers normalises between decoder layers"
                if entry == "auxiliary_loss"
                else ""
            )
            raise UserError(f"{source}: {entry} is {getattr(config, entry)}, and only {only} is ours{why}")
    settings: dict[str, Any] = {}
    for ours, theirs in _FLAGS.items():
        values = [getattr(config, entry) for entry in theirs]
        if ours != "dropout" and len(set(values)) > 1:
            raise UserError(f"{source}: {' and '.join(theirs)} differ, and --{ours} is one for both")
        settings[ours] = values[0]
    settings |= {ours: getattr(config, theirs) for ours, theirs in _LOSSES.items()}
    settings["num_classes"] = config.num_labels
    return settings | _own(config).get("args", {}) | backbone_settings(config, source)


def backbone_settings(config: DetrConfig, source: str) -> dict[str, Any]:
    """The flags that a configuration's backbone decides.

    Raises:
        UserError: it is not one of ours.
    """
    from models.resnet import RESNETS

    body: Any = config.backbone_config
    if uses_timm(config):
        name = body.backbone.split(".")[0].removeprefix("tv_")  # timm's tag says where weights come from
        if name not in RESNETS:
            raise UserError(f"{source}: backbone {body.backbone}; exchanged are {', '.join(RESNETS)}")
        stride = body.output_stride or 32
        if stride not in (16, 32):
            raise UserError(f"{source}: output_stride is {stride}, and --dilation means 16")
        return {"backbone": name, "dilation": stride == 16}
    if body.model_type != "resnet":
        raise UserError(f"{source}: the backbone is a {body.model_type}, and ours are ResNets")
    expected = {
        "embedding_size": 64,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "hidden_sizes": [2**i * body.hidden_sizes[0] for i in range(len(body.depths))],
    }
    for entry, only in expected.items():
        if getattr(body, entry) != only:
            raise UserError(f"{source}: the backbone's {entry} is {getattr(body, entry)}, and ours {only}")
    if body.out_features[-1] != body.stage_names[-1]:
        raise UserError(f"{source}: the backbone gives {body.out_features[-1]} of {len(body.depths)} stages")
    return {"dilation": False}


def _own(config: DetrConfig) -> dict[str, Any]:
    """Our entry, empty where the model comes from elsewhere."""
    return getattr(config, ENTRY, None) or {}


def counters_of(config: DetrConfig) -> list[int]:
    """What ordinary batch norms counted, see hf_names.counters_of; empty where norms are frozen."""
    return _own(config).get("num_batches_tracked", [])


def names_of(config: DetrConfig) -> dict[int, str]:
    """Category id -> name, without those that transformers made up."""
    labels = config.id2label or {}
    unnamed = {NO_NAME, *(f"LABEL_{i}" for i in labels)}
    return {int(i): name for i, name in labels.items() if name not in unnamed}


def things_of(config: DetrConfig) -> dict[int, bool] | None:
    """Category id -> whether it is a thing, where the configuration says so."""
    stored = _own(config).get("is_thing")
    return None if stored is None else {int(i): thing for i, thing in stored.items()}


def processor_of(args: argparse.Namespace) -> DetrImageProcessor:
    """What prepares images as `--eval_scale` and `--max_size` do here."""
    from transformers import DetrImageProcessor

    panoptic = args.masks and args.dataset_file == "coco_panoptic"
    return DetrImageProcessor(
        size={"shortest_edge": args.eval_scale, "longest_edge": args.max_size},
        format="coco_panoptic" if panoptic else "coco_detection",
    )


def image_settings_of(processor: Any, source: str) -> dict[str, Any]:
    """`eval_scale` and `max_size`; what else is done to images there is said on stderr."""
    from util.nested_tensor import IMAGENET_MEAN, IMAGENET_STD

    same = processor.do_normalize and processor.do_rescale
    same = (
        same and tuple(processor.image_mean) == IMAGENET_MEAN and tuple(processor.image_std) == IMAGENET_STD
    )
    size = dict(processor.size)
    sides = size.get("shortest_edge"), size.get("longest_edge")
    if not same or not processor.do_resize or None in sides:
        warn(
            f"{source}: preprocessor_config.json prepares images differently from --eval here: "
            f"size {size}, mean {processor.image_mean}, std {processor.image_std}"
        )
    return {} if None in sides else {"eval_scale": sides[0], "max_size": sides[1]}
