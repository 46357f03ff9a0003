"""COCO's own categories as data.

80 things with ids 1 to 90 and ten gaps, and the 53 stuff classes of its panoptic files with ids 92 to 200.
"""

from __future__ import annotations

import re
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
"""Highest id of a thing + 1."""

HIGHEST_THING = 90  # COCO's ids up to this one are things; those above are stuff

# fmt: off
COCO_STUFF: dict[int, str] = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain",
    112: "door-stuff", 118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house",
    130: "light", 133: "mirror-stuff", 138: "net", 141: "pillow", 144: "platform", 145: "playingfield",
    147: "railroad", 148: "river", 149: "road", 151: "roof", 154: "sand", 155: "sea", 156: "shelf",
    159: "snow", 161: "stairs", 166: "tent", 168: "towel", 171: "wall-brick", 175: "wall-stone",
    176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind", 181: "window-other",
    184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged",
    188: "cabinet-merged", 189: "table-merged", 190: "floor-other-merged", 191: "pavement-merged",
    192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged", 195: "paper-merged",
    196: "food-other-merged", 197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged",
    200: "rug-merged",
}
# fmt: on
"""Category id -> name of the 53 stuff classes."""

COCO_PANOPTIC: dict[int, str] = COCO_THINGS | COCO_STUFF
"""Category id -> name of the 133 classes of the panoptic files."""


def are_coco_categories(categories: Mapping[int, str]) -> bool:
    """Whether these categories (id -> name) are COCO's own, all of them or some."""
    return bool(categories) and all(COCO_THINGS.get(i) == name for i, name in categories.items())


def plain_name(name: object) -> str:
    """A class's name without what is often written in two ways: case, spaces, underscores, hyphens."""
    return re.sub(r"[\s_-]+", "", str(name)).casefold()


def default_num_classes(dataset_file: str) -> int:
    """What an open `--num_classes` means where no annotation file is read: highest category id + 1 of COCO.

    Panoptic's 250 is merely large enough for ids to 200.
    """
    return 250 if dataset_file == "coco_panoptic" else COCO_NUM_CLASSES


def coco_is_thing(num_classes: int) -> dict[int, bool]:
    """Which of the ids below num_classes COCO's rule takes for things."""
    return {i: i <= HIGHEST_THING for i in range(num_classes)}
