"""LabelMe: one JSON file a picture, beside it or in a folder near it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.images import find_picture, what_lies_there
from datasets.layouts import read_json
from doctor.columns import show
from doctor.formats.record import Picture, Reading, as_seen, header_of, of_box, of_polygon, pictures_without
from doctor.splits import as_listed, split_of_folders
from util.errors import UserError


def read(source: Path) -> Reading:
    """The pictures of a folder, or of one file; train.txt and the like or folders say the split.

    Raises:
        UserError: no files, one without its picture, a shape that has no area or no label.
    """
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    pictures = [_read_file(file, root) for file in files]
    return Reading(as_listed(root, pictures), lost=pictures_without("a JSON file", root, pictures))


def _read_file(file: Path, root: Path) -> Picture:
    content = read_json(file)
    shapes, name = content.get("shapes"), str(content.get("imagePath"))
    if not isinstance(shapes, list):
        raise UserError(f"{file}: a LabelMe file has a list of shapes, not {show(shapes)}")
    path = find_picture(file.parent, name)
    if path is None:
        raise UserError(f"{file}: no picture {name}: {what_lies_there(file.parent, name)}")
    objects = []
    for number, shape in enumerate(shapes):
        try:
            kind, label = shape.get("shape_type") or "polygon", str(shape["label"]).strip()
            points = np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
            if kind == "circle":  # its centre, and a point on it
                sides = np.full(2, np.hypot(*(points[1] - points[0])))
                points = np.stack([points[0] - sides, points[0] + sides])
            if kind in ("circle", "rectangle", "mask"):  # of a mask the rectangle around it
                low, high = points.min(axis=0), points.max(axis=0)
                objects.append(of_box(label, *low.tolist(), *(high - low).tolist()))
            elif len(points) > 2 and "line" not in kind:
                objects.append(of_polygon(label, points))
            else:
                raise ValueError("lines and points have no area")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{file}: shape {number} gives no object ({reason}): {show(shape)}") from error
    return as_seen(path, header_of(path), objects, split_of_folders(file.relative_to(root).parts[:-1]))
