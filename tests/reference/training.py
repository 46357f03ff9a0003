"""Three epochs through the engine, and a whole run of main.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.reference.coco_folder import write_coco_folder
from tests.reference.compare import Values
from tests.reference.settings import SMALL, build, parse, quiet
from tests.reference.streams import picture, target

TRACED = (
    "loss",
    "loss_ce",
    "loss_bbox",
    "loss_giou",
    "class_error",
    "cardinality_error_unscaled",
    "loss_giou_1",
    "lr",
)
RUN_FLAGS = (
    "--backbone resnet18 --enc_layers 1 --dec_layers 2 --hidden_dim 32 --nheads 4 --dim_feedforward 64"
    " --num_queries 10 --batch_size 2 --epochs 2 --lr_drop 1 --num_workers 0"
)
SMALL_PICTURES = "--scales 96 128 --eval_scale 128 --max_size 192"  # for speed; no stored value depends on it


def train_three_epochs(seed: int) -> Values:
    """Two batches an epoch, without dropout: averages of each epoch, and the weights at the end."""
    from engine import train_one_epoch
    from util.misc import nested_tensor_from_tensor_list

    model, criterion, _ = build(SMALL, seed)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if "backbone" not in name]},
        {"params": [p for name, p in trained if "backbone" in name], "lr": 1e-5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)
    batches = []
    for b in range(2):
        images = [picture(f"t{b}{i}", 64, 96 - 16 * i, seed) for i in range(2)]
        targets = tuple(target(f"t{b}{i}", 4 + i, 64, 96, seed) for i in range(2))
        batches.append((nested_tensor_from_tensor_list(images), targets))
    trace = []
    for epoch in range(3):
        with quiet():
            stats = train_one_epoch(
                model, criterion, batches, optimizer, torch.device("cpu"), epoch, max_norm=0.1
            )
        trace.append([float(stats[key]) for key in TRACED])
    norms = [float(p.detach().norm()) for _, p in sorted(model.named_parameters())]
    box_weight = model.bbox_embed.layers[2].weight
    return {
        "train/trace": np.array(trace),
        "train/keys": np.array(sorted(stats)),
        "train/param_norms": np.array(norms, dtype=np.float32),
        "train/bbox_head": box_weight.detach().numpy(),
    }


def whole_run(seed: int, folder: Path) -> Values:
    """Two epochs of main.main on a small data set: what it writes, its schedule and its steps."""
    import main

    data, output = folder / "data", folder / "output"
    data.mkdir()
    output.mkdir()
    write_coco_folder(data, seed)
    args = parse(f"{RUN_FLAGS} {SMALL_PICTURES}", "--coco_path", str(data), "--output_dir", str(output))
    with quiet():
        main.main(args)
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    log = [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]
    checkpoint = torch.load(output / "checkpoint.pth", map_location="cpu", weights_only=True)
    evaluation = torch.load(output / "eval" / "latest.pth", weights_only=False)  # holds COCOeval's Params
    optimizer, schedule = checkpoint["optimizer"], checkpoint["lr_scheduler"]
    steps = [float(state["step"]) for state in optimizer["state"].values()]
    values = {
        "files/includes": files,
        "log/includes": sorted(log[0]),
        "checkpoint/includes": sorted(checkpoint),
        "eval/includes": sorted(evaluation),
        "lr": [f"{line['train_lr']:.6g}" for line in log],
        "epochs": [*(line["epoch"] for line in log), checkpoint["epoch"]],
        "parameters": [line["n_parameters"] for line in log],
        "groups": [_describe_group(group) for group in optimizer["param_groups"]],
        "steps": steps[:1],
        "schedule": [float(schedule[key]) for key in ("step_size", "gamma", "last_epoch")],
        "coco_eval": [len(line["test_coco_eval_bbox"]) for line in log],
        "precision": evaluation["precision"].shape,
    }
    return {f"whole_run/{key}": np.array(value) for key, value in values.items()}


def _describe_group(group: dict[str, Any]) -> str:
    settings = " ".join(f"{key} {group[key]:.6g}" for key in ("lr", "initial_lr", "weight_decay", "eps"))
    return f"{len(group['params'])} tensors {settings} betas {tuple(group['betas'])}"
