"""VIA, the VGG Image Annotator: one JSON file for a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import find_picture, what_lies_there
from datasets.layouts import read_json
from doctor.columns import show
from doctor.formats.record import Object, Picture, Reading, as_seen, check_near, header_of, of_box, of_polygon
from doctor.splits import as_listed, split_of_folders
from util.errors import UserError

_CLASS_KEYS = ("name", "label", "class", "category", "type")  # attributes that usually hold the class
_CORNERS = 32  # of the polygon that stands for a circle or ellipse


def read(source: Path, names: Sequence[str] = ()) -> Reading:
    """The pictures of a project; train.txt and the like say the split.

    Args:
        source: a JSON file beside its pictures, or a folder of it; folders such as train/, val/ and test/
            within, each with a file of its own, are the splits.
        names: one name: the class of regions that have no attributes.

    Raises:
        UserError: no such file, an entry of another form, a region of a shape that has no area or without a
            class.
    """
    root, files = source.parent, [source]
    if source.is_dir():
        folders = [one for one in sorted(source.iterdir()) if one.is_dir() and split_of_folders([one.name])]
        root, files = source, [file for one in folders or [source] for file in sorted(one.glob("*.json"))]
    if not files:
        raise UserError(f"{source}: no JSON file there, nor in train/, val/ and test/")
    pictures = []
    for file in files:
        split = split_of_folders(file.parent.relative_to(root).parts)
        pictures += _read_file(file, split, names)
    return Reading(as_listed(root, pictures))


def _read_file(file: Path, split: str, names: Sequence[str]) -> list[Picture]:
    content = read_json(file)
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, dict):
        raise UserError(f"{file}: a VIA file lists its pictures under their names")
    pictures = []
    for key, entry in entries.items():
        shown = repr(key[:60])
        if not isinstance(entry, dict) or "filename" not in entry or "regions" not in entry:
            raise UserError(f"{file}: {shown} has no filename and regions, as a picture of a VIA file must")
        name, regions = entry["filename"], entry["regions"]
        if not isinstance(name, str) or len(name.splitlines()) != 1:
            raise UserError(f"{file}: the filename of {shown} must be that of a picture, not {show(name)}")
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not isinstance(regions, list):
            what = f"the regions of {name} must be a list, [] without any"
            raise UserError(f"{file}: {what}, not {show(regions)}")
        path = find_picture(file.parent, name)
        if path is None:
            raise UserError(f"{file}: no picture {name}: {what_lies_there(file.parent, name)}")
        objects = [_read_region(one, f"{file}: {name}, region {i}", names) for i, one in enumerate(regions)]
        pictures.append(as_seen(path, header_of(path), objects, split))
    return pictures


def _read_region(region: Any, where: str, names: Sequence[str]) -> Object:
    name = _class_name(_part(region, "region_attributes", where), names)
    if not name:
        raise UserError(f"{where} has no class in its attributes: pass --names with the one name")
    shape = _part(region, "shape_attributes", where)
    if not shape:
        raise UserError(f"{where} has no shape_attributes: draw it anew, or take it out")
    try:
        if shape["name"] == "rect":
            return of_box(name, *(float(shape[key]) for key in ("x", "y", "width", "height")))
        if shape["name"] in ("polygon", "polyline"):
            sides = [np.array(shape[key], dtype=np.float64) for key in ("all_points_x", "all_points_y")]
            return of_polygon(name, np.stack(sides, axis=1))
        if shape["name"] not in ("circle", "ellipse"):
            raise ValueError("only rect, polygon, polyline, circle and ellipse have an area")
        x, y, turn = float(shape["cx"]), float(shape["cy"]), float(shape.get("theta", 0))
        long, short = (float(shape[key if key in shape else "r"]) for key in ("rx", "ry"))
        check_near((x, y, turn, long, short))
        angle = np.arange(_CORNERS) * 2 * np.pi / _CORNERS
        along, across = long * np.cos(angle), short * np.sin(angle)
        xs = x + along * np.cos(turn) - across * np.sin(turn)
        ys = y + along * np.sin(turn) + across * np.cos(turn)
        return of_polygon(name, np.stack([xs, ys], axis=1))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        kind, reason = show(shape.get("name")), f"{type(error).__name__}: {error}"
        raise UserError(f"{where}: a {kind} gives no object ({reason})") from error


def _part(region: Any, key: str, where: str) -> dict[str, Any]:
    """The shape or the attributes of a region; empty where it has none."""
    part = (region.get(key) or {}) if isinstance(region, dict) else region
    if isinstance(part, dict):
        return part
    what = f"its {key}" if isinstance(region, dict) else "it"
    raise UserError(f"{where}: {what} must be a JSON object, not {show(part)}")


def _class_name(attributes: dict[str, Any], names: Sequence[str]) -> str:
    """The class in a region's attributes; of a group of check boxes the one that is ticked."""
    keys = [key for key in _CLASS_KEYS if key in attributes] or list(attributes)
    for key in keys:
        value = attributes[key]
        if isinstance(value, dict):
            value = next((option for option, ticked in value.items() if ticked), "")
        if isinstance(value, (str, int, float)) and str(value).strip():
            return str(value).strip()
    return names[0] if len(names) == 1 else ""
