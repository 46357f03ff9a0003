"""Train and evaluate DETR on data in COCO's layout.

  python main.py --coco_path data/coco --output_dir outputs/r50              train on one device
  torchrun --nproc_per_node=8 main.py --coco_path data/coco ...             on eight GPUs
  python main.py --eval --resume PATH|URL --coco_path data/coco             evaluate a checkpoint
  python main.py @recipes/shapes.args                                       flags from a file

`python main.py --help` lists every flag (util/flags.py).
"""

from __future__ import annotations

import argparse
import sys

from util.command_line import RecipeParser
from util.flags import completed, get_args_parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's flags; ends the process for --help and for a flag that is wrong."""
    parser = RecipeParser("main.py", description=__doc__, parents=[get_args_parser()])
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse()  # --help and wrong flags end here, before the imports below take their seconds

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader

from datasets import build_dataset, get_coco_api_from_dataset
from datasets.annotations import read_coco
from datasets.labels import check_labels, check_objects, read_things
from datasets.loaders import make_loader
from datasets.sampler import EvalBatchSampler, TrainBatchSampler, aspect_groups
from models import build_model
from run.checkpoint import Position, RunState, Source, position_of
from run.evaluation import Evaluation, evaluate_only
from run.records import RunRecords, alone_in, output_folder
from run.settings import resolve
from run.summary import steps_per_epoch
from run.training import Training
from util.amp import Precision
from util.checkpoint_file import load_checkpoint, load_strictly, model_state
from util.distributed import (
    barrier,
    get_rank,
    get_world_size,
    init_distributed_mode,
    is_main_process,
    leave_after,
)
from util.errors import UserError, escape_unprintable, exit_status, warn
from util.machine import make_deterministic, resolve_device, set_tf32
from util.random_state import seed_everything

# What only some runs need (report, doctor, torch.compile, panoptic data) is imported where it is used.


def main(args: argparse.Namespace) -> None:
    """Train, or with `--eval` evaluate, as the flags say.

    Args:
        args: what the parser gives; flags that it lacks have their defaults. Only `init_distributed_mode`
            writes to it.
    """
    escape_unprintable()  # a caller's own script may print anywhere

    # Processes and device
    init_distributed_mode(args)
    args = completed(args)  # a copy
    args.device = resolve_device(args.device)
    if args.deterministic:
        make_deterministic()
    set_tf32(args.tf32)
    precision = Precision(args.amp, torch.device(args.device))

    # Where to start from, and the data
    source = None
    if args.resume:
        from run.resume import find_checkpoint

        source = find_checkpoint(args)
    reads_frozen = args.frozen_weights and args.masks and source is None
    frozen = load_checkpoint(args.frozen_weights) if reads_frozen else None
    check_data(args)
    args, categories = resolve(args, frozen if source is None else source.checkpoint)
    train_loader, val_loader = build_data_loaders(args)
    base_ds = ground_truth(args, val_loader.dataset)

    # Model
    seed_everything(args.seed + get_rank())
    model, criterion, postprocessors = build_model_and_weights(args, source, frozen, categories)
    frozen = None  # its weights are in the model

    # Training or evaluation
    evaluation = Evaluation(args, criterion, postprocessors, val_loader, base_ds, precision)
    writes = is_main_process()
    records = RunRecords(output_folder(args) if writes else None, args.tensorboard and writes)
    report = None
    if records.folder is not None and args.report:
        from report import build_report

        report = build_report(args, records, categories, train_loader, val_loader)
    if train_loader is None:
        evaluate_only(model, source, evaluation, records, report, categories)
    else:
        state, position = build_state(args, model, categories, train_loader, precision, source)
        source = None  # all of it has been taken over; its tensors need not stay in memory
        training = Training(state, position, train_loader, evaluation, records, report)
        with alone_in(records.folder):
            training.run()
    if args.compile and is_main_process():
        from models.compilation import graphs_compiled

        print(f"--compile: {graphs_compiled()} graphs compiled")


# --- Parts of a run ----------------------------------------------------------------------------------


def check_data(args: argparse.Namespace) -> None:
    """Let the doctor look at what is about to be trained on; one process does, the others wait."""
    if args.check_data != "off" and not args.eval and is_main_process():
        from doctor.at_start import check_at_start

        paths = args.coco_path, args.coco_panoptic_path
        check_at_start(args.check_data, args.dataset_file, *paths, args.num_classes, args.masks)
    barrier()


def build_data_loaders(args: argparse.Namespace) -> tuple[DataLoader | None, DataLoader]:
    """The loaders of both splits; None for training where only evaluation is asked for."""
    pinned = args.device.startswith("cuda")
    loader = partial(make_loader, num_workers=args.num_workers, pinned=pinned, seed=args.seed)
    ranks = get_world_size(), get_rank()
    # Images stay uint8 and are normalised on the device. Said in `args`, not as an argument: a fork's
    # build_dataset(image_set, args) takes no third. User-defined data sets may lack what is asked for below.
    data_args = argparse.Namespace(**vars(args), normalize_images=False)
    val = build_dataset("val", data_args)
    if hasattr(val, "annotations"):
        check_labels(val.annotations, args.num_classes)
    val_loader = loader(val, EvalBatchSampler(val, args.eval_batch_size, *ranks))
    if args.eval:
        return None, val_loader
    train = build_dataset("train", data_args)
    groups = aspect_groups(train) if args.group_by_aspect else None
    sampler = TrainBatchSampler(train, args.batch_size, *ranks, seed=args.seed, groups=groups)
    if sampler.batches_per_epoch < args.accum_steps:
        raise UserError(
            f"--accum_steps {args.accum_steps}: the training set's {len(train)} images make fewer batches of "
            f"{args.batch_size}; lower --accum_steps or --batch_size"
        )
    if hasattr(train, "annotations"):
        check_labels(train.annotations, args.num_classes)
        check_objects(train.annotations, args.num_queries)
    if args.compile:
        from models.compilation import CANVAS_MULTIPLE

        return loader(train, sampler, multiple=CANVAS_MULTIPLE), val_loader
    return loader(train, sampler), val_loader


def ground_truth(args: argparse.Namespace, dataset: Any) -> Any:
    """The pycocotools object that boxes and masks are evaluated on.

    For panoptic data that is the file of instances beside the pictures; None if there is none.
    """
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
    try:
        model, criterion, postprocessors = build_model(args)
    except ValueError as error:  # flags that do not fit together
        raise UserError(str(error)) from error
    if "panoptic" in postprocessors:
        # A class that the ground truth lacks cannot be evaluated.
        postprocessors["panoptic"].is_thing_map = read_things(args, ("val",))  # type: ignore[assignment]
    if source is not None:
        from run.resume import warn_of_other_settings

        load_strictly(model, model_state(source.checkpoint), f"--resume {source.path}")
        if is_main_process():
            warn_of_other_settings(source, args, categories)
    elif args.finetune:
        from models.finetune import class_names, load_for_finetuning

        other = load_checkpoint(args.finetune)
        names = categories, class_names(other)
        report = load_for_finetuning(model, model_state(other), args.finetune, *names)
        if is_main_process():
            print(f"--finetune {args.finetune}: {report}")
    elif args.eval and not args.ema and is_main_process():  # with --ema, evaluate_only raises
        warn("--eval without --resume: the model has its initial values")
    if frozen is not None:
        from models.finetune import detector_state

        detector = detector_state(model_state(frozen))
        load_strictly(model.detr, detector, f"--frozen_weights {args.frozen_weights}")  # type: ignore[arg-type]
    if args.grad_checkpoint:
        from models.recomputation import enable_grad_checkpoint

        enable_grad_checkpoint(model)
    model.to(args.device)
    if args.compile:
        from models.compilation import compile_model

        compile_model(model, torch.device(args.device))
    return model, criterion, postprocessors


def build_state(
    args: argparse.Namespace,
    model: nn.Module,
    categories: dict[int, str],
    loader: DataLoader,
    precision: Precision,
    source: Source | None,
) -> tuple[RunState, Position]:
    """What a training of the model carries along, and where it begins: anew, or as `--resume` says."""
    position = position_of(source, args, steps_per_epoch(loader, args))
    groups = None
    if args.query_groups > 1:
        from models.query_groups import QueryGroups

        starts_trained = source is not None or bool(args.finetune)
        groups = QueryGroups(model, args.query_groups, args.seed, starts_trained)
    optimizer = build_optimizer(groups or model, args)
    is_thing = getattr(loader.dataset, "is_thing", None)  # of panoptic data
    state = RunState(args, categories, is_thing, model, groups, optimizer, precision.scaler, source)
    return state, position


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with two groups: all but the backbone at `--lr`, then the backbone at `--lr_backbone`."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if "backbone" not in name]},
        {"params": [p for name, p in trained if "backbone" in name], "lr": args.lr_backbone},
    ]
    fused = {p.device.type for _, p in trained} <= {"cuda", "cpu"}
    return torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay, fused=fused)


# --- The command -------------------------------------------------------------------------------------


def run(argv: list[str] | None = None) -> int:
    """The command line -> its exit status.

    0; 2 for a mistake that the user can correct; 130 for Ctrl-C; 143 for a run that a signal stopped.
    """
    args = parse(argv)
    worker = record(leave_after)  # torchrun shows the error of the process that failed first
    return exit_status(lambda: worker(main, args), args.debug)


if __name__ == "__main__":
    sys.exit(run())
