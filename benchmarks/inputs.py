"""What is measured on, in files: random, of COCO's sizes and numbers, and the same in every run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [category for category in range(1, 91) if category % 9]  # 80 ids with gaps, as COCO's


def write_coco(root: Path, images: int, size: tuple[int, int], pictures: int) -> None:
    """Both splits in COCO's layout: `images` entries that share `pictures` files of size (height, width)."""
    for split in ("train", "val"):
        write_pictures(root / f"{split}2017", pictures, size)
        write_instances(root / "annotations" / f"instances_{split}2017.json", images, size, pictures)


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of smooth colours with grain; each has about the size of a photograph's file."""
    draw = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (smooth + draw.normal(0, 12, (*size, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:012d}.jpg", quality=90)


def write_instances(
    path: Path, images: int, size: tuple[int, int], pictures: int, objects: float = 7.3
) -> None:
    """An annotation file; every object has a polygon of 8 to 39 corners.

    Written object by object: a file of COCO's size takes gigabytes as Python objects.
    """
    draw = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"height": size[0], "width": size[1]}
    listed = [{"id": i, "file_name": f"{i % pictures:012d}.jpg", **shape} for i in range(1, images + 1)]
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORIES]
    owners = np.repeat(np.arange(1, images + 1), 1 + draw.poisson(objects - 1, images))
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"images": {json.dumps(listed)}, "categories": {json.dumps(categories)}, ')
        file.write('"annotations": [')
        for number, owner in enumerate(owners.tolist(), start=1):
            radius = draw.uniform(0.05, 0.3, 2) * size[::-1]
            centre = draw.uniform(radius, size[::-1] - radius)
            angles = np.linspace(0, 2 * np.pi, draw.integers(8, 40), endpoint=False)
            corners = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).round(2)
            low, sides = corners.min(0), np.ptp(corners, axis=0).round(2)
            record = {
                "id": number,
                "image_id": owner,
                "category_id": CATEGORIES[number % len(CATEGORIES)],
                "bbox": [*low.tolist(), *sides.tolist()],
                "area": float(sides.prod()) * 0.7,
                "iscrowd": 0,
                "segmentation": [corners.ravel().tolist()],
            }
            file.write((", " if number > 1 else "") + json.dumps(record))
        file.write("]}")


def write_panoptic(root: Path, images: int, size: tuple[int, int]) -> None:
    """Truth and predictions, truth.json with truth/*.png and found.json with found/*.png.

    Both are a checkerboard of segments of random classes, which the predictions have moved by some pixels.
    """
    draw = np.random.default_rng(2)
    entries: dict[str, list[dict]] = {"truth": [], "found": []}
    for image in range(1, images + 1):
        ids, classes = draw.choice(1 << 24, 12, replace=False) + 1, draw.integers(1, 134, 12)
        board = np.kron(np.arange(12).reshape(3, 4), np.ones((size[0] // 3, size[1] // 4), np.int64))
        for side, moved in (("truth", 0), ("found", int(draw.integers(1, 20)))):
            cells = np.roll(board, moved, axis=(0, 1))
            colours = np.stack([ids[cells] >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
            name, area = f"{image:012d}.png", board.size // 12
            (root / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(root / side / name)
            segments = [
                {"id": int(number), "category_id": int(category), "area": area, "iscrowd": 0}
                for number, category in zip(ids, classes, strict=True)
            ]
            entries[side].append({"image_id": image, "file_name": name, "segments_info": segments})
    categories = [{"id": i, "name": f"class {i}", "isthing": int(i <= 90)} for i in range(1, 134)]
    for side, found in entries.items():
        listed = [{"id": entry["image_id"], "file_name": entry["file_name"]} for entry in found]
        content = {"images": listed, "annotations": found, "categories": categories}
        (root / f"{side}.json").write_text(json.dumps(content), encoding="utf-8")


def write_inputs(folder: Path, tiny: bool) -> None:
    """All that the jobs of benchmarks.compare read."""
    size, pictures, images = ((64, 96), 4, 10) if tiny else ((480, 640), 24, 2000)
    write_coco(folder, images, size, pictures)
    write_panoptic(folder / "panoptic", 3 if tiny else 48, (480, 640))
