"""Train or evaluate DETR with detectron2:

    python d2/train_net.py --config-file d2/configs/detr_256_6_6_torchvision.yaml --num-gpus 8
    python d2/train_net.py --config-file d2/configs/detr_256_6_6_torchvision.yaml --eval-only \
        MODEL.WEIGHTS converted.pth

The arguments are those of detectron2's own scripts, and `--register NAME=annotations.json:images`.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the project, from wherever this is started

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as missing:
    if __name__ != "__main__" or missing.name != "detectron2":
        raise
    HOW = "pip install 'git+https://github.com/facebookresearch/detectron2.git' --no-build-isolation"
    print(f"error: detectron2 is not installed: {HOW}", file=sys.stderr)
    sys.exit(2)

import detectron2.utils.comm as comm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import DatasetEvaluators, verify_results
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.file_io import PathManager

from d2.detr import DetrDatasetMapper, DetrPanopticEvaluator, add_detr_config
from d2.detr.evaluators import coco_evaluator
from d2.register import register
from util.errors import UserError, exit_status


class Trainer(DefaultTrainer):
    """detectron2's trainer with DETR's data, optimizer and evaluation."""

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        """Batches for training; those of other meta-architectures are detectron2's."""
        is_detr = cfg.MODEL.META_ARCHITECTURE == "Detr"
        loader = build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, True) if is_detr else None)
        for name in cfg.DATASETS.TRAIN if is_detr else ():
            check_classes(name, cfg.MODEL.DETR.NUM_CLASSES)  # a data set knows its classes once it is read
        return loader

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        """Batches for evaluation."""
        is_detr = cfg.MODEL.META_ARCHITECTURE == "Detr"
        mapper = DetrDatasetMapper(cfg, False) if is_detr else None
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str, output_folder: str | None = None) -> Any:
        """COCO's figures of boxes and masks, and panoptic quality with PANOPTIC_ON."""
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if not cfg.MODEL.DETR.PANOPTIC_ON:
            return coco_evaluator(cfg, dataset_name, output_folder)
        evaluators = [DetrPanopticEvaluator(dataset_name)] if cfg.MODEL.MASK_ON else []
        if MetadataCatalog.get(dataset_name).get("json_file"):  # its things, if they are described by COCO's
            evaluators.append(coco_evaluator(cfg, dataset_name, output_folder))
        return DatasetEvaluators(evaluators)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
        """AdamW or SGD, a group for each parameter; those of the backbone with their own learning rate.

        With CLIP_TYPE "full_model" the norm of all gradients together is clipped to CLIP_VALUE.
        """
        solver = cfg.SOLVER
        groups = []
        for name, parameter in model.named_parameters():  # each once, where modules share it
            if parameter.requires_grad:
                lr = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if "backbone" in name else 1.0)
                groups.append({"params": [parameter], "lr": lr, "weight_decay": solver.WEIGHT_DECAY})
        if solver.OPTIMIZER == "ADAMW":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, solver.BASE_LR)
        elif solver.OPTIMIZER == "SGD":
            optimizer = torch.optim.SGD(groups, solver.BASE_LR, momentum=solver.MOMENTUM)
        else:
            raise UserError(f"SOLVER.OPTIMIZER {solver.OPTIMIZER}: neither ADAMW nor SGD")
        clip = solver.CLIP_GRADIENTS
        if clip.CLIP_TYPE != "full_model":
            return maybe_add_gradient_clipping(cfg, optimizer)
        if clip.ENABLED and clip.CLIP_VALUE > 0:
            parameters = [group["params"][0] for group in groups]

            def clip_gradients(*_: Any) -> None:
                torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE)

            optimizer.register_step_pre_hook(clip_gradients)
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of training: the optimizer too, which detectron2 0.6 leaves out."""
        state = {**super().state_dict(), "_trainer": self._trainer.state_dict()}
        groups = self.cfg.MODEL.DETR.QUERY_GROUPS
        return {**state, "query_groups": groups} if groups > 1 else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            UserError: it was trained with another number of query groups.
        """
        before, now = state_dict.get("query_groups", 1), self.cfg.MODEL.DETR.QUERY_GROUPS
        if before != now:
            raise UserError(
                f"--resume: {self.cfg.OUTPUT_DIR} has MODEL.DETR.QUERY_GROUPS {before}, not {now}: "
                f"set it to {before}, or pass the checkpoint as MODEL.WEIGHTS to start anew from it"
            )
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])


def check_classes(dataset_name: str, num_classes: int) -> None:
    """Compare the classes of a data set that has been read with those of the model.

    Raises:
        UserError: the model has fewer. Where it has more, one line warns: detectron2's evaluation refuses
            predictions of classes that the data set does not have.
    """
    names = MetadataCatalog.get(dataset_name).get("thing_classes", [])
    if len(names) > num_classes:
        raise UserError(
            f"MODEL.DETR.NUM_CLASSES {num_classes}: too few, data set {dataset_name} has {len(names)}"
        )
    if 0 < len(names) < num_classes:
        logging.getLogger("detectron2").warning(
            "MODEL.DETR.NUM_CLASSES is %d, and data set %s has %d classes: evaluation fails once another "
            "one is predicted",
            num_classes,
            dataset_name,
            len(names),
        )


def setup(args: argparse.Namespace) -> Any:
    """The configuration: detectron2's and DETR's defaults, the file, what the command line adds."""
    if not PathManager.isfile(args.config_file):
        raise UserError(f"--config-file {args.config_file}: there is no such file")
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    if not args.eval_only and cfg.MODEL.WEIGHTS and cfg.MODEL.DETR.FROZEN_WEIGHTS:
        raise UserError(
            "MODEL.WEIGHTS and MODEL.DETR.FROZEN_WEIGHTS are both set, and the first would overwrite the "
            "second: set one of them to ''"
        )
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Train or evaluate, in one of the processes that launch has started."""
    for text in args.register:
        register(text)
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def get_parser() -> argparse.ArgumentParser:
    """detectron2's arguments and our own."""
    parser = default_argument_parser()
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=annotations.json:images",
        help="a data set in COCO's format, for DATASETS.TRAIN and DATASETS.TEST; may be given several times. "
        "NAME=panoptic.json:images:pngs registers panoptic segments.",
    )
    return parser


def run() -> None:
    """What the command line asks for."""
    args = get_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    sys.exit(exit_status(run))
