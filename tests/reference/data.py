"""What build_dataset gives: validation items one by one, training items as statistics of many draws."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tests.reference.coco_folder import PICTURE_SIZES, write_coco_folder
from tests.reference.compare import Values
from tests.reference.settings import parse, quiet

DRAWS = 400


def targets(prefix: str, flags: str, seed: int, folder: Path) -> Values:
    """Items of the small COCO folder under `flags`; training draws are left out where there are masks."""
    from datasets import build_dataset

    write_coco_folder(folder, seed)
    args = parse(flags, "--coco_path", str(folder), "--coco_panoptic_path", str(folder))
    with quiet():
        validation, training = build_dataset("val", args), build_dataset("train", args)
    values: Values = {}
    for i in range(3):
        values.update(_item_values(f"{prefix}/{i}", *validation[i]))
    if "--masks" not in flags:
        values.update(_draw_values(prefix, training, seed))
    return values


def _item_values(prefix: str, image: Tensor, target: dict[str, Tensor]) -> Values:
    """Everything in a target, masks as pixel counts; the image [3, H, W] as the means of 12 × 12 cells."""
    values = {f"{prefix}/{key}": value.numpy() for key, value in target.items() if key != "masks"}
    values[f"{prefix}/keys"] = np.array(sorted(target))
    values[f"{prefix}/shape"] = np.array(image.shape)
    values[f"{prefix}/image~"] = adaptive_avg_pool2d(image, 12).double().numpy()
    if "masks" in target:
        masks = target["masks"]  # [N, H, W]
        values[f"{prefix}/mask_sums~"] = masks.flatten(1).sum(1).double().numpy()
        values[f"{prefix}/mask_type"] = np.array([masks.dtype == torch.bool])
    return values


def _draw_values(prefix: str, training: torch.utils.data.Dataset, seed: int) -> Values:
    """Mean and deviation of what one training picture becomes, and the sizes it takes when not cropped."""
    for seed_generator in (torch.manual_seed, random.seed, np.random.seed):
        seed_generator(3 + seed)
    rows = np.array([_describe_draw(*training[0]) for _ in range(DRAWS)])
    uncropped = rows[rows[:, 2] == 0]
    return {
        f"{prefix}/short_sides": np.array(sorted({str(int(side)) for side in uncropped[:, 0]})),
        f"{prefix}/draws~": np.concatenate([rows.mean(0), rows.std(0)]),
    }


def _describe_draw(image: Tensor, target: dict[str, Tensor]) -> list[float]:
    """Size, boxes and brightness of one draw."""
    height, width = (int(side) for side in target["size"])
    assert image.shape == (3, height, width), f"image {tuple(image.shape)}, its target says {height}, {width}"
    short, long = sorted((height, width))
    full_width, full_height = PICTURE_SIZES[0]
    boxes = target["boxes"].double()  # [N, 4]
    mean_box = boxes.mean(0).tolist() if len(boxes) else [0.0] * 4
    brightness = image.mean((0, 1)).double()  # [W], each column's; one pass over the image
    return [
        short,
        long / short,
        abs(long / short - full_width / full_height) > 0.01,  # cropped
        len(boxes),
        *mean_box,
        float(target["area"].double().sum()) / (height * width),
        float(brightness.mean()),
        float(brightness[: width // 2].mean() - brightness[width // 2 :].mean()),  # a flip shows here
    ]
