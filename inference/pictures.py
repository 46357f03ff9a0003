"""Your own pictures: found by path, folder or pattern, read whatever their format, prepared for a model.

    picture = read_picture("street.jpg")         # uint8 [3, H, W], upright, in RGB
    image = prepare(picture, 800, 1333)          # uint8 [3, h, w], as evaluation resizes it

These are turned upright, unlike those of data sets, whose annotations refer to the pixels as they are stored.
"""

from __future__ import annotations

import glob
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils.data
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from datasets.annotations import AnnotationFile, load_annotations
from datasets.images import PICTURE_ENDINGS, last_part, picture_name, read_image
from datasets.transforms import resize
from util.collector import leave_parents_objects
from util.errors import UserError


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
            files = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
            inside = [p for p in files if p.suffix.lower() in PICTURE_ENDINGS]
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


def unique_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """A name without suffix for each picture: its own, with a number after it where that is taken."""
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


class View(NamedTuple):
    """How a picture is seen; see datasets.images.read_image.

    Attributes:
        as_shown: turned as its EXIF orientation says.
        stated: width and height in its annotation, which say how it is seen where it is not as shown.
        white_level: of pictures of more than 8 bits.
    """

    as_shown: bool = True
    stated: tuple[Any, Any] | None = None
    white_level: float | None = None


def listed_views(file: str | Path, paths: Sequence[Path]) -> dict[Path, tuple[int, View]]:
    """Image id and view of each picture by an annotation file, as an evaluation on that file sees it.

    Raises:
        UserError: the file is faulty, or does not list one of the pictures.
    """
    listed: dict[str, list[dict[str, Any]]] = {}
    for image in load_annotations(file, AnnotationFile).images:
        listed.setdefault(last_part(picture_name(image)), []).append(image)
    found = {}
    for path in paths:
        images = listed.get(last_part(path.name), [])
        if len(images) > 1:  # folders tell them apart
            images = [one for one in images if path.as_posix().endswith(str(picture_name(one)))]
        if len(images) != 1:
            what = "does not list it" if not images else f"lists {len(images)} pictures of that name"
            raise UserError(f"{path}: --gt {file} {what}")
        size = images[0].get("width"), images[0].get("height")
        found[path] = images[0]["id"], View(False, size)
    return found


def read_picture(path: str | os.PathLike, view: View = View()) -> Tensor:  # noqa: B008
    """A picture as uint8 RGB [3, H, W], turned as its EXIF orientation says unless the view is another.

    What becomes of the kinds of pictures is described at datasets.images.read_image.

    Raises:
        UserError: it cannot be read; the message names the file.
    """
    return pil_to_tensor(read_image(path, **view._asdict()))


def prepare(picture: Tensor, eval_scale: int, max_size: int) -> Tensor:
    """A picture as evaluation gives it to a model: resized, the aspect ratio kept.

    Args:
        picture: uint8 [3, H, W].
        eval_scale: shorter side.
        max_size: limit of the longer side; where it would be exceeded, the shorter one is reduced.

    Returns:
        uint8 [3, h, w].
    """
    return resize(picture, None, eval_scale, max_size)[0]


class Read(NamedTuple):
    """A picture that was read, or why it could not be."""

    path: Path
    picture: Tensor | None  # uint8 [3, H, W] as the user sees it; None if it could not be read
    image: Tensor | None  # uint8 [3, h, w] as the model sees it
    error: str  # one line that names the file; empty if all went well


class Pictures(torch.utils.data.Dataset):
    """Reads and prepares pictures for the workers of a data loader; one that cannot be read stops nobody.

    Args:
        eval_scale, max_size: see prepare.
        views: how each is seen; those that are not among them as shown.
    """

    def __init__(self, paths: Sequence[Path], eval_scale: int, max_size: int, views: Mapping[Path, View]):
        self.paths = list(paths)
        self.eval_scale = eval_scale
        self.max_size = max_size
        self.views = views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Read:
        path = self.paths[index]
        try:
            picture = read_picture(path, self.views.get(path, View()))
        except UserError as error:
            return Read(path, None, None, str(error))
        return Read(path, picture, prepare(picture, self.eval_scale, self.max_size), "")


def read_pictures(
    paths: Sequence[Path],
    eval_scale: int,
    max_size: int,
    batch_size: int = 1,
    num_workers: int = 0,
    views: Mapping[Path, View] | None = None,
) -> torch.utils.data.DataLoader:
    """Lists of `batch_size` pictures that were read, in order, the next ones while the caller works."""
    return torch.utils.data.DataLoader(
        Pictures(paths, eval_scale, max_size, views or {}),
        batch_size=batch_size,
        num_workers=min(num_workers, len(paths)),
        collate_fn=list,
        worker_init_fn=start_worker,
    )


def start_worker(_: int) -> None:
    """Leave Ctrl-C and the objects that are shared to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_parents_objects()
