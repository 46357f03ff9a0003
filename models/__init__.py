"""Models, losses and post-processors. `build_model(args)` wires them from the flags of main.py."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from util.flags import OPEN_DEVICE, completed

__all__ = ["build_model"]

LOSSES = ("labels", "boxes", "cardinality")


def build_model(
    args: Any, is_thing: Mapping[int, bool] | None = None
) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    """Build what the flags describe; no file is read but for the backbone's weights.

    An open `num_classes` is 250 for coco_panoptic and 91 otherwise. With `frozen_weights` the detector is
    frozen; whoever trains loads its weights.

    Args:
        args: what main's parser gives, or a checkpoint's `args`; flags that they lack have their defaults.
        is_thing: category id -> whether it is a thing, for coco_panoptic; left out, COCO's own.

    Returns:
        The model, its criterion (on `args.device`, where that is given), and the post-processors by name:
        `bbox`, and with masks `segm`, and with coco_panoptic `panoptic`.

    Raises:
        ValueError: settings that do not fit together; see the modules.
    """
    from .backbone import build_backbone
    from .criterion import SetCriterion
    from .detr import DETR
    from .matcher import build_matcher
    from .postprocess import PostProcess, PostProcessPanoptic, PostProcessSegm, coco_is_thing
    from .segmentation import DETRsegm
    from .transformer import build_transformer

    args = completed(args)
    num_classes = args.num_classes or default_num_classes(args.dataset_file)
    model: nn.Module
    model = detr = DETR(
        build_backbone(args),
        build_transformer(args),
        num_classes=num_classes,
        num_queries=args.num_queries,
        aux_loss=args.aux_loss,
    )
    losses = list(LOSSES)
    postprocessors: dict[str, nn.Module] = {"bbox": PostProcess()}
    if args.masks:
        model = DETRsegm(detr, freeze_detr=args.frozen_weights is not None)
        losses.append("masks")
        postprocessors["segm"] = PostProcessSegm()
        if args.dataset_file == "coco_panoptic":
            postprocessors["panoptic"] = PostProcessPanoptic(is_thing or coco_is_thing(num_classes))
    weight_dict = build_weight_dict(args)
    criterion = SetCriterion(
        num_classes, build_matcher(args), weight_dict, args.eos_coef, losses, sync_ce=args.sync_ce
    )
    left_open = args.device is OPEN_DEVICE and not torch.cuda.is_available()
    if args.device is not None and not left_open:
        criterion.to(args.device)
    return model, criterion, postprocessors


def default_num_classes(dataset_file: str) -> int:
    """What an open `--num_classes` means where no annotation file is read: highest category id + 1 of COCO.

    Panoptic's 250 is merely large enough for ids to 200.
    """
    return 250 if dataset_file == "coco_panoptic" else 91


def build_weight_dict(args: argparse.Namespace) -> dict[str, float]:
    """The factor of each loss by name, auxiliary layers included."""
    weights = {"loss_ce": 1.0, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef}
    if args.masks:
        weights |= {"loss_mask": args.mask_loss_coef, "loss_dice": args.dice_loss_coef}
    earlier = range(args.dec_layers - 1) if args.aux_loss else ()
    return weights | {f"{name}_{layer}": value for layer in earlier for name, value in weights.items()}
