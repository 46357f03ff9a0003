"""What `--fix` does about pictures, and about panoptic segments and PNGs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from doctor.correction import Action, Correction, drop
from doctor.masks import is_polygons
from doctor.panoptic import read_map
from doctor.pictures import inspect
from doctor.report import Group


def _drop_images(correction: Correction, group: Group) -> str:
    correction.drop_images(group.rows)
    return "dropped the image and what belongs to it"


def _drop_images_of(correction: Correction, group: Group) -> str:
    correction.dropped["annotations"] |= set(map(int, group.rows))
    images = correction.raw.image_rows[np.asarray(group.rows)]
    correction.drop_images(images[images >= 0])
    return "dropped the image and what belongs to it"


def _mend_missing(correction: Correction, group: Group) -> str:
    for row, meant in group.rows:
        if meant:
            correction.raw.images[row]["file_name"] = meant
        else:
            correction.drop_images([row])
    return "took the file of nearly that name, or dropped the image and what belongs to it"


def _take_size(correction: Correction, group: Group) -> str:
    raw, mended = correction.raw, False
    for row in group.rows:
        size = _size(correction, row)
        if size is None:
            continue
        stated, record = raw.sizes[row], raw.images[row]
        ratio = np.array(size) / stated  # NaN where the file does not say
        if np.isfinite(ratio).all() and abs(math.log(ratio[0] / ratio[1])) < 0.01:
            for annotation in np.flatnonzero(raw.image_rows == row):
                _scale(raw.annotations[annotation], ratio)
        record["width"], record["height"] = size
        mended = True
    return "" if not mended else "took the picture's size; objects were scaled where its shape is the same"


def _size(correction: Correction, row: int) -> tuple[int, int] | None:
    if correction.files is None or correction.source.images is None:
        return None
    picture = correction.files.pictures.get(correction.path(row))
    return picture.size if picture else None


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


def _write_turned(correction: Correction, group: Group) -> str:
    from PIL import ImageOps

    _rewrite(correction, group, ImageOps.exif_transpose, quality=95)
    return "wrote the picture turned"


def _write_without_tag(correction: Correction, group: Group) -> str:
    _rewrite(correction, group, lambda image: image, quality="keep")
    return "wrote the picture without the tag"


def _rewrite(correction: Correction, group: Group, change, quality: int | str) -> None:
    """Write pictures to the new folder, changed and without EXIF data."""
    from PIL import Image

    assert correction.files is not None
    for row in group.rows:
        path = correction.path(row)
        target = correction.target.images / correction.raw.images[row]["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            options = {"quality": quality} if image.format == "JPEG" else {}
            change(image).save(target, format=image.format, exif=b"", **options)
        correction.files.pictures[path] = inspect(target)


# ---- panoptic


def _call_things(correction: Correction, group: Group) -> str:
    for row in group.rows:
        correction.raw.categories[row]["isthing"] = 1
    return "called things"


def _drop_segments(correction: Correction, group: Group) -> str:
    for annotation, place in group.rows:
        if place < 0:  # there is no list of segments
            correction.drop_images([correction.raw.image_rows[annotation]])
        else:
            correction.dropped_segments.add((annotation, place))
    return "dropped the segment, or the image where it has no list of them"


def _paint_void(correction: Correction, group: Group) -> str:
    from datasets.panoptic_png import encode_png, read_ids

    assert correction.files is not None and correction.source.pngs is not None
    unknown: dict[int, list[int]] = {}
    for annotation, number in group.rows:
        if annotation not in correction.dropped["annotations"]:
            unknown.setdefault(annotation, []).append(number)
    for annotation, numbers in unknown.items():
        name = Path(correction.raw.annotations[annotation]["file_name"])
        target = correction.target.pngs / name
        target.parent.mkdir(parents=True, exist_ok=True)
        original = correction.source.pngs / name
        ids = read_ids(target if target.exists() else original)
        target.write_bytes(encode_png(np.where(np.isin(ids, numbers), 0, ids)))
        correction.files.maps[original] = read_map(target)
    return "painted 0, which is no segment"


ACTIONS: dict[str, Action] = {
    "file_name_missing": _drop_images,
    "image_missing": _mend_missing,
    "image_unreadable": _drop_images,
    "image_truncated": _drop_images,
    "image_size": _take_size,
    "image_size_missing": _take_size,
    "exif_turned": _write_turned,
    "exif_ignored": _write_without_tag,
    "image_in_both_splits": _drop_images,
    "isthing_missing": _call_things,
    "segments_malformed": _drop_segments,
    "segment_id": _drop_segments,
    "image_without_segments": drop("images"),
    "png_unreadable": _drop_images_of,
    "png_size": _drop_images_of,
    "png_not_in_json": _paint_void,
    "json_not_in_png": _drop_segments,
}
"""Kind of fault -> its correction."""
