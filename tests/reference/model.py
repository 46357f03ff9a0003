"""Whole models: outputs, losses, gradients and post-processing; scripting; the torch.hub entry points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.compare import Values
from tests.reference.settings import NO_AUX, build, quiet
from tests.reference.streams import fill_state, picture, target

R18_SIZES = ((64, 112), (96, 80))  # height, width of the two images of a batch
SIZES = ((64, 96), (96, 64))
DETECTION_ENTRY_POINTS = ("detr_resnet50", "detr_resnet50_dc5", "detr_resnet101", "detr_resnet101_dc5")
PANOPTIC_ENTRY_POINTS = ("detr_resnet50_panoptic", "detr_resnet50_dc5_panoptic", "detr_resnet101_panoptic")
ENTRY_POINTS_RUN = ("detr_resnet50", "detr_resnet50_dc5", "detr_resnet50_panoptic")


def tensors(prefix: str, tree: Mapping[str, Any]) -> Values:
    """The tensors of a dict under `prefix/key`, those of a list of dicts under `prefix/key0/…`."""
    values: Values = {}
    for key, item in tree.items():
        if isinstance(item, Tensor):
            values[f"{prefix}/{key}"] = item.detach().cpu().numpy()
        elif isinstance(item, list):
            for position, entry in enumerate(item):
                values.update(tensors(f"{prefix}/{key}{position}", entry))
    return values


def forward_and_loss(name: str, flags: str, counts: Sequence[int], seed: int, device: str = "cpu") -> Values:
    """A training step without the step, then the evaluation of the same two images.

    `counts` gives the number of objects in each image.
    """
    model, criterion, postprocessors = build(flags, seed)
    model.to(device)
    criterion.to(device)
    sizes = R18_SIZES if "resnet18" in flags else SIZES
    with_masks = "--masks" in flags
    images = [picture(f"{name}{i}", *size, seed).to(device) for i, size in enumerate(sizes)]
    targets = [
        {k: v.to(device) for k, v in target(f"{name}{i}", count, *size, seed, with_masks).items()}
        for i, (count, size) in enumerate(zip(counts, sizes, strict=True))
    ]
    return {
        **_training_values(name, model, criterion, images, targets),
        **_evaluation_values(name, model, postprocessors, images, targets),
    }


def _training_values(
    name: str, model: nn.Module, criterion: Any, images: list[Tensor], targets: list[dict]
) -> Values:
    """Every output and loss, and the norm of every parameter's gradient."""
    model.train()
    criterion.train()
    outputs = model(images)
    losses = dict(criterion(outputs, targets))
    if not any(len(each["labels"]) for each in targets):
        del losses["class_error"]  # undefined: there is nothing to be right or wrong about
    weights: dict[str, float] = criterion.weight_dict
    weighted = [loss * weights[key] for key, loss in losses.items() if key in weights]
    total = torch.stack(weighted).sum()
    total.backward()
    gradients = {key: p.grad for key, p in sorted(model.named_parameters()) if p.grad is not None}
    norms = [float(gradient.norm()) for gradient in gradients.values()]
    return {
        **tensors(f"{name}/out", outputs),
        **tensors(f"{name}/loss", {**losses, "total": total}),
        **{f"{name}/weight/{key}": np.float32(weight) for key, weight in weights.items()},
        f"{name}/grad/names": np.array(list(gradients)),
        f"{name}/grad/norms": np.array(norms, dtype=np.float32),
    }


@torch.no_grad()
def _evaluation_values(
    name: str, model: nn.Module, postprocessors: Mapping[str, Any], images: list[Tensor], targets: list[dict]
) -> Values:
    """Detections, and the areas of their masks, in images of a little more than twice the size."""
    model.eval()
    outputs = model(images)
    processed_sizes = torch.stack([each["size"] for each in targets])  # [B, 2]
    target_sizes = 2 * torch.stack([each["orig_size"] for each in targets]) + 1
    values: Values = {}
    detections = postprocessors["bbox"](outputs, target_sizes)
    for i, detection in enumerate(detections):
        values.update(tensors(f"{name}/bbox{i}", detection))
    if "segm" in postprocessors:
        results = postprocessors["segm"](detections, outputs, target_sizes, processed_sizes)
        for i, result in enumerate(results):
            masks = result["masks"]  # [Q, 1, height, width]
            values[f"{name}/segm{i}/area"] = masks.flatten(1).sum(1).cpu().numpy()
            values[f"{name}/segm{i}/shape"] = np.array(masks.shape)
    return values


@torch.no_grad()
def scripted(seed: int) -> Values:
    """How far torch.jit.script moves the outputs, given a batch."""
    from util.misc import nested_tensor_from_tensor_list

    model = build(NO_AUX, seed)[0].eval()
    images = [picture("script0", 64, 96, seed), picture("script1", 64, 80, seed)]
    batch = nested_tensor_from_tensor_list(images)
    plain, compiled = model(batch), torch.jit.script(model)(batch)
    keys = ("pred_logits", "pred_boxes")
    return {f"script/{key}": (plain[key] - compiled[key]).abs().max().reshape(1).numpy() for key in keys}


def hub(case: str, entry_points: Sequence[str], seed: int) -> Values:
    """Every entry point's parameter names, shapes and counts, and what the R50 models see in one image."""
    import hubconf

    values: Values = {}
    for name in entry_points:
        with quiet():
            model = getattr(hubconf, name)(pretrained=False, pretrained_backbone=False)
        prefix = f"{case}/{name}"
        values[f"{prefix}/keys"] = np.array(
            sorted(
                f"{key} {tuple(tensor.shape)}"
                for key, tensor in model.state_dict().items()
                if not key.endswith("num_batches_tracked")
            )
        )
        sizes = [(p.numel(), p.numel() if p.requires_grad else 0) for p in model.parameters()]
        values[f"{prefix}/params"] = np.array(sizes).sum(0)  # all, trainable
        if name in ENTRY_POINTS_RUN:
            values.update(_hub_outputs(prefix, model, picture(name, 160, 208, seed), seed))
    return values


@torch.no_grad()
def _hub_outputs(prefix: str, model: nn.Module, image: Tensor, seed: int) -> Values:
    """A part of what the filled model gives for one image; the whole would be large."""
    fill_state(model, seed)
    results = model.eval()([image])
    outputs = {key: item[0].numpy() for key, item in results.items() if isinstance(item, Tensor)}
    values = {
        f"{prefix}/logits": outputs["pred_logits"][:10, ::7],
        f"{prefix}/boxes": outputs["pred_boxes"],
    }
    if "pred_masks" in outputs:
        values[f"{prefix}/masks"] = outputs["pred_masks"][:6, ::8, ::8]
    return values
