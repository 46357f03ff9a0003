"""The files of a data set, and what has been learned of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from doctor.panoptic import Map
from doctor.pictures import Picture


class Source(NamedTuple):
    """An annotation file with what belongs to it.

    Attributes:
        annotations: the file, instances or panoptic.
        images: the folder of the pictures; None: they are not looked for.
        pngs: the folder of the panoptic PNGs; None: they are not looked for.
    """

    annotations: Path
    images: Path | None = None
    pngs: Path | None = None


@dataclass
class Files:
    """What is known of the files beside the annotations, so that none is read twice.

    Attributes:
        headers_up_to: 0: pictures and PNGs are read whole. Otherwise only the headers of pictures are, and
            only of annotation files that list at most so many.
    """

    headers_up_to: int = 0
    pictures: dict[Path, Picture] = field(default_factory=dict)
    maps: dict[Path, Map] = field(default_factory=dict)
