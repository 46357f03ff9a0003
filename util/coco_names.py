"""COCO's own categories as data: ids 1 to 90 with ten gaps."""

from __future__ import annotations

from collections.abc import Mapping

_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# fmt: off
_THINGS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

COCO_THINGS: dict[int, str] = dict(zip((i for i in range(1, 91) if i not in _GAPS), _THINGS, strict=True))
"""Category id -> name of the 80 things."""

COCO_NUM_CLASSES = 91
"""Highest id + 1."""


def are_coco_categories(categories: Mapping[int, str]) -> bool:
    """Whether these categories (id -> name) are COCO's own, all of them or some."""
    return bool(categories) and all(COCO_THINGS.get(i) == name for i, name in categories.items())
