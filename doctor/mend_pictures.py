"""What `--fix` does about pictures, and about panoptic segments and PNGs."""

from __future__ import annotations

import math

import numpy as np

from doctor.correction import Action, Correction, drop, each
from doctor.masks import is_polygons
from doctor.panoptic import map_of
from doctor.report import Group


def _drop_images(correction: Correction, group: Group) -> str:
    correction.drop_images(group.rows, group.kind.title)
    return "dropped the image and what belongs to it"


def _drop_from_train(correction: Correction, group: Group) -> str:
    return _drop_images(correction, group) if correction.may_drop else ""


def _drop_images_of(correction: Correction, group: Group) -> str:
    correction.drop("annotations", group.rows, group.kind.title)
    correction.drop_images(correction.raw.image_rows[np.asarray(group.rows)], group.kind.title)
    return "dropped the image and what belongs to it"


def _mend_missing(correction: Correction, group: Group) -> str:
    for row, meant in group.rows:
        if meant:
            correction.raw.images[row]["file_name"] = meant
        else:
            correction.drop_images([row], group.kind.title)
    return "took the file of nearly that name, or dropped the image and what belongs to it"


def _take_size(correction: Correction, group: Group) -> str:
    raw, mended = correction.raw, False
    for row in group.rows:
        path = correction.picture(row)
        picture = correction.files.pictures.get(path) if correction.files and path else None
        if picture is None or picture.size is None:
            continue
        stated, record = raw.sizes[row], raw.images[row]
        high = (raw.boxes[0][:, :2] + raw.boxes[0][:, 2:])[raw.image_rows == row]
        size = picture.fitting(high[np.isfinite(high).all(axis=1)])[0]
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


def _swap_sides(record: dict) -> None:
    record["width"], record["height"] = record["height"], record["width"]


# ---- panoptic


def _drop_segments(correction: Correction, group: Group) -> str:
    for annotation, place in group.rows:
        if place < 0:  # there is no list of segments
            correction.drop_images([correction.raw.image_rows[annotation]], group.kind.title)
        else:
            correction.dropped_segments[annotation, place] = group.kind.title
    return "dropped the segment, or the image where it has no list of them"


def _paint_void(correction: Correction, group: Group) -> str:
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


ACTIONS: dict[str, Action] = {
    "file_name_missing": _drop_images,
    "image_missing": _mend_missing,
    "image_unreadable": _drop_images,
    "image_too_large": _drop_images,
    "image_truncated": _drop_images,
    "image_size": _take_size,
    "image_size_missing": _take_size,
    "exif_other_frame": each("images", _swap_sides, "stated the other frame: swapped width and height"),
    "image_in_both_splits": _drop_from_train,
    "isthing_missing": each("categories", lambda record: record.update(isthing=1), "called things"),
    "segments_malformed": _drop_segments,
    "segment_id": _drop_segments,
    "image_without_segments": drop("images"),
    "png_unreadable": _drop_images_of,
    "png_size": _drop_images_of,
    "png_not_in_json": _paint_void,
    "json_not_in_png": _drop_segments,
}
"""Kind of fault -> its correction."""
