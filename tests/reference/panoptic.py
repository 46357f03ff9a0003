"""The panoptic post-processor on hand-made queries."""

import io

import numpy as np
import torch
from PIL import Image

from tests.reference.compare import Values
from tests.reference.streams import float_tensor, stream

QUERIES, HEIGHT, WIDTH = 14, 40, 52  # the masks' cells are 4 pixels wide
NO_OBJECT = 250
CATEGORIES = [1, 3, 17, 92, 93, 100, 100, 93, 3, 1, 184, 200]  # with duplicates of things and of stuff
KINDS = ("plain", "tiny", "small", "empty")


def _overlapping(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits [Q, 251], some of them no object, and discs [Q, h, w] of many sizes."""
    logits = random.normal(0, 1, (QUERIES, NO_OBJECT + 1))
    for row, category in zip(logits, random.choice(CATEGORIES, QUERIES), strict=True):
        is_object = random.random() > 0.15
        row[category if is_object else NO_OBJECT] += random.uniform(6, 14)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.empty((QUERIES, HEIGHT, WIDTH))
    for mask in masks:
        centre_row, centre_column = random.uniform(0, HEIGHT), random.uniform(0, WIDTH)
        spread = random.uniform(0.5, 90)
        mask[:] = 8 - ((rows - centre_row) ** 2 + (columns - centre_column) ** 2) / spread
    return logits, masks


def _peaks(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Stuff everywhere, and over it things that peak in one cell: segments of 0 to about 60 pixels."""
    masks = np.broadcast_to(-random.uniform(0.2, 3, (QUERIES, 1, 1)), (QUERIES, HEIGHT, WIDTH)).copy()
    masks[0] = 0
    logits = np.zeros((QUERIES, NO_OBJECT + 1))
    logits[0, 93] = 14
    for query in range(1, QUERIES):
        peak = random.uniform(0.1, 2.5)
        row, column = random.integers(2, HEIGHT - 2), random.integers(2, WIDTH - 2)
        masks[query, row, column] = peak
        logits[query] = random.normal(0, 1, NO_OBJECT + 1)
        logits[query, (1, 3, 17, 92)[query % 4]] += 14
    return logits, masks


def merge(kind: str, seed: int) -> Values:
    """The ids of the merged picture [height, width], and each segment's id, category, isthing and area."""
    from models.segmentation import PostProcessPanoptic

    random = stream(f"panoptic{kind}", seed)
    logits, masks = _overlapping(random)
    if kind == "empty":
        logits[:, NO_OBJECT] += 60
    elif kind == "tiny":
        masks[3:] -= 7.9
    elif kind == "small":
        logits, masks = _peaks(random)
    outputs = {
        "pred_logits": float_tensor(logits)[None],
        "pred_masks": float_tensor(masks)[None],
        "pred_boxes": torch.full((1, QUERIES, 4), 0.5),
    }
    is_thing = {category: category <= 90 for category in range(NO_OBJECT)}
    postprocess = PostProcessPanoptic(is_thing, threshold=0.85)
    processed_size = torch.tensor([[4 * HEIGHT, 4 * WIDTH]])
    (result,) = postprocess(outputs, processed_size, processed_size + torch.tensor([11, -9]))
    colours = np.array(Image.open(io.BytesIO(result["png_string"])))  # [height, width, 3]
    fields = ("id", "category_id", "isthing", "area")
    segments = [[int(segment[field]) for field in fields] for segment in result["segments_info"]]
    return {
        f"merge_{kind}/ids": colours.astype(np.int64) @ [1, 256, 65536],
        f"merge_{kind}/info": np.array(segments, dtype=np.int64).reshape(-1, len(fields)),
    }
