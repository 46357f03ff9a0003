"""The pictures and the figures of classes for TensorBoard; RunRecords writes the curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from inference.visualize import draw_detections, side_by_side, to_pil
from report.pictures import EmbeddedPicture
from report.sections import Shown
from report.source import Region

PAIRS_IN_A_ROW = 2
CELL = 300  # pixels
MOST_FOUND, MOST_TRUE = 20, 60  # regions in a picture: placing labels takes long where there are many
QUALITY = 85  # of the sheet's JPEG
MOST_CLASSES = 100  # with curves of their own


def add_classes(
    board: Any, epoch: int, figures: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[int, str]
) -> None:
    """AP and PQ of each class, as `classes_bbox_AP/name`.

    Args:
        figures: see source.ReportSource.class_figures.
    """
    keys = {"bbox": "AP", "segm": "AP", "panoptic": "pq"}
    for kind, rows in figures.items():
        for row in rows[:MOST_CLASSES]:
            value = row[keys[kind]]
            if value is not None:
                name = names.get(row["id"], row["id"])
                board.add_scalar(f"classes_{kind}_{keys[kind]}/{name}", value, epoch)


def add_pictures(
    board: Any, epoch: int, shown: Sequence[Shown], names: Mapping[int, str], threshold: float
) -> None:
    """One sheet of pictures, ground truth beside what was found.

    Args:
        threshold: the score from which detections are drawn.
    """
    if not shown:
        return
    pairs: list[Tensor] = []
    for one in shown:
        found = [region for region in one.found if region.score is None or region.score >= threshold]
        halves = one.truth[:MOST_TRUE], found[:MOST_FOUND]
        pairs += [with_regions(one.picture, regions, names) for regions in halves]
    width = 2 * PAIRS_IN_A_ROW
    rows = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    sheet = side_by_side(rows, titles=["ground truth", "found"] * PAIRS_IN_A_ROW, cell=CELL)
    # What SummaryWriter.add_image does, which knows PNG alone: megabytes and a second for each sheet.
    from tensorboard.compat.proto.summary_pb2 import Summary

    buffer = io.BytesIO()
    to_pil(sheet).save(buffer, format="JPEG", quality=QUALITY)
    height, width = sheet.shape[1:]
    encoded = buffer.getvalue()
    content = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag="validation", image=content)]), epoch)


def with_regions(picture: EmbeddedPicture, regions: Sequence[Region], names: Mapping[int, str]) -> Tensor:
    """A picture of the page with regions drawn in, uint8 [3, h, w]."""
    content = base64.b64decode(picture.address.partition(",")[2])
    pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, h, w]
    height, width = image.shape[1:]
    boxes = torch.tensor([region.box for region in regions]).reshape(-1, 4)
    masks = [torch.from_numpy(region.mask)[None] for region in regions if region.mask is not None]
    masks = [resize(mask, (height, width), InterpolationMode.NEAREST_EXACT)[0] for mask in masks]
    scores = [region.score for region in regions if region.score is not None]
    return draw_detections(
        image,
        boxes * torch.tensor([width, height, width, height]),
        [region.label for region in regions],
        scores if len(scores) == len(regions) else None,
        names,
        torch.stack(masks) if masks and len(masks) == len(regions) else None,
    )
