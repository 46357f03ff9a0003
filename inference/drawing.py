"""Drawing what a trained model found, and where it looked meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from inference.attention_drawing import AttentionRow, attention_sheet, panel, with_point
from inference.attention_maps import Attention
from inference.predicting import Found
from inference.segment_drawing import draw_panoptic
from inference.visualize import draw_detections

MOST_ROWS = 10  # detections whose attention is drawn


def draw(picture: Tensor, found: Found, names: Mapping[int, str]) -> Tensor:
    """What was found, drawn: boxes, instance masks under them, or panoptic segments -> a new picture.

    Args:
        picture: uint8 [3, H, W], of the size for which `found` was asked.
        names: category id -> name.
    """
    if found.panoptic is not None:
        return draw_panoptic(picture, *found.panoptic, names)
    return draw_detections(picture, found.boxes, found.labels, found.scores, names, found.masks)


def draw_attention(
    picture: Tensor,
    found: Found,
    heard: Attention,
    place: int,
    names: Mapping[int, str],
    points: Sequence[tuple[float, float]] = (),
) -> Tensor:
    """Where the model looked: a row for each of the surest detections, or for each point.

    Args:
        picture: uint8 [3, H, W].
        found: what was found in it.
        heard: what inference.attention_maps.listening heard meanwhile.
        place: of the picture in its batch.
        names: category id -> name.
        points: (x, y) in pixels of the picture, whose self-attention in the encoder is drawn in place of
            the detections'.

    Raises:
        ValueError: there is nothing to draw, or a point lies outside.
    """
    small = panel(picture)
    size = small.shape[1:]
    x_scale, y_scale = size[1] / picture.shape[2], size[0] / picture.shape[1]
    if points:
        parts = [(x / picture.shape[2], y / picture.shape[1]) for x, y in points]
        maps = heard.encoder(place, parts)
        marked = [with_point(small, x * x_scale, y * y_scale) for x, y in points]
        captions = [f"the place {x:g}, {y:g} and where the encoder looks from there" for x, y in points]
    else:
        maps = heard.decoder(place, found.queries[:MOST_ROWS])
        boxes = found.boxes * found.boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
        rows = [slice(i, i + 1) for i in range(len(maps))]
        marked = [draw_detections(small, boxes[i], found.labels[i], found.scores[i], names) for i in rows]
        labels, scores = found.labels.tolist(), found.scores.tolist()
        captions = [f"{names.get(labels[i], labels[i])} {scores[i]:.2f}" for i in range(len(maps))]
    large = [heard.over_picture(place, one, size) for one in maps]
    return attention_sheet(small, list(map(AttentionRow, marked, large, captions)))
