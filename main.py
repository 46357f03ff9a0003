"""Train and evaluate DETR on data in COCO's layout.

  python main.py --coco_path data/coco --output_dir outputs/r50              train on one device
  torchrun --nproc_per_node=8 main.py --coco_path data/coco ...             on eight GPUs
  python main.py --eval --resume PATH|URL --coco_path data/coco             evaluate a checkpoint
  python main.py @recipes/shapes.args                                       flags from a file

`python main.py --help` lists every flag. Slow imports stand inside the functions that need them, so that
asking for help does not load torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

SHAPES_PATH = "data/shapes"


def get_args_parser() -> argparse.ArgumentParser:
    """Every flag of training and evaluation, without --help, to serve as a parent of other parsers."""
    parser = argparse.ArgumentParser("DETR", add_help=False)
    flag = parser.add_argument_group("optimisation").add_argument
    flag("--lr", default=1e-4, type=float, help="learning rate of all but the backbone")
    flag("--lr_backbone", default=1e-5, type=float, help="of the backbone; 0 freezes all of it")
    flag("--batch_size", default=2, type=int, help="images per process and step")
    flag("--weight_decay", default=1e-4, type=float, help="AdamW's, on every parameter")
    flag("--epochs", default=300, type=int, help="how many epochs to train")
    flag("--lr_drop", default=200, type=int, help="multiply the learning rates by 0.1 every so many epochs")
    flag("--clip_max_norm", default=0.1, type=float, help="clip the gradient's norm; 0 turns it off")
    flag("--warmup_steps", default=0, type=int, help="raise the learning rates linearly over the first steps")

    flag = parser.add_argument_group("backbone").add_argument
    flag("--backbone", default="resnet50", help="resnet18, 34, 50, 101 or another of torchvision's ResNets")
    flag("--dilation", action="store_true", help="DC5: dilate the last stage in place of its stride")
    flag(
        "--position_embedding", default="sine", choices=("sine", "learned"), help="of the feature map's cells"
    )
    flag(
        "--backbone_weights",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="where the backbone starts; nothing is fetched where a checkpoint replaces it",
    )
    flag(
        "--backbone_norm",
        default="frozen",
        choices=("frozen", "batch"),
        help="frozen: statistics and affine maps are constants; batch: ordinary batch norm, and the whole "
        "backbone trains, for runs from scratch",
    )
    flag("--backbone_stages", default=4, type=int, help="stop behind this ResNet stage (3: at stride 16)")

    flag = parser.add_argument_group("transformer").add_argument
    flag("--enc_layers", default=6, type=int, help="encoder layers")
    flag("--dec_layers", default=6, type=int, help="decoder layers")
    flag("--dim_feedforward", default=2048, type=int, help="inner width of the feed-forward networks")
    flag("--hidden_dim", default=256, type=int, help="width of the transformer")
    flag("--dropout", default=0.1, type=float, help="dropout in the transformer")
    flag("--nheads", default=8, type=int, help="attention heads; divide the width")
    flag("--num_queries", default=100, type=int, help="the most objects that can be found in an image")
    flag("--pre_norm", action="store_true", help="norms in front of the sub-layers, not behind them")
    flag(
        "--num_classes",
        type=int,
        help="highest category id + 1; left out: 91 for COCO's own categories, at least 250 for "
        "coco_panoptic, else read off the annotation files",
    )

    flag = parser.add_argument_group("segmentation").add_argument
    flag("--masks", action="store_true", help="train the mask head")
    flag("--frozen_weights", help="checkpoint of a detector that stays frozen while the mask head trains")

    flag = parser.add_argument_group("loss").add_argument
    flag(
        "--no_aux_loss", dest="aux_loss", action="store_false", help="no losses on the earlier decoder layers"
    )
    flag("--set_cost_class", default=1, type=float, help="matching cost: weight of the class probability")
    flag("--set_cost_bbox", default=5, type=float, help="matching cost: weight of the box distance (L1)")
    flag("--set_cost_giou", default=2, type=float, help="matching cost: weight of the generalised IoU")
    flag("--mask_loss_coef", default=1, type=float, help="weight of the masks' focal loss")
    flag("--dice_loss_coef", default=1, type=float, help="weight of the masks' dice loss")
    flag("--bbox_loss_coef", default=5, type=float, help="weight of the boxes' L1 loss")
    flag("--giou_loss_coef", default=2, type=float, help="weight of the boxes' GIoU loss")
    flag("--eos_coef", default=0.1, type=float, help="weight of the class 'no object' in the class loss")

    flag = parser.add_argument_group("data").add_argument
    flag(
        "--dataset_file",
        default="coco",
        help="coco: COCO's layout; coco_panoptic: with panoptic annotations; shapes: the built-in pictures",
    )
    flag(
        "--coco_path", help=f"folder with train2017, val2017, annotations (shapes: {SHAPES_PATH} if left out)"
    )
    flag("--coco_panoptic_path", help="folder with panoptic_train2017, panoptic_val2017, annotations")
    flag("--remove_difficult", action="store_true", help="kept for old scripts; has no effect on COCO data")
    flag(
        "--scales",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="shorter sides in training, drawn at random; left out: 480 to 800 in steps of 32. The sizes of "
        "the crop branch scale with the largest",
    )
    flag("--eval_scale", default=800, type=int, help="shorter side in evaluation")
    flag("--max_size", default=1333, type=int, help="longest side in both")
    flag(
        "--eval_batch_size",
        type=int,
        help="images per process and step in evaluation (--batch_size if left out)",
    )
    flag("--num_workers", default=2, type=int, help="processes that load images; 0 loads in this one")

    flag = parser.add_argument_group("run").add_argument
    flag("--output_dir", default="", help="where to save; empty: nothing is saved")
    flag("--device", help="cuda, cpu or mps; left out: cuda where there is a GPU, else cpu")
    flag("--seed", default=42, type=int, help="of initial values, order of images, augmentation and dropout")
    flag("--resume", default="", help="checkpoint to continue from or to evaluate, a path or a URL")
    flag("--start_epoch", default=0, type=int, metavar="N", help="number of the first epoch")
    flag("--eval", action="store_true", help="evaluate and end")
    flag("--debug", action="store_true", help="show the traceback of an error")

    flag = parser.add_argument_group("distributed").add_argument
    flag("--world_size", default=1, type=int, help="number of processes; torchrun and Slurm set it")
    flag("--dist_url", default="env://", help="where the processes meet")
    return parser


class RecipeParser(argparse.ArgumentParser):
    """A parser that reads flags from recipes: `@file`, with comments and blank lines."""

    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, fromfile_prefix_chars="@", **kwargs)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """One line of a recipe: any number of words; what follows a # is left out."""
        import shlex

        return shlex.split(arg_line, comments=True)


# --- What was left open ------------------------------------------------------------------------------


def resolve(args: argparse.Namespace, checkpoint: dict | None) -> dict[int, str]:
    """Decide what the flags left open, before anything is built: device, data, classes, backbone weights.

    Writes to args; nothing behind main does.

    Returns:
        The categories of the data, id -> name.
    """
    from datasets import read_categories

    args.eval_batch_size = args.eval_batch_size or args.batch_size
    if args.dataset_file == "shapes":
        args.coco_path = args.coco_path or SHAPES_PATH
        ensure_shapes(args.coco_path)
    if checkpoint is not None:
        args.backbone_weights = "none"  # the checkpoint holds the backbone

    categories = read_categories(args, ("val",) if args.eval else ("train", "val"))
    args.num_classes = args.num_classes or _infer_num_classes(args, categories, checkpoint)
    beyond = [i for i in categories if i >= args.num_classes]
    if beyond:
        raise UserError(
            f"category {beyond[0]} ({categories[beyond[0]]}) does not fit --num_classes {args.num_classes}, "
            f"which means highest category id + 1: pass --num_classes {max(categories) + 1}"
        )
    return categories


def ensure_shapes(root: str) -> None:
    """Write the built-in pictures, unless a folder holds a set of them, whatever its size."""
    from datasets.shapes import read_settings, write_shapes
    from util.distributed import barrier, is_main_process

    if is_main_process() and read_settings(root) is None:
        write_shapes(root)
    barrier()


def _infer_num_classes(args: argparse.Namespace, categories: dict[int, str], checkpoint: dict | None) -> int:
    from datasets.coco_names import COCO_NUM_CLASSES, are_coco_categories
    from models import default_num_classes
    from util.checkpoint import model_state

    if checkpoint is not None:
        head = [v for k, v in model_state(checkpoint).items() if k.endswith("class_embed.bias")]
        if head:
            return len(head[0]) - 1
    if args.dataset_file == "coco_panoptic":
        return max(default_num_classes(args.dataset_file), max(categories, default=0) + 1)
    if are_coco_categories(categories):
        return COCO_NUM_CLASSES
    return max(categories, default=0) + 1


def resolve_device(device: str | None) -> str:
    """The device to use; None is a GPU where there is one.

    Raises:
        UserError: one that this machine does not have.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no GPU here; pass --device cpu or leave the flag out")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: not available on this machine; pass --device cpu")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: no such device; pass cuda, cpu or mps") from error
    return device


# --- Parts of a run ----------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with two groups: all but the backbone at `--lr`, then the backbone at `--lr_backbone`."""
    import torch

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if "backbone" not in name]},
        {"params": [p for name, p in trained if "backbone" in name], "lr": args.lr_backbone},
    ]
    fused = {p.device.type for _, p in trained} <= {"cuda", "cpu"}
    return torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay, fused=fused)


def build_data_loaders(args: argparse.Namespace) -> tuple[DataLoader | None, DataLoader]:
    """The loaders of both splits; None for training where only evaluation is asked for."""
    import torch
    from torch.utils.data import DataLoader

    from datasets import build_dataset
    from datasets.sampler import EvalBatchSampler, TrainBatchSampler
    from util.distributed import get_rank, get_world_size
    from util.nested_tensor import collate_bytes

    def loader(dataset: Any, sampler: Any) -> DataLoader:
        # A generator of its own keeps the seeds of the workers apart from the model's random numbers.
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_bytes,
            num_workers=args.num_workers,
            pin_memory=args.device.startswith("cuda"),
            persistent_workers=args.num_workers > 0,
            generator=torch.Generator().manual_seed(args.seed),
        )

    ranks = get_world_size(), get_rank()
    val = build_dataset("val", args, normalize_images=False)
    val_loader = loader(val, EvalBatchSampler(val, args.eval_batch_size, *ranks))
    if args.eval:
        return None, val_loader
    train = build_dataset("train", args, normalize_images=False)
    return loader(train, TrainBatchSampler(train, args.batch_size, *ranks, seed=args.seed)), val_loader


def build_schedules(optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> tuple[Any, Any]:
    """StepLR over epochs, and the warm-up over steps or None; each scales what the other leaves."""
    from torch.optim.lr_scheduler import LinearLR, StepLR

    drops = StepLR(optimizer, args.lr_drop)
    if args.warmup_steps <= 0:
        return drops, None
    return drops, LinearLR(optimizer, 1 / args.warmup_steps, total_iters=args.warmup_steps)


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and random."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def load_model(model: nn.Module, checkpoint: dict, location: str) -> None:
    """Load a checkpoint's weights strictly.

    Raises:
        UserError: it belongs to another architecture; the first differences are named.
    """
    from util.checkpoint import model_state

    theirs, ours = model_state(checkpoint), model.state_dict()
    counters = {key for key in ours if key.endswith("num_batches_tracked")}
    missing = sorted(ours.keys() - theirs.keys() - counters)
    surplus = sorted(theirs.keys() - ours.keys())
    shapes = [
        f"{key} is {tuple(theirs[key].shape)} there, {tuple(ours[key].shape)} here"
        for key in ours
        if key in theirs and theirs[key].shape != ours[key].shape
    ]
    differences = [f"{k} is missing there" for k in missing[:2]] + [
        f"{k} is unknown here" for k in surplus[:2]
    ]
    if differences or shapes:
        raise UserError(
            f"--resume {location}: weights of another model: {'; '.join((shapes + differences)[:3])}. Pass the "
            "flags it was trained with"
        )
    model.load_state_dict(theirs, strict=False)


def resume_training(
    checkpoint: dict, optimizer: Any, schedules: tuple[Any, Any], args: argparse.Namespace
) -> None:
    """Continue optimizer and schedules where a checkpoint left off, if it holds their state."""
    if not {"optimizer", "lr_scheduler", "epoch"} <= checkpoint.keys():
        return
    state = checkpoint["optimizer"]
    for group, ours in zip(state["param_groups"], optimizer.param_groups, strict=True):
        group["fused"] = ours["fused"]  # how a step is computed is this run's choice, not the old one's
    optimizer.load_state_dict(state)
    drops, warmup = schedules
    drops.load_state_dict(checkpoint["lr_scheduler"])
    if warmup is not None and checkpoint.get("warmup"):
        warmup.load_state_dict(checkpoint["warmup"])
    args.start_epoch = checkpoint["epoch"] + 1


def describe(
    args: argparse.Namespace,
    model: nn.Module,
    loaders: list[tuple[str, DataLoader]],
    categories: dict[int, str],
) -> str:
    """The block that is printed before a run."""
    from util.distributed import get_world_size
    from util.git_state import get_sha
    from util.run_summary import Split, run_summary

    splits = [
        Split(name, len(loader.dataset), loader.dataset.annotations.objects_per_category())  # type: ignore
        for name, loader in loaders
    ]
    facts: dict[str, Any] = {"classes": f"{len(categories)}, num_classes {args.num_classes}"}
    if not args.eval:
        steps = loaders[0][1].batch_sampler.batches_per_epoch  # type: ignore[union-attr]
        epochs = args.epochs - args.start_epoch
        facts["steps"] = f"{steps * epochs:,} planned: {epochs} epochs of {steps:,}"
        ranks = get_world_size()
        facts["batch"] = f"{args.batch_size * ranks} images: {args.batch_size} on each of {ranks} process(es)"
    facts |= {"device": args.device, "seed": args.seed, "git": get_sha()}
    return run_summary(splits, categories, model, facts)


def save_evaluation(evaluator: Any, folder: Path, epoch: int) -> None:
    """Keep the precision and recall arrays: `eval/latest.pth`, and every 50 epochs under the epoch's number."""
    import torch

    (folder / "eval").mkdir(exist_ok=True)
    names = ["latest.pth", f"{epoch:03}.pth"] if epoch % 50 == 0 else ["latest.pth"]
    for name in names:
        torch.save(evaluator.coco_eval["bbox"].eval, folder / "eval" / name)


# --- The run -----------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> None:
    """Train, or with `--eval` evaluate, as the flags say."""
    import torch

    from datasets import get_coco_api_from_dataset
    from engine import evaluate, train_one_epoch
    from models import build_model
    from util.checkpoint import load_checkpoint, save_checkpoint
    from util.distributed import broadcast_buffers, get_rank, init_distributed_mode, is_main_process

    # Processes and devices
    args.device = resolve_device(args.device)
    init_distributed_mode(args)
    device = torch.device(args.device)
    output_dir = Path(args.output_dir) if args.output_dir else None
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)

    # Data
    checkpoint = load_checkpoint(args.resume) if args.resume else None
    categories = resolve(args, checkpoint)
    train_loader, val_loader = build_data_loaders(args)
    base_ds = get_coco_api_from_dataset(val_loader.dataset)

    # Model
    seed_everything(args.seed + get_rank())
    model, criterion, postprocessors = build_model(args)
    model.to(device)
    if checkpoint is not None:
        load_model(model, checkpoint, args.resume)
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)

    # Evaluation alone
    if train_loader is None:
        if is_main_process():
            print(describe(args, model, [("val", val_loader)], categories))
        _, evaluator = evaluate(
            model, criterion, postprocessors, val_loader, base_ds, device, args.output_dir
        )
        if output_dir is not None and is_main_process():
            torch.save(evaluator.coco_eval["bbox"].eval, output_dir / "eval.pth")
        return

    # Optimisation
    optimizer = build_optimizer(model, args)
    schedules = drops, warmup = build_schedules(optimizer, args)
    if checkpoint is not None:
        resume_training(checkpoint, optimizer, schedules, args)
    trained: nn.Module = model
    if args.distributed:
        # Statistics of trained norms are shared behind each epoch; frozen ones never change.
        trained = torch.nn.parallel.DistributedDataParallel(
            model,
            device_ids=None if args.gpu is None else [args.gpu],
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    if is_main_process():
        print(describe(args, model, [("train", train_loader), ("val", val_loader)], categories))

    # Epochs
    start = time.time()
    for epoch in range(args.start_epoch, args.epochs):
        train_loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        train_loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        train_stats = train_one_epoch(
            trained, criterion, train_loader, optimizer, device, epoch, args.clip_max_norm, warmup=warmup
        )
        drops.step()
        broadcast_buffers(model)
        if output_dir is not None and is_main_process():
            dated = (
                [f"checkpoint{epoch:04}.pth"]
                if (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % 100 == 0
                else []
            )
            for name in ["checkpoint.pth", *dated]:
                save_checkpoint(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "lr_scheduler": drops.state_dict(),
                        "warmup": None if warmup is None else warmup.state_dict(),
                        "epoch": epoch,
                        "args": vars(args),
                        "categories": categories,
                    },
                    output_dir / name,
                )

        test_stats, evaluator = evaluate(
            model, criterion, postprocessors, val_loader, base_ds, device, args.output_dir
        )
        if output_dir is not None and is_main_process():
            line = {f"train_{k}": v for k, v in train_stats.items()}
            line |= {f"test_{k}": v for k, v in test_stats.items()}
            line |= {"epoch": epoch, "n_parameters": n_parameters}
            with open(output_dir / "log.txt", "a") as log:
                log.write(json.dumps(line) + "\n")
            save_evaluation(evaluator, output_dir, epoch)
    if is_main_process():
        print(f"Training time {timedelta(seconds=int(time.time() - start))}")


def run(argv: list[str] | None = None) -> int:
    """The command line -> its exit status: 0, or 2 for a mistake that the user can correct."""
    parser = RecipeParser(
        "main.py",
        description=__doc__,
        parents=[get_args_parser()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args = parser.parse_args(argv)
    try:
        main(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
