"""Every flag of main.py, with its default: the one place that states them."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from typing import Any

from util.command_line import at_least


def completed(args: Any) -> argparse.Namespace:
    """A copy of settings, with the default of every flag that they lack.

    Published checkpoints and scripts made for them hold fewer.

    Args:
        args: a Namespace, or a mapping as checkpoints of this project hold it.
    """
    given = argparse.Namespace(**args) if isinstance(args, Mapping) else copy.copy(args)
    return get_args_parser().parse_args([], namespace=given)


count, whole, real = at_least(1), at_least(0), at_least(0.0)  # types of flags


def get_args_parser() -> argparse.ArgumentParser:
    """Every flag of training and evaluation, without --help, to serve as a parent of other parsers.

    Longer than 60 lines: a list, in the order of --help.
    """
    parser = argparse.ArgumentParser("DETR", add_help=False)
    # fmt: off
    flag = parser.add_argument_group("optimisation").add_argument
    flag("--lr", default=1e-4, type=real, help="learning rate of all but the backbone")
    flag("--lr_backbone", default=1e-5, type=real, help="of the backbone; 0 freezes all of it")
    flag("--batch_size", default=2, type=count, help="images per process and step")
    flag("--weight_decay", default=1e-4, type=real, help="AdamW's, on every parameter")
    flag("--epochs", default=300, type=count, help="how many epochs to train")
    flag("--lr_drop", default=200, type=count, help="multiply the learning rates by 0.1 every so many epochs")
    flag("--clip_max_norm", default=0.1, type=real, help="clip the gradient's norm; 0 turns it off")
    flag("--warmup_steps", default=0, type=whole,
         help="raise the learning rates linearly over the first steps")
    flag("--accum_steps", default=1, type=count,
         help="batches to one optimizer step, with the gradient of one batch of all their images")
    flag("--override_lr", action="store_true", help="on --resume, take the learning rates given here")
    flag("--patience", default=0, type=whole,
         help="end after so many epochs without a better AP (PQ); 0: never")

    flag = parser.add_argument_group("backbone").add_argument
    flag("--backbone", default="resnet50",
         help="resnet18, 34, 50, 101 or another of torchvision's ResNets; or timm/NAME")
    flag("--dilation", action="store_true", help="DC5: dilate the last stage in place of its stride")
    flag("--position_embedding", default="sine", choices=("sine", "learned"),
         help="of the feature map's cells")
    flag("--backbone_weights", default="imagenet", metavar="imagenet|none|PATH",
         help="where the backbone starts; nothing is fetched where a checkpoint replaces it")
    flag("--backbone_norm", default="frozen", choices=("frozen", "batch"),
         help="frozen: statistics and affine maps are constants; batch: ordinary batch norm, and the whole "
         "backbone trains, for runs from scratch")
    flag("--backbone_stages", default=4, type=count, help="stop after this stage (3: at stride 16)")

    flag = parser.add_argument_group("transformer").add_argument
    flag("--enc_layers", default=6, type=whole, help="encoder layers")
    flag("--dec_layers", default=6, type=count, help="decoder layers")
    flag("--dim_feedforward", default=2048, type=count, help="inner width of the feed-forward networks")
    flag("--hidden_dim", default=256, type=count, help="width of the transformer")
    flag("--dropout", default=0.1, type=real, help="dropout in the transformer")
    flag("--nheads", default=8, type=count, help="attention heads; divide the width")
    flag("--num_queries", default=100, type=count, help="the most objects that can be found in an image")
    flag("--query_groups", default=1, type=count, metavar="K",
         help="train K sets of queries side by side, each matched with all objects: fewer epochs for the "
         "same model, since the first set alone is left at inference (docs/training.md)")
    flag("--pre_norm", action="store_true", help="norms before the sub-layers, not after them")
    flag("--num_classes", type=count,
         help="highest category id + 1; left out: 91 for COCO's own categories, at least 250 for "
         "coco_panoptic, else read off the annotation files")

    flag = parser.add_argument_group("segmentation").add_argument
    flag("--masks", action="store_true", help="train the mask head")
    flag("--frozen_weights", help="checkpoint of a detector that stays frozen while the mask head trains")

    flag = parser.add_argument_group("loss").add_argument
    flag("--no_aux_loss", dest="aux_loss", action="store_false",
         help="no losses on the earlier decoder layers")
    flag("--set_cost_class", default=1, type=real, help="matching cost: weight of the class probability")
    flag("--set_cost_bbox", default=5, type=real, help="matching cost: weight of the box distance (L1)")
    flag("--set_cost_giou", default=2, type=real, help="matching cost: weight of the generalised IoU")
    flag("--mask_loss_coef", default=1, type=real, help="weight of the masks' focal loss")
    flag("--dice_loss_coef", default=1, type=real, help="weight of the masks' dice loss")
    flag("--bbox_loss_coef", default=5, type=real, help="weight of the boxes' L1 loss")
    flag("--giou_loss_coef", default=2, type=real, help="weight of the boxes' GIoU loss")
    flag("--sync_ce", action="store_true",
         help="normalise the class loss over all processes, not over each one's")
    flag("--eos_coef", default=0.1, type=real, help="weight of the class 'no object' in the class loss")

    flag = parser.add_argument_group("data").add_argument
    flag("--dataset_file", default="coco",
         help="coco: COCO's layout, custom_train.json or Roboflow's; custom: prefers custom_train.json; "
         "coco_panoptic: with panoptic annotations; shapes: the built-in pictures")
    flag("--coco_path",
         help="folder with train2017, val2017, annotations; shapes make one of their own if it is left out")
    flag("--coco_panoptic_path", help="folder with panoptic_train2017, panoptic_val2017, annotations")
    flag("--check_data", default="warn", choices=("warn", "error", "off"),
         help="look for faults in the data before training, as python -m doctor does: warn of those that "
         "training survives, or refuse them too (error); those that make training wrong are refused in both. "
         "off: only what cannot be read is refused")
    flag("--remove_difficult", action="store_true", help="kept for old scripts; has no effect on COCO data")
    flag("--scales", type=count, nargs="+", metavar="PIXELS",
         help="shorter sides in training, drawn at random; left out: 480 to 800 in steps of 32. The sizes of "
         "the crop branch scale with the largest")
    flag("--no_crop", dest="crop", action="store_false", help="in training, resize only, never crop")
    flag("--eval_scale", default=800, type=count, help="shorter side in evaluation")
    flag("--max_size", default=1333, type=count, help="longest side in both")
    flag("--white_level", type=real,
         help="value that is white in grey pictures of more than 8 bits (left out: 65535 of integers, 1 of "
         "floating point numbers)")
    flag("--eval_batch_size", type=count,
         help="images per process and step in evaluation (--batch_size if left out)")
    flag("--max_dets", type=count,
         help="also report AP and AR with so many detections an image, beside the standard 100")
    flag("--num_workers", default=2, type=whole, help="processes that load images; 0: this one does")

    flag = parser.add_argument_group("speed and memory").add_argument
    flag("--amp", default="off", choices=("off", "bf16", "fp16"),
         help="compute most of the model in 16 bits; heads, matching and losses stay in float32. Faster, and "
         "about half the activations' memory; outputs differ by about 1%%. bf16 wants a GPU since Ampere or "
         "a CPU with AMX or AVX512-BF16; fp16 scales the loss and leaves out steps whose gradients overflow")
    flag("--compile", action="store_true",
         help="backbone and transformer through torch.compile: one to several minutes at the start, then "
         "faster steps. Outputs differ by rounding; training batches are padded to multiples of 32 pixels, "
         "which the mask knows. Prints the number of graphs at the end")
    flag("--grad_checkpoint", action="store_true",
         help="compute activations of the backbone's stages and the encoder's layers a second time for the "
         "gradient instead of keeping them: much less memory, steps about a third longer, the same numbers. "
         "Not with --compile")
    flag("--group_by_aspect", action="store_true",
         help="training batches of wide or of tall images only: less padding, so less memory and time. Other "
         "batches than without, so other weights; each group drops its last incomplete batch")
    flag("--ema", default=0.0, type=at_least(0.0, below=1.0), metavar="DECAY",
         help="average the weights over steps (0.9999, say), evaluate and save the average too: test_ema_* "
         "in log.txt, `ema` in checkpoints; checkpoint_best.pth and --patience go by it. Costs a copy of the "
         "weights and a second evaluation; training itself stays as it is. 0: off")
    flag("--deterministic", action="store_true",
         help="the same bits in every run on a GPU, too; slower there. On a CPU runs are repeatable anyway")
    flag("--tf32", default="default", choices=("default", "on", "off"),
         help="on GPUs since Ampere, round the factors of float32 products to 10 bits: in convolutions "
         "alone, as torch does (default, or left out); on: in matrix products too, faster; off: nowhere, "
         "slower. The published figures were measured without")

    flag = parser.add_argument_group("run").add_argument
    flag("--output_dir", default="", help="where to save; empty: nothing is saved")
    flag("--device", default="cuda", help="cuda, cpu or mps; cuda is the CPU, with a warning, without a GPU")
    flag("--seed", default=42, type=at_least(0, below=2**32 - 2**16),  # numpy's limit; ranks are added
         help="of initial values, order of images, augmentation and dropout")
    flag("--resume", default="", metavar="PATH|URL|auto",
         help="checkpoint to continue from or to evaluate; auto: the newest whole one in --output_dir, if "
         "any")
    flag("--finetune", default="", metavar="PATH|URL",
         help="start from another model's weights: what fits is loaded, the rest is listed and starts anew")
    flag("--save_every_minutes", default=15, type=real, help="save inside an epoch too; 0: only after each")
    flag("--save_every_steps", default=0, type=whole, help="the same, counted in optimizer steps")
    flag("--keep", default=1, type=whole, help="earlier versions of checkpoint.pth to keep")
    flag("--tensorboard", action="store_true", help="write TensorBoard's files to OUTPUT_DIR/tensorboard")
    flag("--start_epoch", default=0, type=whole, metavar="N", help="number of the first epoch")
    flag("--eval", action="store_true", help="evaluate and end")
    flag("--no_report", dest="report", action="store_false",
         help="do not write report.html (eval.html), which holds some pictures of the data")
    flag("--debug", action="store_true", help="show the traceback of an error")

    flag = parser.add_argument_group("distributed").add_argument
    flag("--world_size", default=1, type=count, help="number of processes; torchrun and Slurm set it")
    flag("--dist_url", default="env://", help="where the processes meet")
    # torch.distributed.launch adds it, and says the same in the environment.
    flag("--local-rank", "--local_rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    flag("--dist_timeout", default=10, type=at_least(0.0, below=1e6),
         help="minutes that a process waits for the others. torchrun, and srun with kill-on-bad-exit, end "
         "all processes once one has failed; started otherwise, they end after this time")
    # fmt: on
    return parser
