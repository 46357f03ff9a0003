"""A trained model, ready to use: from a checkpoint, a URL, or the name of a published model.

    trained = load_trained("detr_resnet50")                  # a published model
    trained = load_trained("outputs/mine/checkpoint.pth")    # one of your own
    outputs = trained.model(images)

Nobody has to repeat the flags of the training: they are in the checkpoint, or in the shapes of its weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from inference.architecture import fitting_resnets, settings_from_weights
from models import build_model
from models.finetune import detector_state
from models.resnet import RESNETS
from util import coco_names
from util.checkpoint_file import (
    is_url,
    load_checkpoint,
    load_strictly,
    model_state,
    stored_categories,
    stored_flags,
)
from util.coco_names import coco_is_thing
from util.errors import UserError
from util.flags import get_args_parser
from util.hub_models import HUB_MODELS, PUBLISHED
from util.machine import resolve_device

_OF_BACKBONE = ("backbone", "backbone_norm", "backbone_stages")


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is known of it."""

    model: nn.Module  # DETR or DETRsegm, in evaluation mode, without auxiliary outputs
    postprocessors: dict[str, nn.Module]  # `bbox`, with a mask head `segm`, of panoptic data `panoptic`
    args: argparse.Namespace  # the flags it was trained with, where they are not known main.py's defaults
    names: dict[int, str]  # category id -> name; empty where nobody knows
    is_thing: dict[int, bool] | None  # category id -> whether it is a thing; None where not panoptic
    source: str  # what it was loaded from

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device


def load_trained(
    source: str | os.PathLike,
    device: str | torch.device | None = "cpu",
    *,
    ema: bool = False,
    **overrides: Any,
) -> TrainedModel:
    """Build the model that a checkpoint holds, and fill it.

    Args:
        source: a checkpoint of this project, a published one or a bare state_dict, as a file or an http(s)
            URL; or a name in HUB_MODELS. Dilation, which leaves no trace in weights, is taken from the stored
            flags, or else from `dc5` in the name.
        device: as `--device` takes it; None: a GPU where there is one.
        ema: take the averaged weights of a run with `--ema`.
        overrides: settings by the names of main.py's flags, over what is stored and found; None: not given.

    Raises:
        UserError: there is no such file or name, it holds no DETR, or not the averaged weights that are
            asked for, or an override does not fit it.
    """
    device = resolve_device(str(device) if isinstance(device, torch.device) else device)
    source = str(source)
    location = source
    if source in HUB_MODELS and not os.path.exists(source):
        location = PUBLISHED + HUB_MODELS[source].file
    elif not is_url(source) and not os.path.exists(source):
        raise UserError(f"{source}: neither a file, nor a URL, nor one of {', '.join(HUB_MODELS)}")
    checkpoint = load_checkpoint(location)
    if ema and "ema" not in checkpoint:
        raise UserError(f"{source} holds no averaged weights, for it was not trained with --ema")
    state = checkpoint["ema"] if ema else model_state(checkpoint)
    args = settings_of(checkpoint, state, source, overrides)
    args.device = device
    is_panoptic = args.dataset_file == "coco_panoptic"
    is_thing = things_of(checkpoint, args.num_classes) if args.masks and is_panoptic else None
    names = stored_categories(checkpoint)
    if not names and is_panoptic:
        names = dict(coco_names.COCO_PANOPTIC)
    elif not names and args.num_classes == coco_names.COCO_NUM_CLASSES:
        names = dict(coco_names.COCO_THINGS)
    try:
        model, _, postprocessors = build_model(args)
    except ValueError as error:  # settings that do not fit together
        raise UserError(f"{source}: {error}") from error
    if is_thing:
        postprocessors["panoptic"].is_thing_map = is_thing  # type: ignore[assignment]
    load_strictly(model, state, source)
    (model.detr if args.masks else model).aux_loss = False  # type: ignore[union-attr, assignment]
    return TrainedModel(model.to(device).eval(), postprocessors, args, names, is_thing, source)


def settings_of(
    checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], source: str, overrides: Mapping[str, Any]
) -> argparse.Namespace:
    """Settings for build_model: the stored ones, corrected by what the weights say, and the overrides.

    What none of them says has main.py's defaults.
    """
    stored = stored_flags(checkpoint)
    seen = settings_from_weights(state, source)
    known: set[str] = {"dataset_file"} & stored.keys()  # better than what can be seen
    if "backbone" in stored and stored["backbone"] not in RESNETS:
        known |= {*_OF_BACKBONE} & stored.keys()
    elif stored.get("backbone") in fitting_resnets(detector_state(state)):
        known |= {"backbone"}  # the one that it is, of several that fit
    seen = {name: value for name, value in seen.items() if name not in known}
    name = PurePosixPath(urlparse(source).path if is_url(source) else source.replace(os.sep, "/")).name
    known_settings = {"dilation": "dc5" in name.lower()} | stored | seen
    known_settings |= {name: value for name, value in overrides.items() if value is not None}
    known_settings |= {"backbone_weights": "none", "frozen_weights": None}  # the checkpoint replaces both
    if "backbone" not in known_settings:
        raise UserError(
            f"{source}: its backbone is none of {', '.join(RESNETS)}, and the file does not say which it is"
        )
    return argparse.Namespace(**vars(get_args_parser().parse_args([])) | known_settings)


def things_of(checkpoint: Mapping[str, Any], num_classes: int) -> dict[int, bool]:
    """What the checkpoint says of things and stuff, or COCO's rule: for its own categories, or all ids."""
    stored = checkpoint.get("is_thing")
    if stored and isinstance(stored, Mapping):
        return {int(i): bool(thing) for i, thing in stored.items()}
    rule = coco_is_thing(num_classes)
    categories = stored_categories(checkpoint)
    return {i: rule[i] for i in categories if i in rule} if categories else rule
