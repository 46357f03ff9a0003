"""VIA, the VGG Image Annotator: one JSON file for a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotation_file import read_json
from datasets.formats.record import Object, Picture, of_polygon, stored_size
from util.errors import UserError

_CLASS_KEYS = ("name", "label", "class", "category", "type")  # attributes that usually hold the class
_SPLITS = {"train": "train", "val": "val", "valid": "val"}
_CORNERS = 32  # of the polygon that stands for a circle or ellipse


def read(source: Path, names: Sequence[str] = ()) -> list[Picture]:
    """The pictures of a project.

    Args:
        source: a JSON file beside its pictures, or a folder of it; folders train/ and val/ within, each
            with a file of its own, are the splits.
        names: one name: the class of regions that have no attributes.

    Raises:
        UserError: no such file, a region of a shape that has no area, a region without a class.
    """
    if source.is_file():
        return _read_file(source, "", names)
    parts = [(source / part, split) for part, split in _SPLITS.items() if (source / part).is_dir()]
    files = [
        (file, split) for folder, split in parts or [(source, "")] for file in sorted(folder.glob("*.json"))
    ]
    if not files:
        raise UserError(f"{source}: no JSON file there, nor in train/ and val/")
    return [picture for file, split in files for picture in _read_file(file, split, names)]


def _read_file(file: Path, split: str, names: Sequence[str]) -> list[Picture]:
    content = read_json(file)
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, dict):
        raise UserError(f"{file}: a VIA file lists its pictures under their names")
    pictures = []
    for key, entry in entries.items():
        if not isinstance(entry, dict) or "filename" not in entry or "regions" not in entry:
            raise UserError(
                f"{file}: {key[:60]!r} has no filename and regions, as a picture of a VIA file must"
            )
        regions = entry["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        path = file.parent / entry["filename"]
        where = f"{file}: {entry['filename']}"
        objects = [_read_region(one, f"{where}, region {i}", names) for i, one in enumerate(regions)]
        pictures.append(Picture(path, stored_size(path), objects, split))
    return pictures


def _read_region(region: dict[str, Any], where: str, names: Sequence[str]) -> Object:
    name = _class_name(region.get("region_attributes") or {}, names)
    if not name:
        raise UserError(f"{where} has no class in its attributes: pass --names with the one name")
    shape = region.get("shape_attributes") or {}
    try:
        return _object(name, shape)
    except (KeyError, TypeError, ValueError) as error:
        kind = shape.get("name") if isinstance(shape, dict) else shape
        raise UserError(f"{where}: a {kind!r} gives no object ({type(error).__name__}: {error})") from error


def _object(name: str, shape: dict[str, Any]) -> Object:
    kind = shape["name"]
    if kind == "rect":
        x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return Object(name, (x, y, width, height), [])
    if kind in ("polygon", "polyline"):
        return of_polygon(name, np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1))
    if kind in ("circle", "ellipse"):
        radii = [shape.get("rx", shape.get("r")), shape.get("ry", shape.get("r"))]
        angle, turn = np.arange(_CORNERS) * 2 * np.pi / _CORNERS, float(shape.get("theta", 0))
        along, across = radii[0] * np.cos(angle), radii[1] * np.sin(angle)
        x = shape["cx"] + along * np.cos(turn) - across * np.sin(turn)
        y = shape["cy"] + along * np.sin(turn) + across * np.cos(turn)
        return of_polygon(name, np.stack([x, y], axis=1))
    raise ValueError("only rect, polygon, polyline, circle and ellipse have an area")


def _class_name(attributes: dict[str, Any], names: Sequence[str]) -> str:
    """The class in a region's attributes; of a group of check boxes the one that is ticked."""
    keys = [key for key in _CLASS_KEYS if key in attributes] or list(attributes)
    for key in keys:
        value = attributes[key]
        if isinstance(value, dict):
            value = next((option for option, ticked in value.items() if ticked), "")
        if str(value).strip():
            return str(value).strip()
    return names[0] if len(names) == 1 else ""
