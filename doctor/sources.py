"""An annotation file, the pictures that belong to it, and what has been learned of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.images import find_picture


@dataclass(frozen=True)
class Source:
    """An annotation file with what belongs to it.

    Attributes:
        annotations: the file, instances or panoptic.
        images: the folder of the pictures; None: they are not looked for.
        pngs: the folder of the panoptic PNGs; None: they are not looked for.
        placed: file_name -> the picture, where it does not lie in one folder.
    """

    annotations: Path
    images: Path | None = None
    pngs: Path | None = None
    placed: Mapping[str, Path] = field(default_factory=dict)

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

    Attributes:
        headers: 0: pictures and PNGs are read whole. Otherwise only the headers of pictures are, of at most
            so many a file.
        pictures: path -> doctor.pictures.Picture.
        maps: path of a panoptic PNG -> doctor.panoptic.Map.
        painted: path of a panoptic PNG -> what a corrected copy holds in its place.
    """

    headers: int = 0
    pictures: dict[Path, Any] = field(default_factory=dict)
    maps: dict[Path, Any] = field(default_factory=dict)
    painted: dict[Path, bytes] = field(default_factory=dict)
