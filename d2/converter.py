"""Convert checkpoints between this project and its wrapper for detectron2, in both directions:

    python d2/converter.py --source_model detr-r50-e632da11.pth --output_model converted.pth
    python d2/converter.py --source_model output/model_final.pth --output_model detr.pth --to detr

Box and mask models; every tensor is renamed by its prefix, and one that has no counterpart is refused. Where
detectron2 is installed, both models are built and shown a random image before the file is written.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the project, from wherever this is started

import torch
from torch import Tensor

from util.checkpoint_file import load_checkpoint, model_state, save_checkpoint
from util.coco_names import COCO_PANOPTIC, COCO_THINGS
from util.errors import UserError, exit_status

State = Mapping[str, Tensor]

OURS = "backbone.0.body."
OF_DETECTRON2 = "backbone.0.backbone."  # followed by the names of detectron2's ResNet
OF_WRAPPER = "backbone.0.backbone.body."  # build_detr_resnet_backbone: followed by our own names
DETECTOR = (
    *("transformer.", "class_embed.", "bbox_embed.", "query_embed.", "input_proj."),
    *("backbone.1.row_embed.", "backbone.1.col_embed."),  # learned positions
)
MASK_HEAD = ("bbox_attention.", "mask_head.")
# Of the wrapper's model, beside the detector; other_queries, of QUERY_GROUPS, are for training alone.
NOT_WEIGHTS = ("criterion.", "pixel_mean", "pixel_std", "other_queries.")
COUNTER = ".num_batches_tracked"

# Rows of class_embed, category ids of COCO with gaps + "no object" -> those that detectron2 counts without.
HEADS = {92: [*sorted(COCO_THINGS), 91], 251: [*sorted(COCO_PANOPTIC), 250]}
HEAD = ("class_embed.weight", "class_embed.bias")
NEVER = -1e4  # bias of a class that COCO does not have


def resnet_names() -> dict[str, str]:
    """Our name of each tensor in a ResNet, whatever its depth -> detectron2's."""
    pairs = [("conv1", "bn1", "stem.conv1")]  # our convolution and norm, and detectron2's both in one
    for stage in range(1, 5):
        for block in range(36):  # as many as the deepest has
            ours, theirs = f"layer{stage}.{block}", f"res{stage + 1}.{block}"
            pairs += [(f"{ours}.conv{i}", f"{ours}.bn{i}", f"{theirs}.conv{i}") for i in (1, 2, 3)]
            pairs.append((f"{ours}.downsample.0", f"{ours}.downsample.1", f"{theirs}.shortcut"))
    names = {}
    for conv, norm, theirs in pairs:
        names[f"{conv}.weight"] = f"{theirs}.weight"
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            names[f"{norm}.{tensor}"] = f"{theirs}.norm.{tensor}"
    return names


def to_detectron2(
    state: State, backbone: str = "resnet", keep_classes: bool = False, masks: bool = False
) -> dict[str, Tensor]:
    """The state_dict of a DETR or DETRsegm -> that of the wrapper's `Detr`.

    Args:
        state: ours.
        backbone: `resnet` for detectron2's own, `detr` for build_detr_resnet_backbone.
        keep_classes: leave class_embed as it is, instead of taking COCO's classes out of 91 or 250 ids.
        masks: give the tensors of a box model the names that they have in a mask model.

    Raises:
        UserError: a tensor that has no counterpart.
    """
    if any(OF_DETECTRON2 in name for name in state):
        raise UserError("--source_model: it is in detectron2's form already; --to detr converts it back")
    names = resnet_names()

    def body(name: str) -> str | None:
        if backbone == "detr":
            return OF_WRAPPER + name if name in names else None
        return OF_DETECTRON2 + names[name] if name in names else None

    is_boxes = not any(name.startswith(MASK_HEAD) for name in state)
    prefix = "detr.detr." if masks and is_boxes else "detr."
    renamed = {prefix + new: tensor for new, tensor in _renamed(state, OURS, body)}
    for name, head in renamed.items():
        if name.endswith(HEAD) and len(head) in HEADS and not keep_classes:
            renamed[name] = head[HEADS[len(head)]]
    return renamed


def to_detr(state: State, keep_classes: bool = False) -> dict[str, Tensor]:
    """The state_dict of the wrapper's `Detr`, with either backbone -> that of a DETR or DETRsegm.

    Args:
        state: the wrapper's.
        keep_classes: leave class_embed as it is, instead of spreading 80 or 133 classes over COCO's ids.

    Raises:
        UserError: a tensor that has no counterpart.
    """
    if not any(OF_DETECTRON2 in name for name in state):
        raise UserError("--source_model: it is not in detectron2's form; --to detr converts that alone")
    back = {theirs: ours for ours, theirs in resnet_names().items()}

    def body(name: str) -> str | None:
        own = name.removeprefix("body.")
        ours = back.get(name) if own == name else own if own in back.values() else None
        return None if ours is None else OURS + ours

    weights = {name: tensor for name, tensor in state.items() if not name.startswith(NOT_WEIGHTS)}
    for name in weights:
        if not name.startswith("detr."):
            raise UserError(f"--source_model: {name} is no tensor of the wrapper's model")
    stripped = {name.removeprefix("detr."): tensor for name, tensor in weights.items()}
    renamed = dict(_renamed(stripped, OF_DETECTRON2, body))
    ids = {len(rows): (size, rows) for size, rows in HEADS.items()}
    for name, head in renamed.items():
        if name.endswith(HEAD) and len(head) in ids and not keep_classes:
            size, rows = ids[len(head)]
            spread = torch.full((size, *head.shape[1:]), NEVER if head.ndim == 1 else 0.0, dtype=head.dtype)
            spread[rows] = head
            renamed[name] = spread
    return renamed


def _renamed(state: State, backbone: str, body: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its new name; only those of the ResNet, below the prefix `backbone`, change it.

    A mask model's detector has the prefix `detr.`, its mask head has none.
    """
    has_masks = any(name.startswith(MASK_HEAD) for name in state)
    for name, tensor in state.items():
        inner = name.removeprefix("detr.") if has_masks else name
        prefix = name.removesuffix(inner)
        if name.endswith(COUNTER):
            raise UserError(
                f"--source_model: {name}: its backbone has ordinary batch norms, and the wrapper's "
                "ResNets have frozen ones"
            )
        if inner.startswith(backbone):
            new = body(inner.removeprefix(backbone))
            if new is None:
                raise UserError(
                    f"--source_model: {name} is no tensor of a torchvision ResNet, and other backbones "
                    "have no counterpart"
                )
            yield prefix + new, tensor
        elif inner.startswith(DETECTOR) or (name.startswith(MASK_HEAD) and not prefix):
            yield name, tensor
        else:
            raise UserError(f"--source_model: {name} is no tensor of a DETR")


def check_dilation(checkpoint: Mapping, source: str, backbone: str) -> bool:
    """Whether a checkpoint of ours is a DC5 model, as its `args` or its file's name say.

    Raises:
        UserError: it is, and is to be given to detectron2's own ResNet.
    """
    dilated = bool(getattr(checkpoint.get("args"), "dilation", False)) or "dc5" in Path(source).name.lower()
    if dilated and backbone == "resnet":
        raise UserError(
            f"--source_model {source}: a DC5 model, and RES5_DILATION of detectron2's own ResNet computes "
            "something else: pass --backbone detr, and set MODEL.BACKBONE.NAME build_detr_resnet_backbone"
        )
    return dilated


def get_parser() -> argparse.ArgumentParser:
    """The converter's arguments."""
    parser = argparse.ArgumentParser(
        "D2 model converter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--source_model", default="", help="path or URL of the checkpoint to convert")
    flag("--output_model", default="", help="path of the file to write")
    flag("--to", choices=("detectron2", "detr"), default="detectron2", help="the form to write")
    flag(
        "--backbone",
        choices=("resnet", "detr"),
        default="resnet",
        help="of --to detectron2: detectron2's own ResNet, or build_detr_resnet_backbone, which DC5 needs",
    )
    flag(
        "--masks",
        action="store_true",
        help="of --to detectron2: the names of a box model under MODEL.MASK_ON, to start masks from",
    )
    flag(
        "--keep_classes",
        action="store_true",
        help="leave the classes as they are; otherwise a head of 91 or 250 ids is taken for one of COCO's, "
        "and its 80 or 133 classes are taken out, or spread again",
    )
    return parser


def convert(args: argparse.Namespace) -> None:
    """Read, convert, compare, write."""
    for flag in ("source_model", "output_model"):
        if not getattr(args, flag):
            raise UserError(f"--{flag}: which file?")
    folder = os.path.dirname(os.path.abspath(args.output_model))
    if not os.path.isdir(folder):
        raise UserError(f"--output_model {args.output_model}: there is no folder {folder}")
    checkpoint = load_checkpoint(args.source_model)
    source = model_state(checkpoint)
    if args.to == "detectron2":
        dilation = check_dilation(checkpoint, args.source_model, args.backbone)
        converted = to_detectron2(source, args.backbone, args.keep_classes, args.masks)
        ours, theirs = source, to_detectron2(source, args.backbone, args.keep_classes)
    else:
        dilation = "dc5" in Path(args.source_model).name.lower()
        converted = to_detr(source, args.keep_classes)
        ours, theirs = converted, source
    if importlib.util.find_spec("detectron2") is None:
        print("detectron2 is not installed: what was converted is not compared with its source")
    else:
        from d2.conversion_check import compare

        compare(ours, theirs, dilation, getattr(checkpoint.get("args"), "nheads", 8), HEADS)
    save_checkpoint({"model": converted}, args.output_model)
    print(f"{args.output_model}: {len(converted)} tensors")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    return exit_status(lambda: convert(args))


if __name__ == "__main__":
    sys.exit(main())
