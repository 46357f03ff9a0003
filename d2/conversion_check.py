"""Show one random image to a DETR and to the wrapper's `Detr` that was converted from it, or to it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model as build_detectron2_model
from torch import Tensor

from d2.detr import add_detr_config
from inference.architecture import settings_from_weights
from main import get_args_parser
from models import build_model
from models.resnet import RESNETS
from util.errors import UserError

State = Mapping[str, Tensor]

LIMIT = 1e-3  # of the largest value: what two ResNets may differ by rounding


def compare(
    ours: State, theirs: State, dilation: bool, nheads: int, heads: Mapping[int, list[int]]
) -> dict[str, float]:
    """Build both models, compare what they say of a random image, and print how to configure the wrapper.

    Args:
        ours, theirs: the two state_dicts.
        dilation: the model is a DC5 one.
        nheads: of its attention, where weights do not say it.
        heads: length of class_embed -> the rows of it that the wrapper's model keeps.

    Returns:
        For each output the largest difference, in parts of the largest value.

    Raises:
        UserError: they differ.
    """
    settings = {"nheads": nheads, **settings_from_weights(ours, "--source_model"), "dilation": dilation}
    options = options_of(settings, theirs)
    print(
        "configuration:", *(f"{key} {value}" for key, value in zip(options[::2], options[1::2], strict=True))
    )

    args = get_args_parser().parse_args(["--device", "cpu", "--backbone_weights", "none"])
    vars(args).update(settings)
    detr = build_model(args)[0].eval()
    detr.load_state_dict(ours)

    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_list(options)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 3, [1.0] * 3  # the image is normalised already
    wrapped = build_detectron2_model(cfg).eval()
    missing, unexpected = wrapped.load_state_dict(theirs, strict=False)
    wrong = [name for name in missing if not name.startswith("criterion.")]
    wrong += [name for name in unexpected if not name.startswith("other_queries.")]
    if wrong:
        raise UserError(f"--source_model: the wrapper's model has no place for, or lacks, {wrong[0]}")

    image = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = detr([image])
        other = wrapped.detr(wrapped.preprocess_image([{"image": image}]))
    of_ours, of_theirs = (_tensor(state, "class_embed.bias") for state in (ours, theirs))
    kept = range(len(of_ours)) if len(of_ours) == len(of_theirs) else heads[len(of_ours)]
    differences = {}
    for name in ("pred_logits", "pred_boxes", "pred_masks"):
        if name in mine:
            a, b = mine[name], other[name]
            if name == "pred_logits":
                a = a[..., list(kept)]
            differences[name] = ((a - b).abs().max() / a.abs().max()).item()
    print("one random image, largest differences:", {k: f"{v:.1e}" for k, v in differences.items()})
    for name, difference in differences.items():
        if not difference < LIMIT:
            raise UserError(
                f"--source_model: {name} of both models differ by {difference:.1e} of the largest"
            )
    return differences


def options_of(settings: Mapping[str, Any], theirs: State) -> list[Any]:
    """The options of detectron2's configuration, key by key, that describe a model."""
    depth = RESNETS[settings["backbone"]]
    stages = [f"res{i + 2}" for i in range(settings["backbone_stages"])]
    options = {
        "MODEL.META_ARCHITECTURE": "Detr",
        "MODEL.MASK_ON": settings["masks"],
        "MODEL.RESNETS.DEPTH": int(re.findall(r"\d+", settings["backbone"])[0]),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": stages if settings["masks"] else stages[-1:],
        "MODEL.DETR.NUM_CLASSES": len(_tensor(theirs, "class_embed.bias")) - 1,
        "MODEL.DETR.NUM_OBJECT_QUERIES": settings["num_queries"],
        "MODEL.DETR.HIDDEN_DIM": settings["hidden_dim"],
        "MODEL.DETR.NHEADS": settings["nheads"],
        "MODEL.DETR.ENC_LAYERS": settings["enc_layers"],
        "MODEL.DETR.DEC_LAYERS": settings["dec_layers"],
        "MODEL.DETR.DIM_FEEDFORWARD": settings["dim_feedforward"],
        "MODEL.DETR.PRE_NORM": settings["pre_norm"],
        "MODEL.DETR.POSITION_EMBEDDING": settings["position_embedding"],
    }
    if settings["backbone"] in ("resnet18", "resnet34"):
        options["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
    if (depth.groups, depth.width_per_group) != (1, 64):
        options["MODEL.RESNETS.NUM_GROUPS"] = depth.groups
        options["MODEL.RESNETS.WIDTH_PER_GROUP"] = depth.width_per_group
    if any("backbone.0.backbone.body." in name for name in theirs):
        options["MODEL.BACKBONE.NAME"] = "build_detr_resnet_backbone"
        options["MODEL.RESNETS.RES5_DILATION"] = 2 if settings["dilation"] else 1
    return [part for pair in options.items() for part in pair]


def _tensor(state: State, ending: str) -> Tensor:
    return next(tensor for name, tensor in state.items() if name.endswith(ending))
