"""What the flags of a run leave open, decided before anything is built."""

from __future__ import annotations

import argparse

from datasets.labels import read_categories
from datasets.layouts import SHAPES_PATH
from util.checkpoint_file import model_state
from util.coco_names import COCO_NUM_CLASSES, are_coco_categories, default_num_classes
from util.distributed import barrier, is_main_process
from util.errors import UserError
from util.flags import completed

MOST_CLASSES = 100_000  # unless --num_classes asks for more


def resolve(args: argparse.Namespace, checkpoint: dict | None) -> tuple[argparse.Namespace, dict[int, str]]:
    """Decide what the flags left open, before anything is built: data, classes, backbone weights.

    Args:
        checkpoint: what the run starts from, if anything.

    Returns:
        The flags, a copy, and the categories of the data, id -> name.
    """
    args = completed(args)
    args.eval_batch_size = args.eval_batch_size or args.batch_size
    if args.dataset_file == "shapes":
        args.coco_path = args.coco_path or SHAPES_PATH
        ensure_shapes(args.coco_path)
    if args.frozen_weights and not args.masks:
        raise UserError("--frozen_weights freezes the detector under a mask head: pass --masks too")
    if args.frozen_weights and args.query_groups > 1:
        raise UserError("--query_groups trains a detector, and --frozen_weights freezes it: pass one of them")
    if args.compile and args.grad_checkpoint:
        raise UserError("--grad_checkpoint: compiled graphs choose what to keep; leave out --compile")
    fetched = args.backbone_weights == "imagenet"
    if checkpoint is not None or args.frozen_weights or (args.finetune and fetched):
        args.backbone_weights = "none"  # the checkpoint holds the backbone; --finetune's may hold another one
    categories = read_categories(args, ("val",) if args.eval else ("train", "val"))
    args.num_classes = args.num_classes or infer_num_classes(args, categories, checkpoint)
    return args, categories


def infer_num_classes(args: argparse.Namespace, categories: dict[int, str], checkpoint: dict | None) -> int:
    """`--num_classes` where it was left out: that of the checkpoint, else by the data's categories."""
    if checkpoint is not None:
        head = [v for k, v in model_state(checkpoint).items() if k.endswith("class_embed.bias")]
        if head:
            return len(head[0]) - 1
    num_classes = max(categories, default=0) + 1
    if args.dataset_file == "coco_panoptic":
        num_classes = max(default_num_classes(args.dataset_file), num_classes)
    elif are_coco_categories(categories):
        num_classes = COCO_NUM_CLASSES
    if num_classes > MOST_CLASSES:
        raise UserError(
            f"category ids go up to {num_classes - 1}, and each id takes an output of the model: number the "
            f"categories anew, or pass --num_classes {num_classes}"
        )
    return num_classes


def ensure_shapes(root: str) -> None:
    """Write the built-in pictures, unless a folder holds a set of them, whatever its size."""
    from datasets.shapes import read_settings, write_shapes

    if is_main_process() and read_settings(root) is None:
        write_shapes(root)
    barrier()
