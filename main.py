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
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from datasets import SHAPES_PATH
from util.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from util.records import RunRecords
    from util.resume import Source

FEW_STEPS = 100_000
FEW_STEPS_ADVICE = (
    "from scratch DETR learns little in fewer than 100,000 steps on real pictures: consider --finetune"
)


def at_least(least: float) -> Callable[[str], float]:
    """An argparse type: a number not below `least`, whole if that is."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "whole number" if isinstance(least, int) else "number"  # argparse names it in errors
    return number


def get_args_parser() -> argparse.ArgumentParser:
    """Every flag of training and evaluation, without --help, to serve as a parent of other parsers."""
    parser = argparse.ArgumentParser("DETR", add_help=False)
    count, whole, real = at_least(1), at_least(0), at_least(0.0)
    flag = parser.add_argument_group("optimisation").add_argument
    flag("--lr", default=1e-4, type=real, help="learning rate of all but the backbone")
    flag("--lr_backbone", default=1e-5, type=real, help="of the backbone; 0 freezes all of it")
    flag("--batch_size", default=2, type=count, help="images per process and step")
    flag("--weight_decay", default=1e-4, type=real, help="AdamW's, on every parameter")
    flag("--epochs", default=300, type=count, help="how many epochs to train")
    flag(
        "--lr_drop",
        default=200,
        type=count,
        help="multiply the learning rates by 0.1 every so many epochs",
    )
    flag("--clip_max_norm", default=0.1, type=real, help="clip the gradient's norm; 0 turns it off")
    flag(
        "--warmup_steps",
        default=0,
        type=whole,
        help="raise the learning rates linearly over the first steps",
    )
    flag(
        "--accum_steps",
        default=1,
        type=count,
        help="batches to one optimizer step, with the gradient of one batch of all their images",
    )
    flag("--override_lr", action="store_true", help="on --resume, take the learning rates given here")
    flag(
        "--patience",
        default=0,
        type=whole,
        help="end after so many epochs without a better AP (PQ); 0: never",
    )

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
    flag(
        "--backbone_stages",
        default=4,
        type=count,
        help="stop behind this ResNet stage (3: at stride 16)",
    )

    flag = parser.add_argument_group("transformer").add_argument
    flag("--enc_layers", default=6, type=whole, help="encoder layers")
    flag("--dec_layers", default=6, type=count, help="decoder layers")
    flag("--dim_feedforward", default=2048, type=count, help="inner width of the feed-forward networks")
    flag("--hidden_dim", default=256, type=count, help="width of the transformer")
    flag("--dropout", default=0.1, type=real, help="dropout in the transformer")
    flag("--nheads", default=8, type=count, help="attention heads; divide the width")
    flag("--num_queries", default=100, type=count, help="the most objects that can be found in an image")
    flag("--pre_norm", action="store_true", help="norms in front of the sub-layers, not behind them")
    flag(
        "--num_classes",
        type=count,
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
    flag(
        "--set_cost_class",
        default=1,
        type=real,
        help="matching cost: weight of the class probability",
    )
    flag(
        "--set_cost_bbox",
        default=5,
        type=real,
        help="matching cost: weight of the box distance (L1)",
    )
    flag("--set_cost_giou", default=2, type=real, help="matching cost: weight of the generalised IoU")
    flag("--mask_loss_coef", default=1, type=real, help="weight of the masks' focal loss")
    flag("--dice_loss_coef", default=1, type=real, help="weight of the masks' dice loss")
    flag("--bbox_loss_coef", default=5, type=real, help="weight of the boxes' L1 loss")
    flag("--giou_loss_coef", default=2, type=real, help="weight of the boxes' GIoU loss")
    flag(
        "--sync_ce",
        action="store_true",
        help="normalise the class loss over all processes, not over each one's",
    )
    flag(
        "--eos_coef",
        default=0.1,
        type=real,
        help="weight of the class 'no object' in the class loss",
    )

    flag = parser.add_argument_group("data").add_argument
    flag(
        "--dataset_file",
        default="coco",
        help="coco: COCO's layout, custom_train.json or Roboflow's; custom: prefers custom_train.json; "
        "coco_panoptic: with panoptic annotations; shapes: the built-in pictures",
    )
    flag(
        "--coco_path", help=f"folder with train2017, val2017, annotations (shapes: {SHAPES_PATH} if left out)"
    )
    flag("--coco_panoptic_path", help="folder with panoptic_train2017, panoptic_val2017, annotations")
    flag("--remove_difficult", action="store_true", help="kept for old scripts; has no effect on COCO data")
    flag(
        "--scales",
        type=count,
        nargs="+",
        metavar="PIXELS",
        help="shorter sides in training, drawn at random; left out: 480 to 800 in steps of 32. The sizes of "
        "the crop branch scale with the largest",
    )
    flag("--no_crop", dest="crop", action="store_false", help="in training, resize only, never crop")
    flag("--eval_scale", default=800, type=count, help="shorter side in evaluation")
    flag("--max_size", default=1333, type=count, help="longest side in both")
    flag(
        "--eval_batch_size",
        type=count,
        help="images per process and step in evaluation (--batch_size if left out)",
    )
    flag(
        "--max_dets",
        type=count,
        help="also report AP and AR with so many detections an image, beside the standard 100",
    )
    flag("--num_workers", default=2, type=whole, help="processes that load images; 0 loads in this one")

    flag = parser.add_argument_group("run").add_argument
    flag("--output_dir", default="", help="where to save; empty: nothing is saved")
    flag("--device", help="cuda, cpu or mps; left out: cuda where there is a GPU, else cpu")
    flag(
        "--seed",
        default=42,
        type=whole,
        help="of initial values, order of images, augmentation and dropout",
    )
    flag(
        "--resume",
        default="",
        metavar="PATH|URL|auto",
        help="checkpoint to continue from or to evaluate; auto: the newest whole one in --output_dir, if any",
    )
    flag(
        "--finetune",
        default="",
        metavar="PATH|URL",
        help="start from another model's weights: what fits is loaded, the rest is listed and starts anew",
    )
    flag(
        "--save_every_minutes",
        default=15,
        type=real,
        help="save inside an epoch too; 0: only behind each",
    )
    flag("--save_every_steps", default=0, type=whole, help="the same, counted in optimizer steps")
    flag("--keep", default=1, type=whole, help="earlier versions of checkpoint.pth to keep")
    flag("--tensorboard", action="store_true", help="write TensorBoard's files to OUTPUT_DIR/tensorboard")
    flag("--start_epoch", default=0, type=whole, metavar="N", help="number of the first epoch")
    flag("--eval", action="store_true", help="evaluate and end")
    flag("--debug", action="store_true", help="show the traceback of an error")

    flag = parser.add_argument_group("distributed").add_argument
    flag("--world_size", default=1, type=count, help="number of processes; torchrun and Slurm set it")
    flag("--dist_url", default="env://", help="where the processes meet")
    flag("--dist_timeout", default=10, type=float, help="minutes to wait for a process that has failed")
    return parser


class RecipeParser(argparse.ArgumentParser):
    """A parser that reads flags from recipes: `@file`, with comments and blank lines."""

    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, fromfile_prefix_chars="@", **kwargs)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """One line of a recipe: any number of words; what follows a # is left out."""
        import shlex

        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:
            self.error(f"recipe line {arg_line!r}: {error}")

    def error(self, message: str) -> NoReturn:
        """One line, not the page of usage that this many flags make; exit status 2."""
        self.exit(2, f"error: {message}; see --help\n")


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
    if args.frozen_weights and not args.masks:
        raise UserError("--frozen_weights freezes the detector under a mask head: pass --masks too")
    if checkpoint is not None or args.finetune or args.frozen_weights:
        args.backbone_weights = "none"  # the checkpoint holds the backbone

    categories = read_categories(args, ("val",) if args.eval else ("train", "val"))
    args.num_classes = args.num_classes or _infer_num_classes(args, categories, checkpoint)
    return categories


def ensure_shapes(root: str) -> None:
    """Write the built-in pictures, unless a folder holds a set of them, whatever its size."""
    from datasets.shapes import read_settings, write_shapes
    from util.distributed import barrier, is_main_process

    if is_main_process() and read_settings(root) is None:
        write_shapes(root)
    barrier()


def _infer_num_classes(args: argparse.Namespace, categories: dict[int, str], checkpoint: dict | None) -> int:
    from models import default_num_classes
    from util.checkpoint import model_state
    from util.coco_names import COCO_NUM_CLASSES, are_coco_categories

    if checkpoint is not None:
        head = [v for k, v in model_state(checkpoint).items() if k.endswith("class_embed.bias")]
        if head:
            return len(head[0]) - 1
    if args.dataset_file == "coco_panoptic":
        return max(default_num_classes(args.dataset_file), max(categories, default=0) + 1)
    if are_coco_categories(categories):
        return COCO_NUM_CLASSES
    return max(categories, default=0) + 1


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
    from datasets.labels import check_labels, check_objects
    from datasets.sampler import EvalBatchSampler, TrainBatchSampler
    from util.distributed import get_rank, get_world_size
    from util.interruption import leave_to_parent
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
            worker_init_fn=leave_to_parent,
            generator=torch.Generator().manual_seed(args.seed),
        )

    ranks = get_world_size(), get_rank()
    val = build_dataset("val", args, normalize_images=False)
    check_labels(val.annotations, args.num_classes)
    val_loader = loader(val, EvalBatchSampler(val, args.eval_batch_size, *ranks))
    if args.eval:
        return None, val_loader
    train = build_dataset("train", args, normalize_images=False)
    if len(train) // (ranks[0] * args.batch_size) < args.accum_steps:
        raise UserError(
            f"--accum_steps {args.accum_steps}: the training set's {len(train)} images make fewer batches of "
            f"{args.batch_size}; lower --accum_steps or --batch_size"
        )
    check_labels(train.annotations, args.num_classes)
    check_objects(train.annotations, args.num_queries)
    return loader(train, TrainBatchSampler(train, args.batch_size, *ranks, seed=args.seed)), val_loader


def ground_truth(args: argparse.Namespace, dataset: Any) -> Any:
    """The pycocotools object that boxes and masks are evaluated on.

    For panoptic data that is the file of instances beside the pictures; None if there is none.
    """
    from datasets import get_coco_api_from_dataset
    from datasets.annotations import load_annotations

    if args.dataset_file != "coco_panoptic":
        return get_coco_api_from_dataset(dataset)
    instances = Path(args.coco_path) / "annotations" / "instances_val2017.json"
    return load_annotations(instances).coco if instances.exists() else None


def build_model_and_weights(
    args: argparse.Namespace, source: Source | None, frozen: dict | None
) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    """Build the model and fill it from `--resume`, `--finetune` and `--frozen_weights`, if they are given.

    Args:
        source: the checkpoint of `--resume`.
        frozen: that of `--frozen_weights`; None where `--resume` brings the detector along.
    """
    from models import build_model
    from models.finetune import detector_state, load_for_finetuning
    from util.checkpoint import load_checkpoint, load_strictly, model_state
    from util.distributed import is_main_process

    is_thing = None
    if args.dataset_file == "coco_panoptic":
        from datasets.coco_panoptic import things

        is_thing = things(args, ("val",))  # a class that the ground truth lacks cannot be evaluated
    try:
        model, criterion, postprocessors = build_model(args, is_thing)
    except ValueError as error:  # flags that do not fit together
        raise UserError(str(error)) from error
    if source is not None:
        load_strictly(model, model_state(source.checkpoint), f"--resume {source.path}")
    elif args.finetune:
        report = load_for_finetuning(model, model_state(load_checkpoint(args.finetune)), args.finetune)
        if is_main_process():
            print(f"--finetune {args.finetune}: {report}")
    if frozen is not None:
        detector = detector_state(model_state(frozen))
        load_strictly(model.detr, detector, f"--frozen_weights {args.frozen_weights}")  # type: ignore[arg-type]
    return model.to(args.device), criterion, postprocessors


def describe(
    args: argparse.Namespace,
    model: nn.Module,
    loaders: list[tuple[str, DataLoader]],
    categories: dict[int, str],
    epochs: range,
) -> str:
    """The block that is printed before a run of these epochs, none for an evaluation."""
    from util.distributed import get_world_size
    from util.git_state import get_sha
    from util.run_summary import Split, run_summary

    splits = [
        Split(name, len(loader.dataset), loader.dataset.annotations.objects_per_category())  # type: ignore
        for name, loader in loaders
    ]
    facts: dict[str, Any] = {"classes": f"{len(categories)}, num_classes {args.num_classes}"}
    if not args.eval:
        steps = steps_per_epoch(loaders[0][1], args)
        facts["steps"] = f"{steps * len(epochs):,} planned: {len(epochs)} epochs of {steps:,}"
        ranks, accumulated = get_world_size(), args.accum_steps
        parts = f"{args.batch_size} on each of {ranks} process(es)"
        facts["batch"] = f"{args.batch_size * ranks * accumulated} images: {parts}"
        if accumulated > 1:
            facts["batch"] += f", {accumulated} batches accumulated"
        starts_somewhere = args.finetune or args.frozen_weights or args.resume not in ("", "auto")
        real = args.dataset_file != "shapes" and epochs.start == 0
        if real and steps * len(epochs) < FEW_STEPS and not starts_somewhere:
            facts["advice"] = FEW_STEPS_ADVICE
    parts_that_train = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in model.named_children()
    }
    facts["trains"] = ", ".join(f"{name} {count:,}" for name, count in parts_that_train.items() if count)
    facts |= {"device": args.device, "seed": args.seed, "git": get_sha()}
    return run_summary(splits, categories, model, facts)


def steps_per_epoch(loader: DataLoader, args: argparse.Namespace) -> int:
    """Optimizer steps of a whole epoch."""
    return loader.batch_sampler.batches_per_epoch // args.accum_steps  # type: ignore[union-attr]


# --- The run -----------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> None:
    """Train, or with `--eval` evaluate, as the flags say."""
    import torch

    from engine import evaluate
    from util.checkpoint import load_checkpoint
    from util.device import resolve_device
    from util.distributed import get_rank, init_distributed_mode, is_main_process, meet
    from util.random_state import seed_everything
    from util.records import RunRecords, per_class_table
    from util.resume import find_checkpoint, output_folder

    # Processes and devices
    meet(args)
    args.device = resolve_device(args.device)
    init_distributed_mode(args)
    device = torch.device(args.device)

    # Data
    source = find_checkpoint(args)
    reads_frozen = args.frozen_weights and args.masks and source is None
    frozen = load_checkpoint(args.frozen_weights) if reads_frozen else None
    categories = resolve(args, frozen if source is None else source.checkpoint)
    train_loader, val_loader = build_data_loaders(args)
    base_ds = ground_truth(args, val_loader.dataset)

    # Model
    seed_everything(args.seed + get_rank())
    model, criterion, postprocessors = build_model_and_weights(args, source, frozen)

    def evaluated() -> tuple[dict[str, Any], Any]:
        return evaluate(
            model,
            criterion,
            postprocessors,
            val_loader,
            base_ds,
            device,
            args.output_dir,
            per_class=args.eval,
            max_dets=args.max_dets,
        )

    records = RunRecords(output_folder(args) if is_main_process() else None, args.tensorboard)
    if train_loader is not None:
        train(args, source, categories, (train_loader, val_loader), model, criterion, evaluated, records)
        return
    if is_main_process():
        print(describe(args, model, [("val", val_loader)], categories, range(0)))
    stats, evaluator = evaluated()
    if evaluator is not None:
        if is_main_process():
            print(per_class_table(evaluator.per_class()))
        records.save_evaluation(evaluator)
    records.write_stats({f"test_{name}": value for name, value in stats.items()})


def train(
    args: argparse.Namespace,
    source: Source | None,
    categories: dict[int, str],
    loaders: tuple[DataLoader, DataLoader],
    model: nn.Module,
    criterion: nn.Module,
    evaluated: Callable[[], tuple[dict[str, Any], Any]],
    records: RunRecords,
) -> None:
    """All epochs: train, save, evaluate, record; from the beginning or from where a checkpoint left off."""
    import torch

    from engine import train_one_epoch
    from util.best import Best
    from util.distributed import (
        broadcast_buffers,
        data_parallel,
        get_rank,
        is_main_process,
        settle_buckets,
    )
    from util.interruption import Interruption
    from util.random_state import random_state_kept
    from util.records import per_class_table, write_crash_report
    from util.resume import Position, output_folder, position_of
    from util.saving import Saver
    from util.schedule import build_schedules, resume_optimisation, warmup_steps_of
    from util.step_guard import NotFinite

    # Optimisation
    train_loader, val_loader = loaders
    optimizer = build_optimizer(model, args)
    drops, warmup = build_schedules(optimizer, args.lr_drop, warmup_steps_of(source, args.warmup_steps))
    position = position_of(source, args, steps_per_epoch(train_loader, args))
    if source is not None and position.resumes:
        resume_optimisation(source, optimizer, drops, warmup, args)
    trained: nn.Module = model
    if args.distributed:
        trained = data_parallel(model, args.gpu)
        settle_buckets(trained, torch.device(args.device))

    # Records
    best = Best() if source is None else Best(**source.checkpoint.get("best", {}))
    logged = records.begin(position.epoch + 1, args, categories)
    best.follow(logged)
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    epochs = range(position.epoch + 1, args.epochs)
    if is_main_process():
        both = [("train", train_loader), ("val", val_loader)]
        print(describe(args, model, both, categories, epochs))
        if not epochs:
            print(f"finished already: all {args.epochs} epochs are trained")

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": drops.state_dict(),
            "warmup": None if warmup is None else warmup.state_dict(),
            "best": vars(best),
            "args": vars(args),
            "categories": categories,
        }

    def finish(epoch: int, train_stats: dict[str, float]) -> None:
        """Keep, evaluate and record an epoch that is trained and saved; a kill inside is made up for."""
        if (epoch + 1) % args.lr_drop == 0 or (epoch + 1) % 100 == 0:
            saver.copy_as(f"checkpoint{epoch:04}.pth")
        with random_state_kept(), interruption.at_once():  # a resumed run may not evaluate again
            stats, evaluator = evaluated()
        line = {f"train_{name}": value for name, value in train_stats.items()}
        line |= {f"test_{name}": value for name, value in stats.items()}
        line |= {"epoch": epoch, "n_parameters": n_parameters}
        if best.improves(line):
            saver.copy_as("checkpoint_best.pth")
        if evaluator is not None:
            records.save_evaluation(evaluator, epoch)
            if epoch == args.epochs - 1 and is_main_process():
                print(per_class_table(evaluator.per_class()))
        records.finish_epoch(line)

    # Epochs
    start = time.time()
    with Interruption() as interruption:
        folder = output_folder(args)
        saver = Saver(folder, state, args.save_every_minutes, args.save_every_steps, args.keep, interruption)
        if position.unrecorded is not None and position.epoch not in [line["epoch"] for line in logged]:
            finish(position.epoch, position.unrecorded)  # killed between saving and evaluating
        position.restore_random_state()
        for epoch in epochs:
            if best.out_of_patience(epoch - 1, args.patience):
                if is_main_process():
                    print(f"--patience {args.patience}: nothing better since epoch {best.epoch}, ending")
                break
            train_loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
            train_loader.batch_sampler.set_epoch(epoch, position.step * args.accum_steps)  # type: ignore
            try:
                train_stats = train_one_epoch(
                    trained,
                    criterion,
                    train_loader,
                    optimizer,
                    torch.device(args.device),
                    epoch,
                    args.clip_max_norm,
                    warmup=warmup,
                    accum_steps=args.accum_steps,
                    start_step=position.step,
                    meters=position.meters,
                    after_step=saver.inside_epoch(epoch),
                )
            except NotFinite as error:
                remark = write_crash_report(folder, error.report, get_rank())
                raise NotFinite(f"{error}{remark}", error.report) from error
            position = Position(epoch)
            drops.step()
            broadcast_buffers(model)
            saver.save(epoch, train_stats=train_stats)
            finish(epoch, train_stats)
    records.close()
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
    return guarded(main, parser.parse_args(argv))


def guarded(function: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Call a script's main function; tell a user's mistake in one line -> the exit status.

    One of several processes that fails tells the others and ends at once: see util.failures.
    """
    from util import failures

    try:
        function(args)
        if failures.is_shared():
            from util.distributed import leave

            leave()
    except UserError as error:
        if args.debug and not failures.is_shared():
            raise
        if failures.is_shared():
            failures.end(error, error.one_line(), args.debug)
        print(f"error: {error.one_line()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not failures.is_shared():
            raise
        failures.end(error)
    finally:
        failures.stop_watching()
    return 0


if __name__ == "__main__":
    sys.exit(run())
