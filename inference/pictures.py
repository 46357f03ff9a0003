"""A user's own pictures: found by path, folder or pattern, read whatever their format, prepared for a model.

    picture = read_picture("street.jpg")         # uint8 [3, H, W], upright, in RGB
    image = prepare(picture, 800, 1333)          # uint8 [3, h, w], as evaluation resizes it

These are turned upright, unlike those of data sets, whose annotations refer to the pixels as they are stored.
"""

from __future__ import annotations

import glob
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.utils.data
from torch import Tensor

from datasets.images import pil_to_tensor, read_image
from datasets.transforms import resize, resized_size
from util.collector import leave_parents_objects
from util.errors import UserError

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp"]
    + [".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif", ".heic", ".heif"]
)
"""What counts as a picture in a folder. A file that is named itself, or by a pattern, is always tried."""


def find_pictures(sources: Iterable[str | os.PathLike]) -> list[Path]:
    """The pictures that files, folders and patterns mean, in the order given; each once.

    Args:
        sources: paths of pictures; folders, whose pictures are taken without those of folders inside;
            patterns with *, ?, [...] and ** (any depth of folders). A path that exists is no pattern.

    Raises:
        UserError: a path that does not exist, a pattern that nothing fits, a folder without pictures.
    """
    found: dict[Path, None] = {}
    for source in map(str, sources):
        path = Path(source)
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if _looks_like_picture(p)]
            if not inside:
                raise UserError(
                    f"{source}: no pictures in this folder (folders inside are not searched: "
                    f"pass '{path / '**' / '*.jpg'}')"
                )
        elif path.exists():
            inside = [path]
        elif glob.has_magic(source):
            inside = [p for p in sorted(map(Path, glob.glob(source, recursive=True))) if p.is_file()]
            if not inside:
                raise UserError(f"{source}: no file fits this pattern")
        else:
            raise UserError(f"{source}: there is no such picture or folder")
        found |= dict.fromkeys(inside)
    return list(found)


def _looks_like_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def unique_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """A name without suffix for each picture: its own, with a number behind it where that is taken."""
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        stem, number = path.stem, 1
        while stem.lower() in taken:  # some disks do not tell upper case from lower
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.lower())
        stems[path] = stem
    return stems


def image_ids(paths: Sequence[Path]) -> dict[Path, int]:
    """An image id for each picture: the number that its name is, as in COCO, if all are; else 1, 2, …"""
    numbers = [int(path.stem) for path in paths if path.stem.isdecimal()]
    if len(set(numbers)) < len(paths):
        numbers = list(range(1, len(paths) + 1))
    return dict(zip(paths, numbers, strict=True))


def read_picture(path: str | os.PathLike) -> Tensor:
    """A picture as uint8 RGB [3, H, W], turned as its EXIF orientation says.

    What becomes of the kinds of pictures is described at datasets.images.read_image.

    Raises:
        UserError: it cannot be read; the message names the file.
    """
    return pil_to_tensor(read_image(path, as_shown=True))


def prepare(picture: Tensor, eval_scale: int, max_size: int) -> Tensor:
    """A picture as evaluation gives it to a model: resized, the aspect ratio kept.

    Args:
        picture: uint8 [3, H, W].
        eval_scale: shorter side.
        max_size: limit of the longer side; where it would be exceeded, the shorter one is reduced.

    Returns:
        uint8 [3, h, w].

    Raises:
        UserError: so thin that nothing would be left of its shorter side.
    """
    height, width = picture.shape[1:]
    if min(resized_size(height, width, eval_scale, max_size)) < 1:
        raise UserError(f"{width} x {height} pixels are too thin to be resized to at most {max_size}")
    return resize(picture, None, eval_scale, max_size)[0]


class Read(NamedTuple):
    """A picture that was read, or why it could not be."""

    path: Path
    picture: Tensor | None
    """uint8 [3, H, W] as the user sees it; None if it could not be read."""
    image: Tensor | None
    """uint8 [3, h, w] as the model sees it."""
    error: str
    """One line that names the file; empty if all went well."""


class Pictures(torch.utils.data.Dataset):
    """Reads and prepares pictures for the workers of a data loader; one that cannot be read stops nobody.

    Args:
        paths: of the pictures.
        eval_scale, max_size: see prepare.
    """

    def __init__(self, paths: Sequence[Path], eval_scale: int, max_size: int):
        self.paths = list(paths)
        self.eval_scale = eval_scale
        self.max_size = max_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Read:
        path = self.paths[index]
        try:
            picture = read_picture(path)
        except UserError as error:
            return Read(path, None, None, str(error))
        try:
            return Read(path, picture, prepare(picture, self.eval_scale, self.max_size), "")
        except UserError as error:
            return Read(path, None, None, f"{path}: {error}")


def read_pictures(
    paths: Sequence[Path], eval_scale: int, max_size: int, batch_size: int = 1, num_workers: int = 0
) -> torch.utils.data.DataLoader:
    """Lists of `batch_size` pictures that were read, in order, the next ones while the caller works."""
    return torch.utils.data.DataLoader(
        Pictures(paths, eval_scale, max_size),
        batch_size=batch_size,
        num_workers=min(num_workers, len(paths)),
        collate_fn=list,
        worker_init_fn=_start_worker,
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    leave_parents_objects()
