"""The files of a data set: the folder layouts that are read as they are, and annotation files as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from util.collector import paused_collector
from util.errors import UserError
from util.files import what_it_is

SHAPES_PATH = "data/shapes"  # where the built-in pictures lie unless --coco_path says otherwise


class Split(NamedTuple):
    """The files of a part of a data set."""

    images: Path
    annotations: Path


class Layout(NamedTuple):
    """Where a layout keeps things, below the data set's folder."""

    title: str  # what messages call it
    splits: Mapping[str, tuple[str, str]]  # name of a split -> its image folder and its annotation file


LAYOUTS = {
    "coco": Layout(
        "COCO's",
        {
            "train": ("train2017", "annotations/instances_train2017.json"),
            "val": ("val2017", "annotations/instances_val2017.json"),
            "test": ("test2017", "annotations/instances_test2017.json"),
        },
    ),
    "custom": Layout(
        "custom",
        {
            "train": ("train2017", "annotations/custom_train.json"),
            "val": ("val2017", "annotations/custom_val.json"),
            "test": ("test2017", "annotations/custom_test.json"),
        },
    ),
    "roboflow": Layout(
        "Roboflow's COCO export",
        {
            "train": ("train", "train/_annotations.coco.json"),
            "val": ("valid", "valid/_annotations.coco.json"),
            "test": ("test", "test/_annotations.coco.json"),
        },
    ),
}
PANOPTIC = Layout(
    "COCO's panoptic",
    {
        "train": ("panoptic_train2017", "annotations/panoptic_train2017.json"),
        "val": ("panoptic_val2017", "annotations/panoptic_val2017.json"),
    },
)


def splits_below(root: Path, layout: Layout) -> dict[str, Split]:
    """The splits of a layout whose annotation file is there, by name."""
    found = {name: Split(root / images, root / file) for name, (images, file) in layout.splits.items()}
    return {name: split for name, split in found.items() if split.annotations.is_file()}


def find_layout(root: Path, dataset_file: str = "coco") -> Layout | None:
    """The layout that a folder follows, by the annotation files in it.

    Args:
        root: the data set's folder.
        dataset_file: the layout that is preferred where there are several.
    """
    names = sorted(LAYOUTS, key=lambda name: name != dataset_file)  # sorting keeps the table's order
    return next((LAYOUTS[name] for name in names if splits_below(root, LAYOUTS[name])), None)


def find_split(coco_path: str | Path | None, image_set: str, dataset_file: str = "coco") -> Split:
    """The image folder and the annotation file of a split, in any of the layouts.

    Raises:
        UserError: there are none; the message says what was looked for and what lies there.
    """
    root = folder_of("--coco_path", coco_path, "annotations/, train2017/ and val2017/")
    layout = find_layout(root, dataset_file) or LAYOUTS.get(dataset_file, LAYOUTS["coco"])
    return Split(*inside("--coco_path", root, layout.splits[image_set], f". {known_layouts(image_set)}"))


def folder_of(flag: str, folder: str | Path | None, holds: str) -> Path:
    """The folder that a flag names; UserError where it is missing."""
    if not folder:
        raise UserError(f"{flag} is missing: the folder that holds {holds}")
    if not Path(folder).is_dir():
        raise UserError(f"{flag} {folder}: there is no such folder")
    return Path(folder)


def inside(flag: str, root: Path, names: Sequence[str], more: str = "") -> list[Path]:
    """The paths `names` below the folder that a flag names; UserError where one does not exist."""
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
        raise UserError(f"{flag} {root}: no {' and no '.join(missing)} there; the folder holds {there}{more}")
    return [root / name for name in names]


def known_layouts(image_set: str) -> str:
    """One sentence that shows the layouts by their files for a split."""
    places = [(layout.title, *layout.splits[image_set]) for layout in LAYOUTS.values()]
    shown = [f"{images}/ with {file} ({title})" for title, images, file in places]
    return f"Known layouts: {'; '.join(shown)}; other formats: python -m doctor.convert"


# ---- JSON


def is_integer(value: Any) -> bool:
    """Whether JSON gave an integer of 64 bits, and no truth value."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def parse(path: str | Path) -> Any:
    """What a JSON file holds; read three times as fast as by Python's own parser.

    Raises:
        OSError: the file cannot be read.
        json.JSONDecodeError, UnicodeDecodeError: it is no JSON text.
    """
    data = Path(path).read_bytes()
    with paused_collector():
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            pass  # Python's parser takes more, such as NaN, and says where a file is broken
        try:
            return json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError):
            if found := what_it_is(data):
                raise json.JSONDecodeError(found, "", 0) from None
            raise
        except RecursionError:
            raise json.JSONDecodeError("Lists or objects nested too deeply", "", 0) from None
        except ValueError:
            raise json.JSONDecodeError("A number of thousands of digits", "", 0) from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: the file is missing, is no JSON, or holds something other than one object.
    """
    try:
        content = parse(path)
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is no valid JSON: {error.msg} at {place}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no JSON text: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a COCO file is one JSON object, not a {type(content).__name__}")
    return content
