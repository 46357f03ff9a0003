"""A small data set in COCO's layout, instances and panoptic, with what real files surprise with.

Each picture has four objects and a strip of stuff; among the boxes are one that leaves the picture on
the left, one as wide as the picture, one without width, and in every second picture a crowd.
The order of the draws belongs to the stored values.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.reference.streams import stream

SPLITS = {"train": 5, "val": 3}  # pictures in each
PICTURE_SIZES = [(122, 83), (149, 51), (78, 113), (101, 101), (97, 61)]  # width, height
THINGS = (1, 2, 17, 90)
STUFF = 100
STUFF_SEGMENT = 300  # the id of the strip of stuff in every panoptic PNG


class Box(NamedTuple):
    left: int
    top: int
    width: int
    height: int


def write_coco_folder(root: Path, seed: int) -> None:
    """Write annotations/, {train,val}2017/ and panoptic_{train,val}2017/ under `root`."""
    (root / "annotations").mkdir()
    things = [{"id": c, "name": f"c{c}", "supercategory": "s", "isthing": 1} for c in THINGS]
    stuff = {"id": STUFF, "name": "stuff", "supercategory": "s", "isthing": 0}
    for split, count in SPLITS.items():
        images, instances, panoptic = _write_split(root, split, count, seed)
        _write_json(root, f"instances_{split}2017", images, instances, things)
        _write_json(root, f"panoptic_{split}2017", images, panoptic, [*things, stuff])


def _write_json(root: Path, name: str, images: list, annotations: list, categories: list) -> None:
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))


def _write_split(root: Path, split: str, count: int, seed: int) -> tuple[list, list, list]:
    """Write the picture files of a split; return the entries for its JSON files."""
    picture_folder, segment_folder = root / f"{split}2017", root / f"panoptic_{split}2017"
    picture_folder.mkdir()
    segment_folder.mkdir()
    random = stream(f"coco{split}", seed)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for position in range(count):
        width, height = PICTURE_SIZES[position]
        image_id = 10 * position + (4 if split == "val" else 3)
        stem = f"{image_id:012d}"
        colours = Image.fromarray(random.integers(0, 255, (4, 5, 3)).astype(np.uint8))
        colours.resize((width, height), Image.Resampling.BICUBIC).save(
            picture_folder / f"{stem}.jpg", quality=95
        )
        objects = [_draw_object(random, width, height) for _ in range(4)]
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height})
        instances += _instances(objects, position, image_id, width, height, first_id=len(instances) + 1)
        ids, segments = _segments(objects, position, width, height)
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        Image.fromarray(channels.astype(np.uint8)).save(segment_folder / f"{stem}.png")
        panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
    return images, instances, panoptic


def _draw_object(random: np.random.Generator, width: int, height: int) -> tuple[Box, int]:
    """A box, which may leave the picture on the right and below, and its category."""
    ranges = ((0, width * 0.6), (0, height * 0.6), (8, width * 0.5), (8, height * 0.5))
    box = Box(*(int(random.uniform(low, high)) for low, high in ranges))
    return box, int(random.choice(THINGS))


def _instances(
    objects: list[tuple[Box, int]], position: int, image_id: int, width: int, height: int, first_id: int
) -> list[dict[str, Any]]:
    """The objects of one picture as COCO annotations, and one without width after them."""
    result = []
    for index, (box, category) in enumerate(objects):
        left, top, right, bottom = box.left, box.top, box.left + box.width, box.top + box.height
        notch = [left + box.width / 2, top + box.height * 0.8]
        segmentation: Any = [[left, top, right, top, right, bottom, *notch, left, bottom]]
        is_crowd = index == 3 and position % 2 == 0
        if is_crowd:  # columns 3 and 4 of the picture, run lengths down the columns
            segmentation = {"size": [height, width], "counts": [height * 3, height * 2, height * (width - 5)]}
        result.append(
            {
                "category_id": category,
                "bbox": [-4 if index == 1 else left, top, width if index == 2 else box.width, box.height],
                "area": float(box.width * box.height * 0.9),
                "iscrowd": int(is_crowd),
                "segmentation": segmentation,
            }
        )
    without_width = {"category_id": 1, "bbox": [5, 5, 0, 9], "area": 0.0, "iscrowd": 0}
    result.append({**without_width, "segmentation": [[5, 5, 5, 9, 5, 14]]})
    return [{"id": first_id + i, "image_id": image_id, **entry} for i, entry in enumerate(result)]


def _segments(
    objects: list[tuple[Box, int]], position: int, width: int, height: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids [height, width], later objects over earlier ones, and the segments that are seen."""
    ids = np.zeros((height, width), dtype=np.int64)
    strip = Box(0, 0, width, height // 3)
    segments = [(STUFF_SEGMENT, STUFF, strip)]
    segments += [(7 * (i + 1) + 256 * position, category, box) for i, (box, category) in enumerate(objects)]
    for segment_id, _, box in segments:
        ids[box.top : box.top + box.height, box.left : box.left + box.width] = segment_id
    visible = []
    for segment_id, category, box in segments:
        area = int((ids == segment_id).sum())
        if area:
            entry = {"id": segment_id, "category_id": category, "iscrowd": 0, "area": area}
            visible.append({**entry, "bbox": list(box)})
    return ids, visible
