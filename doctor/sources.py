"""An annotation file, the pictures that belong to it, and what has been learned of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.images import find_picture


@dataclass(frozen=True)
class Source:
    """An annotation file, of instances or panoptic, and the folders of what belongs to it.

    Where a folder is None, nothing in it is looked for.
    """

    annotations: Path
    images: Path | None = None
    pngs: Path | None = None
    placed: Mapping[str, Path] = field(default_factory=dict)  # file_name -> a picture that lies elsewhere

    def picture(self, name: object) -> Path | None:
        """The picture that a file_name means; None where there is none."""
        if not isinstance(name, str) or not name:
            return None
        if name in self.placed:
            return self.placed[name]
        return find_picture(self.images, name) if self.images is not None else None


@dataclass
class Files:
    """What is known of the files beside the annotations, so that none is read twice.

    With `headers`, only the headers of pictures are read, of at most so many a file; with 0 all, whole.
    """

    headers: int = 0
    pictures: dict[Path, Any] = field(default_factory=dict)  # of doctor.pictures.Picture
    maps: dict[Path, Any] = field(default_factory=dict)  # PNG -> doctor.panoptic.Map
    painted: dict[Path, bytes] = field(default_factory=dict)  # PNG -> what a corrected copy holds instead
