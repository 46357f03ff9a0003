"""Checks of the pictures: there, readable, whole, of the size and the way up that their entries say."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from doctor.columns import RawFile
from doctor.report import Finding, Report

_ORIENTATION = 0x0112  # the EXIF tag
_TURNING = range(5, 9)  # its values that exchange width and height
_FEW = 100  # pictures that are not worth starting processes for
T = TypeVar("T")
R = TypeVar("R")


class Picture(NamedTuple):
    """What was learned of a picture file.

    Attributes:
        size: (width, height) as stored, in pixels; None where it is no picture.
        orientation: of its EXIF tag; 1: as stored.
        digest: of the file's bytes; empty where only the header was read.
        error: why it could not be decoded to its end; '' where it could, or only the header was read.
    """

    size: tuple[int, int] | None
    orientation: int
    digest: bytes
    error: str


def inspect(path: Path) -> Picture:
    """Read and decode a picture."""
    from PIL import Image

    try:
        data = path.read_bytes()
    except OSError as error:
        return Picture(None, 1, b"", error.strerror or str(error))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    size, orientation = None, 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            orientation = image.getexif().get(_ORIENTATION, 1)
            image.draft("RGB", (1, 1))  # JPEG: all of the file is read, and fewer pixels are computed
            image.load()
    except Exception as error:  # damaged files make the decoders raise all kinds
        return Picture(size, orientation, digest, str(error) or type(error).__name__)
    return Picture(size, orientation, digest, "")


def inspect_header(path: Path) -> Picture:
    """Read the size and the orientation of a picture; its pixels are not decoded."""
    from PIL import Image

    size, orientation = None, 1
    try:
        with Image.open(path) as image:
            size = image.size
            if image.format != "PNG" or "exif" in image.info:  # PIL decodes all of a PNG to look for the tag
                orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # as above
        return Picture(size, orientation, b"", str(error) or type(error).__name__)
    return Picture(size, orientation, b"", "")


def spread(work: Callable[[T], R], items: Sequence[T], title: str) -> list[R]:
    """`work` of each item, in order; by several processes, behind a progress bar, where there are many."""
    if len(items) < _FEW or (os.cpu_count() or 1) == 1:
        return list(map(work, items))
    with ProcessPoolExecutor() as pool:
        return list(_bar(pool.map(work, items, chunksize=16), len(items), title))


def _bar(results: Iterable[R], total: int, title: str) -> Iterable[R]:
    from tqdm import tqdm

    return tqdm(results, title, total, file=sys.stderr, leave=False, disable=not sys.stderr.isatty())


def check_names(raw: RawFile, report: Report, folder: Path) -> None:
    """Pictures that are not in the folder or listed twice; nothing is opened.

    The rows of `image_missing` are pairs (place of the image, name of the file that is probably meant).
    """
    names = raw.column("images", "file_name")
    present, alike = _listing(folder, names)
    missing = [(row, _alike(name, alike)) for row, name in enumerate(names)
               if isinstance(name, str) and name and name not in present]  # fmt: skip

    def describe(row: Any) -> Finding:
        place, meant = row
        hint = f"; there is {meant}" if meant else ""
        return Finding(None, raw.images[place].get("id"), f"no {folder / names[place]}{hint}")

    report.add("image_missing", raw.path, missing, describe)


def check_listing(raw: RawFile, report: Report) -> None:
    """Entries without size, and file names that stand twice."""
    first: dict[str, Any] = {}
    twice = []
    for row, (name, image_id) in enumerate(
        zip(raw.column("images", "file_name"), raw.column("images", "id"), strict=True)
    ):
        # One id with one name twice is a fault of the ids, and reported as such.
        if isinstance(name, str) and name and first.setdefault(name, image_id) != image_id:
            twice.append(row)
    n = len(raw.images)
    report.add("image_twice", raw.path, twice, raw.on_image("file_name"), n)
    rows = np.flatnonzero(~np.isfinite(raw.sizes).all(axis=1))
    report.add("image_size_missing", raw.path, rows, raw.on_image("width", "height"), n)


def _listing(folder: Path, names: Sequence[Any]) -> tuple[set[str], dict[str, str]]:
    """(names of the files, lower case and no ending -> name) of the folders that the names are in."""
    below = {os.path.dirname(name) for name in names if isinstance(name, str)}
    present: set[str] = set()
    for part in below:
        try:
            with os.scandir(folder / part) as entries:
                present |= {os.path.join(part, entry.name) for entry in entries if entry.is_file()}
        except OSError:
            continue
    known = {name for name in names if isinstance(name, str) and name in present}
    return present, {_stem(name): name for name in sorted(present - known)}


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


def _alike(name: str, alike: dict[str, str]) -> str:
    found = alike.get(_stem(name), "")
    pictures = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
    return found if found.lower().endswith(pictures) else ""


def check_pictures(
    raw: RawFile, report: Report, folder: Path, pictures: dict[Path, Picture], whole: bool = True
) -> dict[bytes, int]:
    """Read every picture that is there -> digest of its bytes -> place of the image.

    Args:
        pictures: those that are known already; the others are added.
        whole: decode them; False: read their headers, which gives no digests.
    """
    names = raw.column("images", "file_name")
    paths = {row: folder / name for row, name in enumerate(names) if isinstance(name, str) and name}
    new = [path for path in dict.fromkeys(paths.values()) if path not in pictures and path.is_file()]
    read = spread(inspect, new, f"pictures of {raw.path.name}") if whole else map(inspect_header, new)
    pictures.update(zip(new, read, strict=True))
    by_row = {row: pictures[path] for row, path in paths.items() if path in pictures}
    stated = raw.sizes
    found: dict[str, list[int]] = {}
    for row, picture in by_row.items():
        name = _fault(picture, stated[row])
        if name:
            found.setdefault(name, []).append(row)

    def describe(row: Any) -> Finding:
        picture, record = by_row[row], raw.images[row]
        parts = [str(folder / names[row]), picture.error]
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
    """The kind of what is wrong with a picture; '' where nothing is."""
    if picture.size is None:
        return "image_unreadable"
    if picture.error:
        return "image_truncated"
    known = bool(np.isfinite(stated).all())
    if known and list(picture.size) != stated.tolist():
        turned = picture.orientation in _TURNING and list(picture.size[::-1]) == stated.tolist()
        return "exif_turned" if turned else "image_size"
    return "exif_ignored" if picture.orientation != 1 else ""


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
