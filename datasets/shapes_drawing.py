"""Pictures of circles, squares and triangles before a landscape, with what describes them in COCO files.

One to four shapes stand in a picture; position, size, rotation and colour are random and tell nothing about
the class, and mirroring a picture gives another one that is just as likely. A shape lies wholly inside the
picture, and later ones may cover up to `MAX_HIDDEN` of an earlier one. Polygon, bbox and area describe what
remains visible of a shape, and so does its segment in the panoptic PNG: a pixel belongs to the topmost shape
over its centre. Every picture follows from (seed, split, index) and the picture size alone.
"""

from __future__ import annotations

import colorsys
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

THINGS = {1: "circle", 2: "square", 3: "triangle"}
STUFF = {92: "sky", 93: "grass", 94: "sand"}  # above 90: the published rule for stuff ids
DEFAULT_SIZE = 96

MAX_OBJECTS = 4
MAX_HIDDEN = 0.3  # share of a shape's area that others may cover
MAX_PICTURES = 1_000_000
LONGER_ONE_IN = 5  # pictures, where sizes vary
FIRST_IMAGE_ID = {"val": 1, "train": MAX_PICTURES + 1}  # no id occurs in both splits

# The colours of the categories in panoptic PNGs; those of things leave room for one shade an object.
COLOURS = {1: (220, 60, 80), 2: (70, 110, 220), 3: (230, 170, 60)}
COLOURS |= {92: (150, 200, 240), 93: (90, 160, 70), 94: (220, 205, 160)}
_SHADE = 12  # grey levels between the segment colours of two objects
_LANDSCAPES = ((92, 93), (92, 94), (93, 94), (94, 93), (92, 93, 94), (92, 94, 93))  # from top to bottom
_CORNERS = {1: 40, 2: 4, 3: 3}  # of the annotated polygon; a multiple of 4 makes a circle's box exact


class Shape(NamedTuple):
    """One thing as it was placed: lengths in pixels, angle in radians, colour in [0, 255]."""

    category: int
    centre: np.ndarray  # [2]: x, y
    radius: float  # of the circle through its corners
    angle: float
    colour: np.ndarray  # [3]

    def outline(self) -> np.ndarray:
        """Corners of the whole shape, [N, 2] as x, y, all shapes turning the same way."""
        corners = _CORNERS[self.category]
        angles = self.angle + np.arange(corners) * (2 * np.pi / corners)
        return self.centre + self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance of points to the edge in pixels, positive inside the shape; x and y broadcast."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        if self.category == 1:
            return self.radius - np.hypot(dx, dy)
        corners = _CORNERS[self.category]
        normals = self.angle + (np.arange(corners) + 0.5) * (2 * np.pi / corners)
        reach = [dx * np.cos(normal) + dy * np.sin(normal) for normal in normals]
        return self.radius * np.cos(np.pi / corners) - np.maximum.reduce(reach)


class Picture(NamedTuple):
    """A drawn picture of h × w pixels with the rows that describe it in the JSON files."""

    image: np.ndarray  # uint8 [h, w, 3]
    segment_ids: np.ndarray  # int64 [h, w]: ids in `segments`
    annotations: list[dict]  # of the things, for the instances file
    segments: list[dict]  # `segments_info` of the panoptic file: things, then stuff


def _polygon_area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def _corners_between(start: float, stop: float, corners: int) -> np.ndarray:
    """Indices of the corners met on the way along a polygon; position 2.5 is half-way from corner 2 to 3."""
    stop = stop if stop >= start else stop + corners
    return np.arange(int(start) + 1, int(stop) + 1) % corners


def cut_polygon(polygon: np.ndarray, cutter: np.ndarray) -> np.ndarray | None:
    """What remains of a polygon when another one covers a part of its rim.

    Args:
        polygon: corners [N, 2] of a simple polygon with positive area (`sum(x dy − y dx) > 0`).
        cutter: corners [M, 2] of the covering one, turning the same way.

    Returns:
        The remaining polygon [K, 2]; `polygon` itself where the rims do not meet (the caller knows whether
        one lies inside the other); None where more than one piece may remain.
    """
    edges = (np.roll(polygon, -1, axis=0) - polygon)[:, None]  # [N, 1, 2]
    cuts = (np.roll(cutter, -1, axis=0) - cutter)[None]  # [1, M, 2]
    gap = cutter[None] - polygon[:, None]  # [N, M, 2]
    cross = edges[..., 0] * cuts[..., 1] - edges[..., 1] * cuts[..., 0]  # [N, M]
    safe = np.where(cross == 0, np.inf, cross)  # parallel edges are taken not to meet
    along = (gap[..., 0] * cuts[..., 1] - gap[..., 1] * cuts[..., 0]) / safe
    across = (gap[..., 0] * edges[..., 1] - gap[..., 1] * edges[..., 0]) / safe
    meets = (cross != 0) & (along >= 0) & (along < 1) & (across >= 0) & (across < 1)
    rows, columns = np.nonzero(meets)
    if len(rows) == 0:
        return polygon
    if len(rows) != 2 or (cross[rows, columns] < 0).sum() != 1:
        return None
    # The rim of `polygon` dives under the cutter at one crossing and comes out at the other: what remains
    # is the rim from the way out to the way in, then the cutter's rim backwards.
    into, out = (0, 1) if cross[rows[0], columns[0]] < 0 else (1, 0)
    at = rows + along[rows, columns]
    at_cutter = columns + across[rows, columns]
    points = polygon[rows] + along[rows, columns][:, None] * edges[rows, 0]  # [2, 2]
    rim = polygon[_corners_between(at[out], at[into], len(polygon))]
    inner = cutter[_corners_between(at_cutter[out], at_cutter[into], len(cutter))][::-1]
    return np.concatenate([points[[out]], rim, points[[into]], inner])


def _cover(shape: Shape, polygon: np.ndarray, new: Shape) -> np.ndarray | None:
    """What `new` leaves visible of a shape that showed as `polygon`; None if that is too little."""
    outline = new.outline()
    if np.hypot(*(shape.centre - new.centre)) > shape.radius + new.radius:
        return polygon
    remaining = cut_polygon(polygon, outline)
    if remaining is None or _polygon_area(remaining) < (1 - MAX_HIDDEN) * _polygon_area(shape.outline()):
        return None
    if remaining is polygon and (shape.distance(*outline[0]) > 0 or new.distance(*polygon[0]) > 0):
        return None  # one inside the other
    return remaining


def _random_colour(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
    """A colour [3] that stands out from those in the picture: the first far from all, else the farthest."""
    tries = []
    for hue, saturation, value in rng.uniform((0, 0.55, 0.4), (1, 1, 1), size=(12, 3)):
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        tries.append((min(np.hypot.reduce(colour - other) for other in taken), colour))
        if tries[-1][0] > 105:
            break
    return max(tries, key=lambda item: item[0])[1]


def place_shapes(
    rng: np.random.Generator, height: int, width: int, backdrop: list[np.ndarray]
) -> tuple[list[Shape], list[np.ndarray]]:
    """Place one to four shapes, back to front, and give them with the polygons [N, 2] of what is visible.

    Shapes measure from a sixth to half of the picture's shorter side. One that finds no place is left out.
    `backdrop` lists the colours [3] from which theirs must stand out.
    """
    side = min(height, width)
    shapes: list[Shape] = []
    visible: list[np.ndarray] = []
    for _ in range(rng.integers(1, MAX_OBJECTS, endpoint=True)):
        category = int(rng.integers(1, len(THINGS), endpoint=True))
        colour = _random_colour(rng, [*backdrop, *(shape.colour for shape in shapes)])
        for _ in range(20):
            # Corners reach farther than a circle's rim at the same apparent size.
            radius = rng.uniform(0.095, 0.25) * side * (1.0, 1.05, 1.1)[category - 1]
            angle = 0.0 if category == 1 else rng.uniform(0, 2 * np.pi)
            centre = rng.uniform(radius + 1, np.array((width, height)) - radius - 1)
            new = Shape(category, centre, radius, angle, colour)
            covered = [_cover(shape, polygon, new) for shape, polygon in zip(shapes, visible, strict=True)]
            remaining = [polygon for polygon in covered if polygon is not None]
            if len(remaining) == len(shapes):
                shapes, visible = [*shapes, new], [*remaining, new.outline()]
                break
    return shapes, visible


def _field(rng: np.random.Generator, height: int, width: int, cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise [h, w] of standard deviation about 1, in blobs of `cell` (rows, columns) pixels."""
    rows, columns = (max(2, round(n / c)) for n, c in zip((height, width), cell, strict=True))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * 1.3


def _texture(rng: np.random.Generator, category: int, height: int, width: int) -> np.ndarray:
    """One stuff class over a whole picture, float32 [h, w, 3] in [0, 255]."""
    rgb = partial(np.array, dtype=np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    tint = rng.uniform(-10, 10, size=3).astype(np.float32)
    if STUFF[category] == "sky":
        clouds = np.clip(_field(rng, height, width, (height / 7, width / 4)) - 0.5, 0, 1)[..., None]
        sky = rgb((104, 164, 226)) + tint + down * rgb((90, 62, 20))
        return sky + clouds * (0.75 * (246 - sky))
    if STUFF[category] == "grass":
        blades = _field(rng, height, width, (5, 1.6)) + _field(rng, height, width, (20, 24))
        return rgb((96, 148, 66)) + tint - 24 * down + blades[..., None] * rgb((8, 11, 6))
    ripples = _field(rng, height, width, (2.5, 12)) + _field(rng, height, width, (24, 24))
    return rgb((222, 200, 152)) + tint - 12 * down + ripples[..., None] * rgb((6, 6, 7))


def draw_landscape(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two or three stuff classes in uneven layers.

    Returns:
        the picture, float32 [h, w, 3] in [0, 255], and the category id of each pixel, int64 [h, w].
    """
    layers = _LANDSCAPES[rng.integers(len(_LANDSCAPES))]
    image = _texture(rng, layers[0], height, width)
    stuff = np.full((height, width), layers[0])
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height)[:, None] + 0.5) / height
    ranges = ((0.3, 0.7),) if len(layers) == 2 else ((0.2, 0.42), (0.58, 0.8))
    for category, (low, high) in zip(layers[1:], ranges, strict=True):
        slope, swell, waves, phase = rng.uniform((-0.15, 0, 0.5, 0), (0.15, 0.05, 2, 1))
        horizon = rng.uniform(low, high) + slope * (x - 0.5) + swell * np.sin(2 * np.pi * (waves * x + phase))
        depth = y - horizon  # [h, w], in picture heights
        share = np.clip(depth * height + 0.5, 0, 1).astype(np.float32)[..., None]
        image = image + share * (_texture(rng, category, height, width) - image)
        stuff = np.where(depth > 0, category, stuff)
    return image, stuff


def _paint(image: np.ndarray, labels: np.ndarray, shape: Shape, label: int, light: float) -> None:
    """Draw a shape onto the canvas, in place: its looks in `image` [h, w, 3], `label` in `labels` [h, w]."""
    low = np.maximum(np.floor(shape.centre - shape.radius - 1), 0).astype(int)
    high = np.ceil(shape.centre + shape.radius + 1).astype(int)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    rows, columns = image[window].shape[:2]
    x, y = np.arange(columns) + (low[0] + 0.5), np.arange(rows)[:, None] + (low[1] + 0.5)
    inside = shape.distance(x, y)  # [rows, columns]
    lit = (x - shape.centre[0]) * np.cos(light) + (y - shape.centre[1]) * np.sin(light)
    shade = 1 + 0.16 * lit / shape.radius - 0.3 * np.clip(2 - inside, 0, 1)  # a darker rim
    share = np.clip(inside + 0.5, 0, 1)[..., None]
    image[window] += share * (np.clip(shade[..., None] * shape.colour, 0, 255) - image[window])
    labels[window][inside > 0] = label


def _segments(labels: np.ndarray, categories: dict[int, int]) -> tuple[np.ndarray, list[dict]]:
    """Panoptic ids [h, w] and the rows that describe them; `categories` maps labels to category ids."""
    ids = np.zeros(labels.shape, dtype=np.int64)
    rows = []
    for label, category in categories.items():
        mask = labels == label
        if not mask.any():  # stuff that the shapes cover entirely
            continue
        shade = _SHADE * max(-1 - label, 0)
        red, green, blue = (channel - shade for channel in COLOURS[category])
        ids[mask] = segment_id = red + 256 * green + 65536 * blue
        columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        left, top = int(columns[0]), int(lines[0])
        bbox = [left, top, int(columns[-1]) + 1 - left, int(lines[-1]) + 1 - top]
        area = int(np.count_nonzero(mask))
        rows.append({"id": segment_id, "category_id": category, "area": area, "bbox": bbox, "iscrowd": 0})
    return ids, rows


def draw_picture(
    seed: int, split: str, index: int, size: int = DEFAULT_SIZE, vary_size: bool = False
) -> Picture:
    """Draw picture `index` (from 0) of a split ("train" or "val").

    `size` is the side in pixels; with `vary_size` that of the shorter one, and in one picture of five the
    longer one, upright or across, is 7/6 of it. So few, that batches without padding occur: boxes of a model
    that has seen none are off by some pixels in a picture alone. Sides of 96 and 112 pixels hold whole cells
    of 16, the backbone's, so that the mask of a padded picture leaves out exactly the cells of its padding.
    Annotation ids are ten times the image id plus the object's number, so that none occurs twice.
    """
    rng = np.random.default_rng((seed, FIRST_IMAGE_ID[split], index))
    height = width = size
    if vary_size:
        longer = size + (size // 6 if rng.integers(LONGER_ONE_IN) == 0 else 0)
        height, width = (longer, size) if rng.integers(2) else (size, longer)
    image, labels = draw_landscape(rng, height, width)
    stuff = [category for category in STUFF if (labels == category).any()]
    shapes, visible = place_shapes(rng, height, width, [image[labels == c].mean(axis=0) for c in stuff])
    light = rng.uniform(0, 2 * np.pi)
    for number, shape in enumerate(shapes):
        _paint(image, labels, shape, -1 - number, light)  # negative labels: objects
    image = image + 4 * rng.standard_normal((height, width, 1), dtype=np.float32)

    categories = {-1 - number: shape.category for number, shape in enumerate(shapes)}
    segment_ids, segments = _segments(labels, categories | {category: category for category in stuff})
    image_id = FIRST_IMAGE_ID[split] + index
    annotations = []
    for number, (shape, polygon) in enumerate(zip(shapes, visible, strict=True)):
        polygon = polygon.round(2)  # what the file holds is what bbox and area are computed from
        corner = polygon.min(axis=0)
        bbox = [round(float(value), 2) for value in (*corner, *(polygon.max(axis=0) - corner))]
        row: dict = {"id": 10 * image_id + number, "image_id": image_id, "category_id": shape.category}
        row |= {"iscrowd": 0, "area": round(_polygon_area(polygon), 2), "bbox": bbox}
        annotations.append({**row, "segmentation": [polygon.ravel().tolist()]})
    return Picture(image.clip(0, 255).round().astype(np.uint8), segment_ids, annotations, segments)
