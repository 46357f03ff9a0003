"""Train and evaluate DETR on data in COCO's layout.

  python main.py --coco_path data/coco --output_dir outputs/r50              train on one device
  torchrun --nproc_per_node=8 main.py --coco_path data/coco ...             on eight GPUs
  python main.py --eval --resume PATH|URL --coco_path data/coco             evaluate a checkpoint
  python main.py @recipes/shapes.args                                       flags from a file

`python main.py --help` lists every flag (util/flags.py). Slow imports stand inside the functions that need
them, so that asking for help does not load torch.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.layouts import SHAPES_PATH
from util.command_line import RecipeParser, guarded
from util.errors import UserError, warn
from util.flags import completed, get_args_parser

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from report import Report
    from run.records import RunRecords
    from run.resume import Source
    from run.training import Evaluation

MOST_CLASSES = 100_000  # unless --num_classes asks for more

# --- What was left open ------------------------------------------------------------------------------


def resolve(args: argparse.Namespace, checkpoint: dict | None) -> dict[int, str]:
    """Decide what the flags left open, before anything is built: device, data, classes, backbone weights.

    Writes to args; nothing behind main does.

    Returns:
        The categories of the data, id -> name.
    """
    from datasets.labels import read_categories

    args.eval_batch_size = args.eval_batch_size or args.batch_size
    if args.dataset_file == "shapes":
        args.coco_path = args.coco_path or SHAPES_PATH
        ensure_shapes(args.coco_path)
    if args.frozen_weights and not args.masks:
        raise UserError("--frozen_weights freezes the detector under a mask head: pass --masks too")
    if args.compile and args.grad_checkpoint:
        raise UserError("--grad_checkpoint: compiled graphs choose what to keep; leave out --compile")
    if checkpoint is not None or args.finetune or args.frozen_weights:
        args.backbone_weights = "none"  # the checkpoint holds the backbone

    categories = read_categories(args, ("val",) if args.eval else ("train", "val"))
    args.num_classes = args.num_classes or _infer_num_classes(args, categories, checkpoint)
    return categories


def check_data(args: argparse.Namespace) -> None:
    """Let the doctor look at what is about to be trained on; one process does, the others wait."""
    from doctor.at_start import check_at_start
    from util.distributed import barrier, is_main_process

    if not args.eval and is_main_process():
        paths = args.coco_path, args.coco_panoptic_path
        check_at_start(args.check_data, args.dataset_file, *paths, args.num_classes, args.masks)
    barrier()


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
    from datasets import build_dataset
    from datasets.labels import check_labels, check_objects
    from datasets.loaders import make_loader
    from datasets.sampler import EvalBatchSampler, TrainBatchSampler, aspect_groups
    from models.compilation import CANVAS_MULTIPLE
    from util.distributed import get_rank, get_world_size

    loader = partial(
        make_loader,
        num_workers=args.num_workers,
        pinned=args.device.startswith("cuda"),
        seed=args.seed,
    )
    ranks = get_world_size(), get_rank()
    val = build_dataset("val", args, normalize_images=False)
    check_labels(val.annotations, args.num_classes)
    val_loader = loader(val, EvalBatchSampler(val, args.eval_batch_size, *ranks))
    if args.eval:
        return None, val_loader
    train = build_dataset("train", args, normalize_images=False)
    groups = aspect_groups(train) if args.group_by_aspect else None
    sampler = TrainBatchSampler(train, args.batch_size, *ranks, seed=args.seed, groups=groups)
    if sampler.batches_per_epoch < args.accum_steps:
        raise UserError(
            f"--accum_steps {args.accum_steps}: the training set's {len(train)} images make fewer batches of "
            f"{args.batch_size}; lower --accum_steps or --batch_size"
        )
    check_labels(train.annotations, args.num_classes)
    check_objects(train.annotations, args.num_queries)
    return loader(train, sampler, multiple=CANVAS_MULTIPLE if args.compile else 1), val_loader


def ground_truth(args: argparse.Namespace, dataset: Any) -> Any:
    """The pycocotools object that boxes and masks are evaluated on.

    For panoptic data that is the file of instances beside the pictures; None if there is none.
    """
    from datasets import get_coco_api_from_dataset
    from datasets.coco import read_coco

    if args.dataset_file != "coco_panoptic":
        return get_coco_api_from_dataset(dataset)
    instances = Path(args.coco_path) / "annotations" / "instances_val2017.json"
    return read_coco(instances) if instances.exists() else None


def build_model_and_weights(
    args: argparse.Namespace, source: Source | None, frozen: dict | None, categories: dict[int, str]
) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    """Build the model and fill it from `--resume`, `--finetune` and `--frozen_weights`, if they are given.

    Args:
        source: the checkpoint of `--resume`.
        frozen: that of `--frozen_weights`; None where `--resume` brings the detector along.
        categories: of the data, id -> name.
    """
    from models import build_model
    from models.finetune import class_names, detector_state, load_for_finetuning
    from models.recomputation import enable_grad_checkpoint
    from util.checkpoint import load_checkpoint, load_strictly, model_state
    from util.distributed import is_main_process

    is_thing = None
    if args.dataset_file == "coco_panoptic":
        from datasets.labels import read_things

        is_thing = read_things(args, ("val",))  # a class that the ground truth lacks cannot be evaluated
    try:
        model, criterion, postprocessors = build_model(args, is_thing)
    except ValueError as error:  # flags that do not fit together
        raise UserError(str(error)) from error
    if source is not None:
        load_strictly(model, model_state(source.checkpoint), f"--resume {source.path}")
    elif args.finetune:
        other = load_checkpoint(args.finetune)
        names = categories, class_names(other)
        report = load_for_finetuning(model, model_state(other), args.finetune, *names)
        if is_main_process():
            print(f"--finetune {args.finetune}: {report}")
    if frozen is not None:
        detector = detector_state(model_state(frozen))
        load_strictly(model.detr, detector, f"--frozen_weights {args.frozen_weights}")  # type: ignore[arg-type]
    if args.grad_checkpoint:
        enable_grad_checkpoint(model)
    return model.to(args.device), criterion, postprocessors


# --- The run -----------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> None:
    """Train, or with `--eval` evaluate, as the flags say."""
    import torch

    from models.compilation import compile_model, graphs_compiled
    from run.folder_lock import alone_in
    from run.records import RunRecords
    from run.resume import find_checkpoint, output_folder
    from run.training import Evaluation, Training
    from util.amp import Precision
    from util.checkpoint import load_checkpoint
    from util.device import make_deterministic, resolve_device, set_tf32
    from util.distributed import get_rank, init_distributed_mode, is_main_process, meet
    from util.random_state import seed_everything

    # Processes and devices
    vars(args).update(vars(completed(args)))  # a script made for the published code knows fewer flags
    meet(args)
    args.device = resolve_device(args.device)
    if args.deterministic:
        make_deterministic()
    set_tf32(args.tf32)
    init_distributed_mode(args)
    precision = Precision(args.amp, torch.device(args.device))

    # Data
    source = find_checkpoint(args)
    reads_frozen = args.frozen_weights and args.masks and source is None
    frozen = load_checkpoint(args.frozen_weights) if reads_frozen else None
    check_data(args)
    categories = resolve(args, frozen if source is None else source.checkpoint)
    train_loader, val_loader = build_data_loaders(args)
    base_ds = ground_truth(args, val_loader.dataset)

    # Model
    seed_everything(args.seed + get_rank())
    model, criterion, postprocessors = build_model_and_weights(args, source, frozen, categories)
    if is_main_process():
        warn_of_use(args, source, categories)
    if args.compile:
        compile_model(model, precision.device)

    # Training or evaluation
    evaluation = Evaluation(args, criterion, postprocessors, val_loader, base_ds, precision)
    writes = is_main_process()
    records = RunRecords(output_folder(args) if writes else None, args.tensorboard and writes)
    if train_loader is None:
        evaluate_only(args, model, source, evaluation, records, categories)
    else:
        optimizer = build_optimizer(model, args)
        report = build_report(evaluation, records, categories, train_loader)
        training = Training(
            args, model, optimizer, criterion, train_loader, evaluation, records, report, categories
        )
        with alone_in(records.folder):
            training.run(source)
    if args.compile and is_main_process():
        print(f"--compile: {graphs_compiled()} graphs compiled")


def warn_of_use(args: argparse.Namespace, source: Source | None, categories: dict[int, str]) -> None:
    """Say where a model is not used as it was trained, or was not trained at all."""
    from run.resume import warn_of_other_settings

    if source is not None:
        warn_of_other_settings(source, args, categories)
    elif args.eval and not args.finetune and not args.ema:  # --ema refuses it
        warn("--eval without --resume: the model has its initial values")


def build_report(
    evaluation: Evaluation,
    records: RunRecords,
    categories: dict[int, str],
    train_loader: DataLoader | None = None,
) -> Report | None:
    """What writes report.html, for an evaluation alone eval.html; None where nothing is to be written."""
    from report import Report
    from report.source import ReportSource
    from run.summary import splits_of

    args = evaluation.args
    if records.folder is None or not args.report:
        return None
    loaders = [("val", evaluation.loader)]
    if train_loader is not None:
        loaders.insert(0, ("train", train_loader))
    panoptic = records.folder / "panoptic_eval" if "panoptic" in evaluation.postprocessors else None
    return Report(
        records.folder,
        ReportSource(evaluation.loader.dataset, panoptic),
        categories,
        splits_of(loaders),
        vars(args),
        vars(get_args_parser().parse_args([])),
        records.board,
        "eval.html" if args.eval else "report.html",
    )


def evaluate_only(
    args: argparse.Namespace,
    model: nn.Module,
    source: Source | None,
    evaluation: Evaluation,
    records: RunRecords,
    categories: dict[int, str],
) -> None:
    """`--eval`: print and record the figures of a model, and with `--ema` of its averaged weights."""
    from run.ema import WeightAverage
    from run.records import per_class_table
    from run.summary import describe
    from util.distributed import is_main_process

    if is_main_process():
        print(describe(args, model, [("val", evaluation.loader)], categories, range(0)))
    average = WeightAverage(model, args.ema) if args.ema else None
    if average is not None and (source is None or not average.load_state_dict(*source)):
        raise UserError(
            "--eval --ema: there are no averaged weights; pass --resume a checkpoint that has some"
        )
    line, evaluator = evaluation(model, average)
    if evaluator is not None:
        if is_main_process():
            print(per_class_table(evaluator.per_class()))
        records.save_evaluation(evaluator)
    records.write_stats(line)
    report = build_report(evaluation, records, categories)
    if report is not None:
        report.write(evaluator, [line])


def run(argv: list[str] | None = None) -> int:
    """The command line -> its exit status: 0, or 2 for a mistake that the user can correct."""
    parser = RecipeParser(
        "main.py",
        description=__doc__,
        parents=[get_args_parser()],
    )
    return guarded(main, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(run())
