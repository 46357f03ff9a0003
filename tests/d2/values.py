"""What a wrapper of DETR for detectron2 computes: losses, gradients, a step, detections, masks, loading.

Run as a script it stores the values of the wrapper that is on PYTHONPATH:

    PYTHONPATH=$DETECTRON2_PATH:PUBLISHED python tests/d2/values.py tests/d2/published.npz

where PUBLISHED is a checkout of the published implementation. Only published names of the wrapper are used.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIZES = [(96, 128), (80, 112)]  # of a training batch: the second one is padded
CLASSES = 3


def config(mask_on: bool) -> Any:
    """A small transformer over detectron2's ResNet-50."""
    from detectron2.config import get_cfg

    from d2.detr import add_detr_config

    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "Detr"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = mask_on
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    detr = cfg.MODEL.DETR
    detr.NUM_CLASSES, detr.NUM_OBJECT_QUERIES, detr.HIDDEN_DIM, detr.NHEADS = CLASSES, 8, 128, 8
    detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DIM_FEEDFORWARD, detr.DROPOUT = 1, 2, 64, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.OPTIMIZER = "SGD" if mask_on else "ADAMW"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (96, 112, 128), 96
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute_range", (200, 300)
    return cfg


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights that depend on names alone, large enough for detections of several classes."""
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("criterion"):
            continue
        draw = np.random.RandomState(sum(name.encode()) % 2**31)
        if tensor.ndim > 1:
            # No box at the end of the sigmoid, and queries that differ
            spread = 0.3 if "bbox_embed" in name else 10.0 if "query_embed" in name else 1.0
            values = draw.standard_normal(tensor.shape) * spread * (2 / tensor[0].numel()) ** 0.5
        elif "norm" in name or "gn" in name:
            near = 0.0 if name.endswith(("bias", "running_mean")) else 0.2 if ".conv3." in name else 1.0
            values = near + 0.05 * np.abs(draw.standard_normal(tensor.shape))
        else:
            values = 0.1 * draw.standard_normal(tensor.shape)
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def image(size: tuple[int, int], seed: int) -> np.ndarray:
    """A picture of smooth colours, uint8 [H, W, 3]."""
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def record(size: tuple[int, int], seed: int, mask_on: bool) -> dict[str, Any]:
    """What the mapper gives of a training image with two objects."""
    from detectron2.structures import Boxes, Instances, PolygonMasks

    h, w = size
    boxes = np.array([[4, 6, w / 2, h / 2], [w / 3, h / 4, w - 5, h - 8]], np.float32) + seed
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([seed % CLASSES, 2])
    if mask_on:
        instances.gt_masks = PolygonMasks([[np.array([a, b, c, b, c, d])] for a, b, c, d in boxes.tolist()])
    pixels = torch.from_numpy(np.ascontiguousarray(image(size, seed).transpose(2, 0, 1)))
    return {"image": pixels, "instances": instances, "height": 2 * h, "width": 2 * w}


def training(mask_on: bool) -> dict[str, np.ndarray]:
    """Losses of a batch, gradients, learning rates, and weights after a step."""
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from d2.train_net import Trainer

    cfg = config(mask_on)
    model = filled(build_model(cfg)).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model([record(size, i, mask_on) for i, size in enumerate(SIZES)])
    losses = {name: value for name, value in losses.items() if name.startswith("loss")}
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    rates = [[g["lr"], g["weight_decay"]] for g in optimizer.param_groups]
    result = {f"losses/{name}": value.detach().numpy() for name, value in losses.items()}
    result["gradients/names"] = np.array(list(gradients))
    result["gradients/norms"] = np.array([gradient.norm().item() for gradient in gradients.values()])
    result["gradients/first"] = np.array([gradient.flatten()[0].item() for gradient in gradients.values()])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    steps = [(p.detach() - before[n]).norm().item() for n, p in model.named_parameters()]
    return {**result, "rates": np.array(rates), "steps": np.array(steps)}


def keys(mask_on: bool) -> np.ndarray:
    """Names in the state_dict."""
    from detectron2.modeling import build_model

    return np.array(list(build_model(config(mask_on)).state_dict()))


@torch.no_grad()
def detections(mask_on: bool) -> dict[str, np.ndarray]:
    """What the model finds in two images, one after the other."""
    from detectron2.modeling import build_model

    model = filled(build_model(config(mask_on))).eval()
    result = {}
    for i, size in enumerate(SIZES):
        given = record(size, i, mask_on)
        del given["instances"]
        found = model([given])[0]["instances"]
        result[f"{i}/boxes"] = found.pred_boxes.tensor.numpy()
        result[f"{i}/scores"], result[f"{i}/classes"] = found.scores.numpy(), found.pred_classes.numpy()
        if mask_on:
            result[f"{i}/masks"] = np.packbits(found.pred_masks.numpy())
    return result


def loading() -> dict[str, np.ndarray]:
    """What the mapper makes of one image under some seeds: flipped, resized, cropped."""
    from d2.detr import DetrDatasetMapper

    result = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        Image.fromarray(image((240, 320), 3)).save(path)
        polygon = [30.0, 20.0, 250.0, 40.0, 200.0, 220.0]
        objects = [
            {"bbox": [30, 20, 220, 200], "category_id": 1, "segmentation": [polygon]},
            {"bbox": [5, 5, 40, 30], "category_id": 0, "segmentation": [[5, 5, 45, 5, 45, 35]]},
            {"bbox": [5, 5, 40, 30], "category_id": 0, "segmentation": [polygon], "iscrowd": 1},
        ]
        given = {"file_name": str(path), "image_id": 1, "height": 240, "width": 320}
        given["annotations"] = [{"bbox_mode": 1, **one} for one in objects]
        for seed in range(6):
            np.random.seed(seed)
            mapped = DetrDatasetMapper(config(mask_on=True), is_train=True)(given)
            pixels, instances = mapped["image"].double(), mapped["instances"]
            result[f"{seed}/size"] = np.array(pixels.shape)
            result[f"{seed}/pixels"] = np.array([pixels.mean(), (pixels.diff(dim=2) ** 2).mean()])
            result[f"{seed}/boxes"] = instances.gt_boxes.tensor.numpy()
            result[f"{seed}/classes"] = instances.gt_classes.numpy()
            result[f"{seed}/areas"] = instances.gt_masks.area().numpy()
    return result


def defaults() -> np.ndarray:
    """The keys that the wrapper adds, with their defaults, as JSON."""
    from detectron2.config import get_cfg

    from d2.detr import add_detr_config

    cfg = get_cfg()
    add_detr_config(cfg)
    solver = {name: cfg.SOLVER[name] for name in ("OPTIMIZER", "BACKBONE_MULTIPLIER")}
    return np.array(json.dumps({**cfg.MODEL.DETR, **solver}))


def all_values() -> dict[str, np.ndarray]:
    """Everything, by name."""
    result = {"defaults": defaults()}
    result |= {f"loading/{name}": value for name, value in loading().items()}
    for mask_on, kind in ((False, "boxes"), (True, "masks")):
        result[f"{kind}/keys"] = keys(mask_on)
        for part, values in (("training", training(mask_on)), ("detections", detections(mask_on))):
            result |= {f"{kind}/{part}/{name}": value for name, value in values.items()}
    return result


if __name__ == "__main__":
    import torchvision

    torchvision.__version__ = "0.9.0"  # the published code compares three characters of it with 0.7
    np.savez_compressed(sys.argv[1], **all_values())  # type: ignore[arg-type]
