"""What is shown of a picture that a model has seen: found again for every choice, without running it again.

look = look_at(trained, "photo.jpg", "photo.jpg", Limits())
found = find(look, Choice("boxes", 0.5))
index = hit(found, 120, 80)                   # what somebody clicked
sheet = draw_where(look, found, index)
files = written(look, Choice("boxes", 0.5))   # as predict.py --json writes them
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.drawing import draw_attention
from inference.pictures import Read
from inference.predicting import Found, read, summary
from inference.prediction_output import Output
from inference.visualize import enlargement
from models.segment_maps import PanopticMap
from tools.app_look import LEAST, Look
from util.errors import UserError


class Choice(NamedTuple):
    """What somebody wants to see of a picture."""

    kind: str  # boxes, masks or panoptic
    threshold: float  # probabilities up to this one are left out; not below LEAST
    classes: frozenset[int] = frozenset()  # category ids; none of them stands for all


def find(look: Look, choice: Choice, whole: bool = False) -> Found:
    """What is found in a picture, as predict.py finds it, of some classes.

    Args:
        whole: boxes and masks in pixels of the picture itself, not of the one that is shown.
    """
    height, width = look.size if whole else look.shown.shape[1:]
    threshold = max(choice.threshold, LEAST)
    image_size = look.image.shape[1:]
    (found,) = read(look.trained, look.outputs, [image_size], [(height, width)], threshold, choice.kind)
    return of_classes(found, choice.classes) if choice.classes else found


def of_classes(found: Found, classes: frozenset[int]) -> Found:
    """The detections and segments of some categories."""
    kept = torch.tensor([label in classes for label in found.labels.tolist()], dtype=torch.bool)
    masks = None if found.masks is None else found.masks[kept]
    panoptic = found.panoptic
    if panoptic is not None:
        segments = [segment for segment in panoptic.segments if segment["category_id"] in classes]
        inside = torch.isin(
            panoptic.ids, torch.tensor([segment["id"] for segment in segments], dtype=torch.int64)
        )
        # An id of no segment; where there are no segments at all, 0, as PanopticMap says.
        panoptic = PanopticMap(torch.where(inside, panoptic.ids, -1 if segments else 0), segments)
    parts = (found.scores[kept], found.labels[kept], found.boxes[kept], found.queries[kept])
    return Found(*parts, masks, panoptic)


def to_shown(look: Look, x: float, y: float) -> tuple[float, float]:
    """A pixel of the drawn picture, which is enlarged if it is small, as a point of the one that is shown."""
    factor = enlargement(*look.shown.shape[1:])
    height, width = look.shown.shape[1:]
    return min((x + 0.5) / factor, width - 0.5), min((y + 0.5) / factor, height - 0.5)


def hit(found: Found, x: float, y: float) -> int | None:
    """Which detection somebody means who points at (x, y): the smallest one there; None: nothing is there.

    With masks it is the mask that must be there, with panoptic segments a box of the segment's class.
    """
    x0, y0, x1, y1 = found.boxes.unbind(1)
    inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    area = (x1 - x0) * (y1 - y0)
    row, column = int(y), int(x)
    if found.masks is not None:
        inside, area = found.masks[:, row, column], found.masks.flatten(1).sum(1).float()
    if found.panoptic is not None:
        there = int(found.panoptic.ids[row, column])
        labels = {segment["category_id"] for segment in found.panoptic.segments if segment["id"] == there}
        inside = inside & torch.tensor([label in labels for label in found.labels.tolist()], dtype=torch.bool)
    if not inside.any():
        return None
    return int(torch.where(inside, area, torch.inf).argmin())


def draw_where(look: Look, found: Found, index: int | None, point: tuple[float, float] = (0, 0)) -> Tensor:
    """Where the model looked for one detection, or looks from a point: a sheet, uint8.

    Args:
        index: of the detection in `found`.
        point: (x, y) in pixels of the picture that is shown.

    Raises:
        UserError: a point, and the model has no encoder.
    """
    names = look.trained.names
    if index is None:
        if not look.trained.args.enc_layers:
            raise UserError("there is no detection here, and the model has no encoder to look from a place")
        return draw_attention(look.shown, found, look.heard, 0, names, [point])
    one = slice(index, index + 1)
    single = Found(found.scores[one], found.labels[one], found.boxes[one], found.queries[one])
    return draw_attention(look.shown, single, look.heard, 0, names)


def table(look: Look, found: Found) -> list[list[Any]]:
    """A row for each detection: its number from 1, class, probability, and x, y, width, height.

    The box is in pixels of the picture itself.
    """
    (height, width), shown = look.size, look.shown.shape[1:]
    scale = torch.tensor([width / shown[1], height / shown[0]]).repeat(2)
    boxes = found.boxes * scale
    rows = zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
    names = look.trained.names
    return [
        [i, names.get(label, str(label)), round(score, 3), *(round(v, 1) for v in (x0, y0, x1 - x0, y1 - y0))]
        for i, (label, score, (x0, y0, x1, y1)) in enumerate(rows, 1)
    ]


def in_words(look: Look, found: Found, postprocess: float) -> str:
    """What was found, and how long it took.

    Args:
        postprocess: milliseconds that `find` took.
    """
    (height, width), seen, shown = look.size, look.image.shape[1:], look.shown.shape[1:]
    times = {**look.milliseconds, "post-process": postprocess}
    smaller = f", drawn at {shown[1]} x {shown[0]}" if (height, width) != tuple(shown) else ""
    return (
        f"{summary(found, look.trained.names)}\n"
        f"{look.name}: {width} x {height} pixels, seen by the model at {seen[1]} x {seen[0]}{smaller}\n"
        f"{' · '.join(f'{name} {value:.1f} ms' for name, value in times.items())} ({look.trained.device})"
    )


def written(look: Look, choice: Choice) -> dict[str, bytes]:
    """The files that predict.py --json writes of what is shown, in pixels of the picture itself.

    Returns:
        By name `results.json`, or `panoptic.json` and the PNG of the segments' ids.
    """
    path = Path(look.name)
    with tempfile.TemporaryDirectory() as folder:
        flags = {"output_dir": folder, "json": True, "no_pictures": True, "attention": None}
        output = Output(argparse.Namespace(**flags, point=None, format="png"), [path])
        picture = Read(path, look.shown, look.image, "")
        names = look.trained.names
        records = output.write(picture, find(look, choice, whole=True), None, 0, names)
        output.finish([records], look.trained, choice.kind)
        return {file.name: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
