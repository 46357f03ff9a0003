"""Small pictures with red rectangles at known places, and how well what is loaded for training fits them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.coco import CocoDetection, find_coco_files

RED = (220, 20, 20)
SIZE = (120, 80)
_FLIPS = [None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
          Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90,
          Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270]  # fmt: skip
"""Orientation -> what makes the stored picture of the one that is shown."""


def box_of(number: int) -> list[int]:
    """The box of a picture's rectangle: x, y, width, height."""
    return [10 + 7 * number % 40, 8 + 5 * number % 20, 30, 20]


def save_picture(path: Path, number: int, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    """A picture that is shown with its rectangle at box_of(number), whatever way up it is stored."""
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[:] = np.array([40, 120, 60]) + np.random.default_rng(number).integers(0, 20, (*size[::-1], 1))
    x, y, w, h = box_of(number)
    pixels[y : y + h, x : x + w] = RED
    image, flip = Image.fromarray(pixels), _FLIPS[orientation]
    path.parent.mkdir(parents=True, exist_ok=True)
    if flip is None:
        image.save(path)
        return
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(flip).save(path, exif=exif)


SPECIAL = {
    "16 bits": ".png", "32 bits": ".tif", "floats": ".tif", "grey and alpha": ".png", "palette": ".png",
    "CMYK": ".jpg", "animated": ".gif",
}  # fmt: skip
"""Kinds of pictures that differ from ordinary ones of 8 bits -> the ending of their files."""


def save_special(pixels: np.ndarray, path: Path, kind: str) -> Path:
    """A picture [h, w, 3] as one of the kinds, under the name that has its ending."""
    path, grey, image = path.with_suffix(SPECIAL[kind]), pixels[..., 0], Image.fromarray(pixels)
    if kind == "16 bits":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "32 bits":
        Image.fromarray(grey.astype(np.int32) * 257).save(path)
    elif kind == "floats":
        Image.fromarray((grey / 255).astype(np.float32)).save(path)
    elif kind == "grey and alpha":
        Image.fromarray(np.dstack([grey, 255 * (grey > 100)]).astype(np.uint8), "LA").save(path)
    elif kind == "palette":
        image.quantize(16).save(path, transparency=3)
    elif kind == "CMYK":
        image.convert("CMYK").save(path)
    else:
        image.save(path, save_all=True, append_images=[Image.fromarray(255 - pixels)])
    return path


def coco_of(count: int, first: int = 0, name: Callable[[int], str] = "{}.png".format) -> dict[str, Any]:
    """A COCO file of pictures `first` to `first + count - 1`, each with its box; image ids are number + 1."""
    numbers = range(first, first + count)
    images = [{"id": n + 1, "file_name": name(n), "width": SIZE[0], "height": SIZE[1]} for n in numbers]
    objects = [
        {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": box_of(n), "area": 600, "iscrowd": 0,
         "segmentation": []} for n in numbers
    ]  # fmt: skip
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in a folder that may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    """Train of 10 pictures and val of 5 in COCO's layout, their files changed."""
    for split, count, first in (("train", 10, 0), ("val", 5, 10)):
        for number in range(first, first + count):
            save_picture(root / f"{split}2017" / f"{number}.png", number)
        content = coco_of(count, first)
        change(content)
        write_json(root / "annotations" / f"instances_{split}2017.json", content)
    return root


def landed(root: Path, splits: tuple[str, ...] = ("train", "val")) -> tuple[float, int]:
    """(the least share of a loaded box that is red, or of a picture's red that is boxed; objects loaded)."""
    worst, count = 1.0, 0
    for split in splits:
        dataset = CocoDetection(*find_coco_files(root, split), None, False)
        for image, target in (dataset[place] for place in range(len(dataset))):
            pixels = np.asarray(image).astype(int)
            red = (pixels[..., 0] > pixels[..., 1] + 80) & (pixels[..., 0] > 120)
            boxed = np.zeros(red.shape, bool)
            for left, top, right, bottom in target["boxes"].round().int().tolist():
                boxed[top:bottom, left:right] = True
                worst = min(worst, float(red[top:bottom, left:right].mean()))
            worst = min(worst, float((red & boxed).sum() / max(red.sum(), 1)))
            count += len(target["boxes"])
    return worst, count


def hashes(root: Path) -> dict[str, str]:
    """Every file below a folder -> its digest."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}
