"""What is measured on: random, but of the sizes and numbers that COCO has, and the same in every run.

Shapes: B images, n objects, Q queries, C classes, L decoder layers.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CATEGORIES = [category for category in range(1, 91) if category % 9]  # 80 ids with gaps, as COCO's
OBJECTS = 7  # in a picture, on average


def byte_images(count: int, height: int, width: int) -> list[Tensor]:
    """Pictures uint8 [3, height, width] of coloured noise."""
    generator = torch.Generator().manual_seed(count)
    return list(torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8))


def targets(
    images: int, objects: int, height: int, width: int, masks: bool = False
) -> list[dict[str, Tensor]]:
    """For each image labels [n], boxes [n, 4] (cxcywh in [0, 1]), and with `masks` rectangles [n, h, w]."""
    generator = torch.Generator().manual_seed(objects)
    result = []
    for _ in range(images):
        sides = torch.rand(objects, 2, generator=generator) * 0.4 + 0.1
        centres = sides / 2 + torch.rand(objects, 2, generator=generator) * (1 - sides)
        labels = torch.randint(1, 91, (objects,), generator=generator)
        target = {"labels": labels, "boxes": torch.cat([centres, sides], 1)}
        if masks:
            target["masks"] = torch.zeros(objects, height, width, dtype=torch.bool)
            for mask, (x, y), (w, h) in zip(target["masks"], centres.tolist(), sides.tolist(), strict=True):
                rows = slice(int((y - h / 2) * height), int((y + h / 2) * height))
                mask[rows, int((x - w / 2) * width) : int((x + w / 2) * width)] = True
        result.append(target)
    return result


def layer_outputs(layers: int, images: int, queries: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Logits [L, B, Q, C + 1] and boxes [L, B, Q, 4] to compare with objects; both want gradients."""
    generator = torch.Generator().manual_seed(layers)
    logits = torch.randn(layers, images, queries, classes + 1, generator=generator)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.4 + 0.1
    return logits.to(device).requires_grad_(), boxes.to(device).requires_grad_()


def write_coco(root: Path, images: int, height: int, width: int) -> Path:
    """A training split in COCO's layout: JPEGs with some detail, objects with polygons of 24 corners."""
    folder = root / "train2017"
    if folder.exists():
        return root
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    draw = np.random.default_rng(0)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, images + 1):
        name = f"{number:012d}.jpg"
        picture(draw, height, width).save(folder / name, quality=90)
        listed.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(draw.poisson(OBJECTS - 1) + 1):
            annotations.append(_object(draw, len(annotations) + 1, number, height, width))
    content = {"images": listed, "annotations": annotations, "categories": _categories()}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def picture(draw: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth colours with edges and grain: a JPEG of it has about the size of a photograph's."""
    layers = []
    for cells, filtered in ((6, Image.Resampling.BICUBIC), (40, Image.Resampling.NEAREST)):
        small = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(np.asarray(small.resize((width, height), filtered), dtype=np.float32))
    grain = draw.normal(0, 12, (height, width, 1))
    return Image.fromarray((0.75 * layers[0] + 0.25 * layers[1] + grain).clip(0, 255).astype(np.uint8))


def _object(draw: np.random.Generator, number: int, image: int, height: int, width: int) -> dict[str, Any]:
    size = np.array([width, height])
    radius = draw.uniform(0.03, 0.3) * size
    centre = draw.uniform(radius, size - radius)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    corners = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1) * draw.uniform(0.6, 1, (24, 1))
    low, sides = corners.min(0), np.ptp(corners, axis=0)
    return {
        "id": number,
        "image_id": image,
        "category_id": int(draw.choice(CATEGORIES)),
        "bbox": [round(float(v), 2) for v in (*low, *sides)],
        "area": float(sides.prod() * 0.7),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in corners.ravel()]],
    }


def _categories() -> list[dict[str, Any]]:
    return [{"id": category, "name": f"class {category}"} for category in CATEGORIES]


def coco_predictions(images: int, each: int) -> tuple[Any, dict[int, dict[str, Tensor]]]:
    """A pycocotools ground truth of some images, and `each` predictions for every one.

    Some predictions lie near objects, with a score that tells how near; most lie anywhere.
    """
    from pycocotools.coco import COCO

    draw = np.random.default_rng(1)
    annotations: list[dict[str, Any]] = []
    predictions = {}
    for image in range(1, images + 1):
        own = [_object(draw, len(annotations) + i + 1, image, 480, 640) for i in range(draw.poisson(OBJECTS))]
        annotations += own
        boxes = np.concatenate([draw.uniform(0, 400, (each, 2)), draw.uniform(10, 200, (each, 2))], 1)
        labels, scores = draw.choice(CATEGORIES, each), draw.uniform(0, 0.6, each)
        for place, annotation in enumerate(own[:each]):
            boxes[place] = np.array(annotation["bbox"]) * draw.uniform(0.85, 1.15, 4)
            labels[place], scores[place] = annotation["category_id"], draw.uniform(0.3, 1)
        boxes[:, 2:] += boxes[:, :2]
        predictions[image] = {
            "scores": torch.from_numpy(scores).float(),
            "labels": torch.from_numpy(labels),
            "boxes": torch.from_numpy(boxes).float(),
        }
    coco = COCO()
    listed = [{"id": image, "height": 480, "width": 640} for image in range(1, images + 1)]
    coco.dataset = {"images": listed, "annotations": annotations, "categories": _categories()}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, predictions


def write_panoptic(root: Path, images: int, height: int, width: int) -> tuple[Path, Path, Path, Path]:
    """Panoptic truth and predictions in COCO's format: (truth.json, truth/, found.json, found/)."""
    paths = root / "truth.json", root / "truth", root / "found.json", root / "found"
    if paths[0].exists():
        return paths
    paths[1].mkdir(parents=True)
    paths[3].mkdir()
    draw = np.random.default_rng(2)
    entries: tuple[list, list] = ([], [])
    for image in range(1, images + 1):
        count = int(draw.integers(8, 20))
        centres = draw.uniform(0, 1, (count, 2))
        classes = draw.integers(1, 134, count)
        ids = draw.choice(1 << 24, count, replace=False)
        for side, (moved, folder) in enumerate(((0.0, paths[1]), (0.02, paths[3]))):
            cells = _cells(draw, centres + draw.normal(0, moved, centres.shape), height, width)
            name = f"{image:012d}.png"
            segments = _save_segments(folder / name, cells, ids, classes, void=side == 0)
            entries[side].append({"image_id": image, "file_name": name, "segments_info": segments})
    categories = [{"id": c, "name": f"class {c}", "isthing": int(c < 81)} for c in range(1, 134)]
    paths[0].write_text(json.dumps({"annotations": entries[0], "categories": categories}))
    paths[2].write_text(json.dumps({"annotations": entries[1]}))
    return paths


def _cells(draw: np.random.Generator, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which centre is the nearest to each pixel [h, w], over a wavy distance."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = draw.uniform(0, 6, 2)
    y, x = y + 0.02 * np.sin(40 * x + phase[0]), x + 0.02 * np.sin(40 * y + phase[1])
    return ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1)


def _save_segments(
    path: Path, cells: np.ndarray, ids: np.ndarray, classes: np.ndarray, void: bool
) -> list[dict[str, Any]]:
    """Write the map of ids; the truth leaves its first segment out as void, and calls its second a crowd."""
    from datasets.panoptic_png import encode_png

    numbers = ids.copy()
    if void:
        numbers[0] = 0
    path.write_bytes(encode_png(numbers[cells]))
    return [
        {
            "id": int(ids[place]),
            "category_id": int(classes[place]),
            "area": int((cells == place).sum()),
            "iscrowd": int(void and place == 1),
        }
        for place in range(int(void), len(ids))
        if (cells == place).any()
    ]
