"""The public surface, frozen: flags and defaults, import paths and signatures, names in checkpoints.

A change here is a change that users of the published code notice.
"""

import argparse
import importlib
import inspect

import pytest
import torch
from torch import nn

import main

# --- Flags ---------------------------------------------------------------------------------------------

PUBLISHED_FLAGS = {
    "lr": 1e-4, "lr_backbone": 1e-5, "batch_size": 2, "weight_decay": 1e-4, "epochs": 300, "lr_drop": 200,
    "clip_max_norm": 0.1,
    "frozen_weights": None,
    "backbone": "resnet50", "dilation": False, "position_embedding": "sine",
    "enc_layers": 6, "dec_layers": 6, "dim_feedforward": 2048, "hidden_dim": 256, "dropout": 0.1, "nheads": 8,
    "num_queries": 100, "pre_norm": False,
    "masks": False,
    "aux_loss": True,
    "set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2,
    "mask_loss_coef": 1, "dice_loss_coef": 1, "bbox_loss_coef": 5, "giou_loss_coef": 2, "eos_coef": 0.1,
    "dataset_file": "coco", "coco_path": None, "coco_panoptic_path": None, "remove_difficult": False,
    "output_dir": "", "device": "cuda", "seed": 42, "resume": "", "start_epoch": 0, "eval": False,
    "num_workers": 2, "world_size": 1, "dist_url": "env://",
}  # fmt: skip
OPEN_FLAGS = {
    "num_classes": None, "eval_batch_size": None, "scales": None, "max_dets": None,
}  # fmt: skip
# Defaults that leave a published command as it was.
NEW_FLAGS = {
    "backbone_weights": "imagenet", "backbone_norm": "frozen", "backbone_stages": 4,
    "eval_scale": 800, "max_size": 1333, "warmup_steps": 0, "accum_steps": 1, "sync_ce": False, "patience": 0,
    "finetune": "", "override_lr": False, "tensorboard": False, "debug": False,
}  # fmt: skip
SWITCHES = {
    "--dilation": ("dilation", True),
    "--pre_norm": ("pre_norm", True),
    "--masks": ("masks", True),
    "--no_aux_loss": ("aux_loss", False),
    "--remove_difficult": ("remove_difficult", True),
    "--eval": ("eval", True),
}
GIVEN = {
    "lr": 0.5, "batch_size": 3, "clip_max_norm": 0.25, "position_embedding": "learned", "dropout": 0.5,
    "set_cost_class": 1.5, "eos_coef": 0.5, "coco_path": "some/folder", "device": "cuda", "num_workers": 0,
    "frozen_weights": "detector.pth", "num_classes": 7, "eval_batch_size": 9, "max_size": 640,
}  # fmt: skip


def parse(*words: str) -> dict[str, object]:
    """What a script that takes the published parser as its parent makes of some words."""
    parser = argparse.ArgumentParser(parents=[main.get_args_parser()])
    return vars(parser.parse_args(words))


def test_flags_have_their_published_defaults() -> None:
    defaults = parse()
    for name, value in {**PUBLISHED_FLAGS, **OPEN_FLAGS, **NEW_FLAGS}.items():
        assert name in defaults, f"--{name} is gone"
        assert defaults[name] == value, f"--{name}: {defaults[name]!r}, published {value!r}"


def test_every_flag_is_spelt_as_published() -> None:
    spelt = {word for action in main.get_args_parser()._actions for word in action.option_strings}
    wanted = {f"--{name}" for name in {**PUBLISHED_FLAGS, **OPEN_FLAGS, **NEW_FLAGS}} - {"--aux_loss"}
    assert wanted | {"--no_aux_loss"} <= spelt


@pytest.mark.parametrize("word", SWITCHES)
def test_switches_take_no_value(word: str) -> None:
    name, value = SWITCHES[word]
    given = parse(word)
    assert given[name] is value
    assert {**given, name: parse()[name]} == parse(), "a switch changes one setting only"


@pytest.mark.parametrize("name", GIVEN)
def test_flags_take_a_value(name: str) -> None:
    given = parse(f"--{name}", str(GIVEN[name]))[name]
    assert given == GIVEN[name] and type(given) is type(GIVEN[name])


def test_scales_take_several_values() -> None:
    assert parse("--scales", "64", "96")["scales"] == [64, 96]


def test_every_flag_has_a_help_text() -> None:
    silent = [action.dest for action in main.get_args_parser()._actions if not action.help]
    assert silent == []


# --- Import paths --------------------------------------------------------------------------------------

IMPORT_PATHS = {
    "models": "build_model",
    "models.matcher": "HungarianMatcher build_matcher",
    "models.detr": "DETR SetCriterion PostProcess MLP build",
    "models.backbone": "Backbone BackboneBase Joiner FrozenBatchNorm2d build_backbone",
    "models.position_encoding": "PositionEmbeddingSine PositionEmbeddingLearned build_position_encoding",
    "models.transformer": "Transformer TransformerEncoder TransformerEncoderLayer TransformerDecoder "
    "TransformerDecoderLayer build_transformer",
    "models.segmentation": "DETRsegm MaskHeadSmallConv MHAttentionMap PostProcessSegm PostProcessPanoptic "
    "dice_loss sigmoid_focal_loss",
    "util.box_ops": "box_cxcywh_to_xyxy box_xyxy_to_cxcywh box_iou generalized_box_iou masks_to_boxes",
    "util.misc": "NestedTensor nested_tensor_from_tensor_list collate_fn MetricLogger SmoothedValue "
    "all_gather reduce_dict get_sha get_rank get_world_size is_main_process save_on_master "
    "init_distributed_mode accuracy interpolate is_dist_avail_and_initialized",
    "util.plot_utils": "plot_logs plot_precision_recall",
    "datasets": "build_dataset get_coco_api_from_dataset",
    "datasets.coco": "build CocoDetection ConvertCocoPolysToMask convert_coco_poly_to_mask "
    "make_coco_transforms",
    "datasets.coco_panoptic": "CocoPanoptic",
    "datasets.transforms": "Compose ToTensor Normalize RandomHorizontalFlip RandomResize RandomSizeCrop "
    "RandomSelect RandomCrop CenterCrop RandomPad RandomErasing crop hflip resize pad",
    "datasets.coco_eval": "CocoEvaluator",
    "datasets.panoptic_eval": "PanopticEvaluator",
    "engine": "train_one_epoch evaluate",
    "main": "get_args_parser main",
    "hubconf": "detr_resnet50 detr_resnet50_dc5 detr_resnet101 detr_resnet101_dc5 "
    "detr_resnet50_panoptic detr_resnet50_dc5_panoptic detr_resnet101_panoptic dependencies",
}
POSITIONAL = {  # parameters of the published signatures, which callers may give by place
    "engine.train_one_epoch": "model criterion data_loader optimizer device epoch max_norm",
    "engine.evaluate": "model criterion postprocessors data_loader base_ds device output_dir",
    "models.build_model": "args",
    "models.matcher.HungarianMatcher": "cost_class cost_bbox cost_giou",
    "models.detr.DETR": "backbone transformer num_classes num_queries aux_loss",
    "models.detr.SetCriterion": "num_classes matcher weight_dict eos_coef losses",
    "models.detr.MLP": "input_dim hidden_dim output_dim num_layers",
    "models.backbone.Backbone": "name train_backbone return_interm_layers dilation",
    "models.backbone.BackboneBase": "backbone train_backbone num_channels return_interm_layers",
    "models.backbone.Joiner": "backbone position_embedding",
    "models.backbone.FrozenBatchNorm2d": "n",
    "models.position_encoding.PositionEmbeddingSine": "num_pos_feats temperature normalize scale",
    "models.position_encoding.PositionEmbeddingLearned": "num_pos_feats",
    "models.transformer.Transformer": "d_model nhead num_encoder_layers num_decoder_layers dim_feedforward "
    "dropout activation normalize_before return_intermediate_dec",
    "models.transformer.TransformerEncoder": "encoder_layer num_layers norm",
    "models.transformer.TransformerDecoder": "decoder_layer num_layers norm return_intermediate",
    "models.transformer.TransformerEncoderLayer": "d_model nhead dim_feedforward dropout activation "
    "normalize_before",
    "models.transformer.TransformerDecoderLayer": "d_model nhead dim_feedforward dropout activation "
    "normalize_before",
    "models.segmentation.DETRsegm": "detr freeze_detr",
    "models.segmentation.MaskHeadSmallConv": "dim fpn_dims context_dim",
    "models.segmentation.MHAttentionMap": "query_dim hidden_dim num_heads dropout bias",
    "models.segmentation.PostProcessSegm": "threshold",
    "models.segmentation.PostProcessPanoptic": "is_thing_map threshold",
    "models.segmentation.dice_loss": "inputs targets num_boxes",
    "models.segmentation.sigmoid_focal_loss": "inputs targets num_boxes alpha gamma",
    "util.misc.NestedTensor": "tensors mask",
    "util.misc.accuracy": "output target topk",
    "util.misc.reduce_dict": "input_dict average",
    "util.misc.SmoothedValue": "window_size fmt",
    "util.misc.MetricLogger": "delimiter",
    "datasets.build_dataset": "image_set args",
    "datasets.get_coco_api_from_dataset": "dataset",
    "datasets.coco.build": "image_set args",
    "datasets.coco.CocoDetection": "img_folder ann_file transforms return_masks",
    "datasets.coco.ConvertCocoPolysToMask": "return_masks",
    "datasets.coco.convert_coco_poly_to_mask": "segmentations height width",
    "datasets.coco.make_coco_transforms": "image_set",
    "datasets.coco_panoptic.CocoPanoptic": "img_folder ann_folder ann_file transforms return_masks",
    "datasets.panoptic_eval.PanopticEvaluator": "ann_file ann_folder output_dir",
    "datasets.transforms.crop": "image target region",
    "datasets.transforms.hflip": "image target",
    "datasets.transforms.resize": "image target size max_size",
    "datasets.transforms.pad": "image target padding",
    "datasets.coco_eval.CocoEvaluator": "coco_gt iou_types",
    "hubconf.detr_resnet50": "pretrained num_classes return_postprocessor",
    "hubconf.detr_resnet50_panoptic": "pretrained num_classes threshold return_postprocessor",
}


@pytest.mark.parametrize("name", IMPORT_PATHS)
def test_import_paths(name: str) -> None:
    here = vars(importlib.import_module(name))
    assert [wanted for wanted in IMPORT_PATHS[name].split() if wanted not in here] == []


@pytest.mark.parametrize("path", POSITIONAL)
def test_arguments_may_be_given_by_place(path: str) -> None:
    """The published parameters come first and in their order; any others may be left out."""
    name, _, attribute = path.rpartition(".")
    callee = getattr(importlib.import_module(name), attribute)
    parameters = list(inspect.signature(callee).parameters.values())
    published = POSITIONAL[path].split()
    first, others = parameters[: len(published)], parameters[len(published) :]
    assert [p.name for p in first] == published
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in first)
    assert all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in others)


def test_an_object_is_the_same_under_each_of_its_import_paths() -> None:
    """One object under both names: a subclass check or a patch made through either path works."""
    import models.criterion
    import models.detr
    import models.postprocess
    import util.misc
    import util.nested_tensor

    assert models.detr.SetCriterion is models.criterion.SetCriterion
    assert models.detr.PostProcess is models.postprocess.PostProcess
    assert util.misc.NestedTensor is util.nested_tensor.NestedTensor


# --- Order of parameters; their names and shapes are cases of test_reference.py --------------------------


def pairs(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def attention(name: str) -> list[str]:
    return [f"{name}.in_proj_weight", f"{name}.in_proj_bias", *pairs(f"{name}.out_proj")]


def transformer_parameters(layers: int, pre_norm: bool) -> list[str]:
    feed_forward = pairs("linear1", "linear2")
    encoder = [*attention("self_attn"), *feed_forward, *pairs("norm1", "norm2")]
    decoder = [*attention("self_attn"), *attention("multihead_attn"), *feed_forward]
    decoder += pairs("norm1", "norm2", "norm3")
    names = [f"encoder.layers.{i}.{name}" for i in range(layers) for name in encoder]
    names += pairs("encoder.norm") if pre_norm else []
    names += [f"decoder.layers.{i}.{name}" for i in range(layers) for name in decoder]
    return [f"transformer.{name}" for name in [*names, *pairs("decoder.norm")]]


def trained_resnet50_parameters() -> list[str]:
    """layer2 to layer4; frozen norms have no parameters."""
    names = []
    for stage, blocks in ((2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            convolutions = ["conv1", "conv2", "conv3"] + (["downsample.0"] if block == 0 else [])
            names += [f"layer{stage}.{block}.{name}.weight" for name in convolutions]
    return [f"backbone.0.body.{name}" for name in names]


@pytest.mark.parametrize(
    "flags", ["", "--pre_norm", "--lr_backbone 0", "--position_embedding learned", "--dilation"]
)
def test_optimizer_holds_parameters_in_the_published_order(flags: str) -> None:
    """The optimizer state of an old checkpoint names parameters by their place alone."""
    from models import build_model

    args = argparse.Namespace(**parse("--backbone_weights", "none", *flags.split()))
    with torch.device("meta"):
        model: nn.Module = build_model(args)[0]
    optimizer = main.build_optimizer(model, args)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]

    heads = [*pairs("class_embed", *(f"bbox_embed.layers.{i}" for i in range(3))), "query_embed.weight"]
    first = [*transformer_parameters(6, args.pre_norm), *heads, *pairs("input_proj")]
    tables = ["backbone.1.row_embed.weight", "backbone.1.col_embed.weight"]
    second = [] if args.lr_backbone == 0 else trained_resnet50_parameters()
    second += tables if args.position_embedding == "learned" else []
    assert groups == [first, second]
    assert [group["lr"] for group in optimizer.param_groups] == [args.lr, args.lr_backbone]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [args.weight_decay] * 2
