"""The one way in which the doctor and the converters write: into a new folder, and nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from util.errors import UserError


class NewFolder:
    """A folder that is new or empty, and the writing into it.

    Names are relative to it. Folders within are made as they are needed; what is there already is replaced,
    never written through: pictures are links to the user's files.

    Raises:
        UserError: it holds something already; later, for a name that leads out of it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} holds something already; name a new folder")

    def place(self, name: str | Path) -> Path:
        """Where a file of this name goes: inside, after links, `..` and absolute names are resolved."""
        place = self.path / name
        folder, root = place.parent.resolve(), self.path.resolve()
        if not folder.is_relative_to(root) or place.name in ("", ".."):
            raise UserError(f"{name} leads out of the new folder {self.path}: nothing is written there")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / place.name

    def write(self, name: str | Path, content: str | bytes) -> None:
        """A file of this content."""
        place = self.place(name)
        place.unlink(missing_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def link(self, source: Path, name: str | Path) -> None:
        """A link to a file, or a copy where the file system has no links."""
        link(source, self.place(name))


def link(source: Path, target: Path) -> None:
    """Make `target` a link to a file, or a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.symlink(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def names_inside(pictures: Iterable[tuple[Path, Path | None]]) -> dict[Path, str]:
    """Path of each picture -> its name in a new folder; different pictures get different names.

    Args:
        pictures: each with the folder whose subfolders are kept in its name. A picture from elsewhere keeps
            its own name, and gets a number where that is taken.
    """
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for path, folder in pictures:
        if path in names:
            continue
        below = os.path.relpath(path, folder) if folder is not None else ".."
        wanted = Path(path.name if below.startswith("..") or os.path.isabs(below) else below)
        name, number = wanted, 1
        while name.as_posix().casefold() in taken:  # some disks do not tell upper case from lower
            number += 1
            name = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
        taken.add(name.as_posix().casefold())
        names[path] = name.as_posix()
    return names
