"""What `--fix` does about pictures, and about panoptic segments and PNGs."""

from __future__ import annotations

import math

import numpy as np

from doctor.correction import Correction
from doctor.masks import is_polygons
from doctor.panoptic import map_of
from doctor.report import Group


def drop_images(correction: Correction, group: Group) -> str:
    """Images are left out, with their objects."""
    correction.drop_images(group.rows, group.kind.title)
    return "dropped the image and what belongs to it"


def drop_if_asked(correction: Correction, group: Group) -> str:
    """As drop_images, of what training survives: with --drop alone."""
    return drop_images(correction, group) if correction.may_drop else ""


def drop_images_of(correction: Correction, group: Group) -> str:
    """The images of annotations are left out."""
    correction.drop("annotations", group.rows, group.kind.title)
    correction.drop_images(correction.raw.image_rows[np.asarray(group.rows)], group.kind.title)
    return "dropped the image and what belongs to it"


def find_or_drop(correction: Correction, group: Group) -> str:
    """The picture of nearly that name; where there is none, the image is left out."""
    for row, meant in group.rows:
        if meant:
            correction.raw.images[row]["file_name"] = meant
        else:
            correction.drop_images([row], group.kind.title)
    return "took the file of nearly that name, or dropped the image and what belongs to it"


def take_size(correction: Correction, group: Group) -> str:
    """The size of the picture; objects are scaled where it has the shape that is stated."""
    raw, mended = correction.raw, False
    for row in group.rows:
        path = correction.picture(row)
        picture = correction.files.pictures.get(path) if correction.files and path else None
        if picture is None or picture.size is None:
            continue
        stated, record = raw.sizes[row], raw.images[row]
        size = picture.fitting(raw.edges_of(row))[0]
        for frame in picture.frames:
            ratio = np.array(frame) / stated  # NaN where the file does not say
            if np.isfinite(ratio).all() and abs(math.log(ratio[0] / ratio[1])) < 0.01:
                for annotation in np.flatnonzero(raw.image_rows == row):
                    _scale(raw.annotations[annotation], ratio)
                size = frame
                break
        record["width"], record["height"] = size
        mended = True
    return "" if not mended else "took the picture's size; objects were scaled where its shape is the same"


def _scale(record: dict, ratio: np.ndarray) -> None:
    """Scale the box, the polygons and the area of an object; other segmentations are emptied."""
    factors = np.tile(ratio, 2)
    record["bbox"] = (np.array(record["bbox"], dtype=np.float64) * factors).round(3).tolist()
    record["area"] = float(record["area"] * ratio[0] * ratio[1])
    masks = record.get("segmentation")
    if isinstance(masks, list) and is_polygons(masks):
        sides = ratio.tolist()
        record["segmentation"] = [
            [round(number * sides[place % 2], 3) for place, number in enumerate(polygon)] for polygon in masks
        ]
    elif masks:
        record["segmentation"] = []


# ---- panoptic


def drop_segments(correction: Correction, group: Group) -> str:
    """Segments are left out; so is an image that has no list of them."""
    for annotation, place in group.rows:
        if place < 0:  # there is no list of segments
            correction.drop_images([correction.raw.image_rows[annotation]], group.kind.title)
        else:
            correction.dropped_segments[annotation, place] = group.kind.title
    return "dropped the segment, or the image where it has no list of them"


def paint_void(correction: Correction, group: Group) -> str:
    """PNGs without the segments that the JSON lacks."""
    from datasets.panoptic_png import encode_png, read_ids

    assert correction.files is not None and correction.source.pngs is not None
    unknown: dict[int, list[int]] = {}
    for annotation, number in group.rows:
        if annotation not in correction.dropped["annotations"]:
            unknown.setdefault(annotation, []).append(number)
    for annotation, numbers in unknown.items():
        path = correction.source.pngs / correction.raw.annotations[annotation]["file_name"]
        ids = read_ids(path)
        ids = np.where(np.isin(ids, numbers), 0, ids)
        correction.files.painted[path] = encode_png(ids)
        correction.files.maps[path] = map_of(ids)
    return "painted 0, which is no segment"
