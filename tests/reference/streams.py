"""Inputs and weights from fixed NumPy streams, each keyed by the name of what it fills.

The order and the distribution of the draws belong to the stored values: a change here changes them all.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

CELL = 8  # pixels; the side of an even square in a picture
EMBEDDINGS = ("query_embed", "row_embed", "col_embed")


def stream(key: str, seed: int) -> np.random.Generator:
    """A generator that depends on nothing but `key` and `seed`."""
    return np.random.default_rng([zlib.crc32(key.encode()), seed])


def float_tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _draw_state(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Values of one parameter or buffer: near what training gives, so that activations keep their size."""
    random = stream(name, seed)
    if name.endswith("running_var"):
        return random.uniform(0.6, 1.4, shape)
    if name.endswith("running_mean"):
        return random.normal(0, 0.1, shape)
    if len(shape) == 1:
        is_scale = name.endswith("weight")
        return 0.6 + random.normal(0, 0.1, shape) if is_scale else random.normal(0, 0.05, shape)
    if any(embedding in name for embedding in EMBEDDINGS):
        return random.normal(0, 1, shape)
    fan_in = math.prod(shape[1:])
    return random.normal(0, math.sqrt(1.6 / fan_in), shape)


def fill_state(model: nn.Module, seed: int) -> None:
    """Overwrite every floating-point parameter and buffer of `model`, in place."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(float_tensor(_draw_state(name, tuple(tensor.shape), seed)))


def picture(key: str, height: int, width: int, seed: int) -> Tensor:
    """A normalised image [3, height, width]: even squares under a little noise."""
    random = stream(f"image{key}", seed)
    cells = random.normal(0, 1, (3, height // CELL + 1, width // CELL + 1))
    squares = np.kron(cells, np.ones((1, CELL, CELL)))[:, :height, :width]
    return float_tensor(squares + 0.1 * random.normal(0, 1, squares.shape))


def _box_masks(centres: np.ndarray, sizes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Filled rectangles [N, height, width] of normalised boxes; the last row and column are inside."""
    masks = np.zeros((len(centres), height, width), dtype=bool)
    first = ((centres - sizes / 2) * (width, height)).astype(int)  # [N, 2], x and y
    last = ((centres + sizes / 2) * (width, height)).astype(int)
    for mask, (left, top), (right, bottom) in zip(masks, first, last, strict=True):
        mask[top : bottom + 1, left : right + 1] = True
    return masks


def target(
    key: str, count: int, height: int, width: int, seed: int, with_masks: bool = False
) -> dict[str, Tensor]:
    """The target of one image: `count` objects of the classes 1 to 90 that lie inside the image.

    labels [N], boxes [N, 4] (normalised centre, width, height), orig_size [2], size [2], image_id [1],
    and masks [N, height, width] (bool) on request.
    """
    random = stream(f"target{key}", seed)
    sizes = random.uniform(0.1, 0.5, (count, 2))
    centres = random.uniform(sizes / 2, 1 - sizes / 2)
    labels = random.integers(1, 91, count)
    result = {
        "labels": torch.from_numpy(labels),
        "boxes": float_tensor(np.hstack([centres, sizes])),
        "orig_size": torch.tensor([height, width]),
        "size": torch.tensor([height, width]),
        "image_id": torch.tensor([7]),
    }
    if with_masks:
        result["masks"] = torch.from_numpy(_box_masks(centres, sizes, height, width))
    return result
