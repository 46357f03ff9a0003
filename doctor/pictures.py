"""Checks of the pictures: there, readable, whole, of the size and the way up that their entries say."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from datasets.images import (
    DEEP_MODES,
    EXIF_ORIENTATION,
    PICTURE_ENDINGS,
    TURNING,
    default_white_level,
    is_transparent,
    other_ending,
    what_lies_there,
    why_unreadable,
)
from datasets.workers import process_map, usable_cores
from doctor.columns import RawFile, show
from doctor.report import Finding, Report, text_finding
from doctor.sources import Source

TOO_LARGE = "more pixels than Pillow reads"
_FEW = 100  # pictures that are not worth starting processes for
T = TypeVar("T")


class Picture(NamedTuple):
    """What was learned of a picture file."""

    size: tuple[int, int] | None  # (width, height) as stored, in pixels; None where it is no picture
    orientation: int  # of its EXIF tag, 1 to 8; 1: as stored
    digest: bytes  # of the file's bytes; empty where only the header was read
    error: str  # why it could not be decoded to its end; '' where it could, or only the header was read
    transparent: bool = False  # it may be, in places
    deep: bool = False  # more than 8 bits a pixel, one channel
    range: float = 1.0  # the share up to the largest value; of those that are deep and read whole

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as viewers show it, turned by its EXIF tag."""
        return self.frames[-1]

    def fitting(self, corners: Iterable[Sequence[float]]) -> list[tuple[int, int]]:
        """The frames that boxes with these right and bottom edges fit, as stored first; all for none."""
        edges = np.reshape(list(corners), (-1, 2)).max(axis=0, initial=0)
        return [frame for frame in self.frames if (edges <= frame).all()] or self.frames

    @property
    def frames(self) -> list[tuple[int, int]]:
        """The sizes that annotations may state: as stored, and as shown where the tag exchanges the sides."""
        if self.size is None:
            return []
        return [self.size, self.size[::-1]] if self.orientation in TURNING else [self.size]


def inspect(path: Path, whole: bool = True) -> Picture:
    """Read and decode a picture; or its header, which tells size and orientation."""
    size, orientation, digest = None, 1, b""
    try:
        data = path.read_bytes() if whole else b""
        digest = hashlib.blake2b(data, digest_size=16).digest() if whole else b""
        with Image.open(io.BytesIO(data) if whole else path) as image:
            size = image.size
            if whole or image.format != "PNG" or "exif" in image.info:  # else PIL decodes a PNG for the tag
                orientation = image.getexif().get(EXIF_ORIENTATION, 1)
                orientation = orientation if orientation in range(1, 9) else 1
            deep, transparent, share = image.mode in DEEP_MODES, is_transparent(image), 1.0
            if whole:
                image.draft("RGB", (1, 1))  # JPEG: all of the file is read, and fewer pixels are computed
                image.load()
                if deep:
                    share = float(np.asarray(image).max()) / default_white_level(image.mode)
            return Picture(size, orientation, digest, "", transparent, deep, share)
    except Image.DecompressionBombError as error:
        return Picture(None, 1, digest, f"{TOO_LARGE}: {error}")
    except Exception as error:  # damaged files make the decoders raise all kinds
        return Picture(size, orientation, digest, why_unreadable(error, path))


def learn(read: Callable[[Path], T], paths: Iterable[Path], known: dict[Path, T], title: str) -> None:
    """Read the files that are not known yet; by several processes, with a progress bar, where there are many.

    Args:
        known: path -> what `read` gives; the others are added.
    """
    from tqdm import tqdm

    new = [path for path in dict.fromkeys(paths) if path not in known]
    few = len(new) < _FEW
    hidden = few or None  # None: shown in a terminal
    with process_map(1 if few else usable_cores()) as mapper:
        found = tqdm(mapper(read, new), title, len(new), file=sys.stderr, leave=False, disable=hidden)
        known.update(zip(new, found, strict=True))


def check_names(raw: RawFile, report: Report, source: Source) -> None:
    """Pictures that are not there, and those that no entry means; nothing is opened.

    Two entries whose different names were both found to mean one picture are missing as well: one of them
    means another. The rows of `image_missing` are pairs (place of the image, name of the file that is
    probably meant).
    """
    assert source.images is not None
    folder, names = source.images, raw.names
    paths = [source.picture(name) for name in names]
    owners: dict[Path, set[str]] = {}
    for name, path in zip(names, paths, strict=True):
        if path is not None and path != folder / name:  # found by trying
            owners.setdefault(path, set()).add(name)
    missing = []
    for row, (name, path) in enumerate(zip(names, paths, strict=True)):
        if isinstance(name, str) and name and (path is None or len(owners.get(path, ())) > 1):
            missing.append((row, "" if path else other_ending(folder, name)))

    def describe(row: Any) -> Finding:
        place, _ = row
        name = names[place]
        if (path := paths[place]) is not None:
            return Finding(None, raw.images[place].get("id"), f"{show(name)} and others can only mean {path}")
        value = f"no {folder / name}; {what_lies_there(folder, name)}"
        return Finding(None, raw.images[place].get("id"), value)

    report.add("image_missing", raw.path, missing, describe)
    listed = {os.path.abspath(path) for path in paths if path}
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    others = [name for name in files if name.lower().endswith(PICTURE_ENDINGS)]
    others = [os.path.relpath(name, folder) for name in others if os.path.abspath(name) not in listed]
    report.add("not_listed", raw.path, sorted(others), text_finding)


def check_listing(raw: RawFile, report: Report) -> None:
    """Entries without size, and file names that stand twice."""
    first: dict[str, Any] = {}
    twice = []
    for row, (name, image_id) in enumerate(zip(raw.names, raw.column("images", "id"), strict=True)):
        # One id with one name twice is a fault of the ids, and reported as such.
        if isinstance(name, str) and name and first.setdefault(name, image_id) != image_id:
            twice.append(row)
    n = len(raw.images)
    report.add("image_twice", raw.path, twice, raw.on_image("file_name"), n)
    rows = np.flatnonzero(~np.isfinite(raw.sizes).all(axis=1))
    report.add("image_size_missing", raw.path, rows, raw.on_image("width", "height"), n)


def check_pictures(
    raw: RawFile, report: Report, source: Source, pictures: dict[Path, Picture], headers: int
) -> dict[bytes, int]:
    """Read the pictures that are there -> digest of the bytes of those read whole -> place of the image.

    Args:
        pictures: those that are known already; the others are added.
        headers: read the headers of at most so many, spread over the file; 0: read all, whole.
    """
    names = raw.names
    rows = range(len(names))
    if headers and len(names) > headers:
        rows = np.linspace(0, len(names) - 1, headers).astype(int).tolist()
        report.sampled.append(f"{raw.path}: the headers of {headers} of its {len(names)} pictures were read")
    paths = {row: path for row in rows if (path := source.picture(names[row])) is not None}
    if headers:
        new = (path for path in paths.values() if path not in pictures)
        pictures.update((path, inspect(path, whole=False)) for path in new)
    else:
        learn(inspect, paths.values(), pictures, f"pictures of {raw.path.name}")
    by_row = {row: pictures[path] for row, path in paths.items()}
    found: defaultdict[str, list[int]] = defaultdict(list)
    seen = {}
    for row, picture in by_row.items():
        if name := _fault(picture, raw.sizes[row]):
            found[name].append(row)
        if picture.size and not picture.error:
            seen[row] = picture
            odd = {
                "image_thin": max(picture.size) > 100 * min(picture.size),
                "image_deep": picture.deep,
                "image_transparent": picture.transparent,
            }
            for name in (name for name, is_so in odd.items() if is_so):
                found[name].append(row)
    if found["image_deep"] and max(seen[row].range for row in found["image_deep"]) < 1 / 8:
        found["image_dark"] = found["image_deep"]
    if not raw.panoptic and not report.doubts_boxes(raw.path):
        _compare_frames(raw, by_row, found)

    def describe(row: Any) -> Finding:
        picture, record = by_row[row], raw.images[row]
        parts = [str(paths[row]), picture.error]
        if picture.size and not picture.error:
            parts.append("{} x {} pixels".format(*picture.size))
            parts.append(f"its entry says {record.get('width')} x {record.get('height')}")
        if picture.orientation != 1:
            parts.append(f"EXIF orientation {picture.orientation}")
        return Finding(None, record.get("id"), ", ".join(filter(None, parts)))

    for name, places in found.items():
        report.add(name, raw.path, places, describe, len(raw.images))
    first: dict[bytes, int] = {}
    twice = []
    for row, picture in by_row.items():
        if picture.digest and picture.size and first.setdefault(picture.digest, row) != row:
            same_name = names[first[picture.digest]] == names[row]
            twice += [] if same_name else [row]
    report.add("image_twice", raw.path, twice, raw.on_image("file_name"), len(raw.images))
    return first


def _fault(picture: Picture, stated: np.ndarray) -> str:
    """The kind of what is wrong with a picture, or odd about it; '' where nothing is."""
    if picture.size is None:
        return "image_too_large" if picture.error.startswith(TOO_LARGE) else "image_unreadable"
    if picture.error:
        return "image_truncated"
    known = bool(np.isfinite(stated).all())
    if known and tuple(stated) not in picture.frames:
        return "image_size"
    if picture.orientation == 1:
        return ""
    width, height = picture.size
    if picture.orientation not in TURNING or width == height or not known:
        return "exif_ambiguous"
    return "exif_as_stored" if tuple(stated) == picture.size else "exif_turned"


def _compare_frames(raw: RawFile, by_row: Mapping[int, Picture], found: defaultdict[str, list[int]]) -> None:
    """Turned pictures whose boxes leave the frame that is stated, and fit the other: exif_other_frame."""
    sure = [name for name in ("exif_as_stored", "exif_turned") if name in found]
    rows = {row for name in sure for row in found[name]}
    high = raw.corners[:, 2:]
    beyond: dict[int, list[list[bool]]] = {row: [] for row in rows}
    for annotation in np.flatnonzero(np.isin(raw.image_rows, list(rows))):
        limit = raw.limits[annotation]
        if np.isfinite(high[annotation]).all():
            outside = [bool((high[annotation] > frame + 2).any()) for frame in (limit, limit[::-1])]
            beyond[int(raw.image_rows[annotation])].append(outside)
    for row, pairs in beyond.items():
        if any(here for here, _ in pairs) and not any(there for _, there in pairs):
            for name in sure:
                found[name] = [one for one in found[name] if one != row]
            found["exif_other_frame"].append(row)


def check_across(
    report: Report, train: tuple[RawFile, dict[bytes, int]], val: tuple[RawFile, dict[bytes, int]]
) -> None:
    """Pictures with equal bytes in both splits; rows are places in train's images."""
    rows = sorted((train[1][digest], val[1][digest]) for digest in train[1].keys() & val[1].keys())
    partner = dict(rows)

    def describe(row: Any) -> Finding:
        image, other = train[0].images[row], val[0].images[partner[row]]
        value = f"{image.get('file_name')} is {other.get('file_name')} (image {other.get('id')!r}) of val"
        return Finding(None, image.get("id"), value)

    report.add("image_in_both_splits", train[0].path, [row for row, _ in rows], describe)
