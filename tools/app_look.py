"""A picture that somebody gives to the page of tools/app.py: checked, read, and shown to the model once.

Everything that is asked of it later is answered from what the model said then; see tools/app_results.py.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datasets.transforms import resize
from inference.attention_maps import Attention, listening
from inference.pictures import View, prepare, read_picture
from inference.predicting import naming_large_pictures
from inference.trained import TrainedModel
from models.selection import Outputs, confident_queries
from util.errors import UserError
from util.nested_tensor import ByteBatch

LEAST = 0.05  # the lowest threshold: below it nothing of the model's answer is kept
SHOWN_SIDE = 1600  # pictures are drawn at no more pixels a side, so that a slider can be followed


class Limits(NamedTuple):
    """How large a picture may be."""

    megabytes: float = 20  # of its file, in units of 2**20 bytes, as browsers count them
    megapixels: float = 40  # of all its pixels; what a decoder needs of memory depends on them


@dataclass(frozen=True, eq=False)
class Look:
    """A picture, and all that the model said of it."""

    name: str  # of its file, without a folder
    size: tuple[int, int]  # height and width of the picture, upright
    shown: Tensor  # uint8 [3, H, W], the picture or a smaller copy: boxes and clicks are in its pixels
    image: Tensor  # uint8 [3, h, w]
    trained: TrainedModel
    outputs: Outputs  # what it said: masks of whatever LEAST leaves
    heard: Attention  # its attention meanwhile
    milliseconds: Mapping[str, float]  # how long reading, preprocessing and the model took


def refuse_large(path: str | os.PathLike, name: str, limits: Limits) -> None:
    """Stop before a picture is decoded whose file or pixels are too many; only its header is read.

    Raises:
        UserError: it is too large.
    """
    size = os.path.getsize(path) / 2**20
    if size > limits.megabytes:
        raise UserError(f"{name}: {size:.3g} MB, and no more than {limits.megabytes:g} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as header:
                width, height = header.size
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: far more than {limits.megapixels:g} megapixels") from error
    except Exception:
        return  # read_picture says better what is wrong with it
    if width * height > 1e6 * limits.megapixels:
        raise UserError(
            f"{name}: {width} x {height} are {width * height / 1e6:.3g} megapixels, and no more than "
            f"{limits.megapixels:g} are taken"
        )


def look_at(trained: TrainedModel, path: str | os.PathLike, name: str, limits: Limits) -> Look:
    """Read a picture and ask the model.

    Raises:
        UserError: no picture, too large a one, or one that the model cannot see.
    """
    refuse_large(path, name, limits)
    started = time.perf_counter()
    try:
        picture = read_picture(path, View(white_level=trained.args.white_level))
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error
    was_read = time.perf_counter()
    image = prepare(picture, trained.args.eval_scale, trained.args.max_size)
    batch = ByteBatch([image]).to(trained.device)
    _wait(trained.device)
    prepared = time.perf_counter()
    with listening(trained.model) as heard:
        outputs = _ask(trained, batch, name)
    _wait(trained.device)
    done = time.perf_counter()
    height, width = picture.shape[1:]
    shown = picture
    if max(height, width) > SHOWN_SIDE:
        scale = SHOWN_SIDE / max(height, width)
        shown = resize(picture, None, (max(1, round(scale * width)), max(1, round(scale * height))))[0]
    return Look(
        name,
        (height, width),
        shown,
        image,
        trained,
        outputs,
        heard,
        {
            "read": 1e3 * (was_read - started),
            "preprocess": 1e3 * (prepared - was_read),
            "model": 1e3 * (done - prepared),
        },
    )


def warm_up(trained: TrainedModel) -> None:
    """Call the model once, so that the first picture's time is no longer than that of later ones."""
    scale = trained.args.eval_scale
    image = prepare(torch.zeros(3, scale, scale, dtype=torch.uint8), scale, trained.args.max_size)
    _ask(trained, ByteBatch([image]).to(trained.device), trained.source)


@torch.no_grad()
def _ask(trained: TrainedModel, batch: Any, name: str) -> Outputs:
    """The model's outputs, with the masks of whatever can be shown later."""
    advice = "start the page with a lower --max_size"
    with naming_large_pictures(trained, name, advice, advice):
        if trained.args.masks:
            return trained.model(batch, select=lambda outputs: confident_queries(outputs, LEAST))
        return trained.model(batch)


def _wait(device: torch.device) -> None:
    """Let a device finish what it was given, so that a clock shows how long that took."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def file_name(text: str | None) -> str:
    """The name of an uploaded file without folders, whatever system it comes from."""
    return PurePath((text or "").replace("\\", "/")).name or "picture"
