"""What has been learned of pictures and panoptic PNGs, so that none is read twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from doctor.panoptic import Map
from doctor.pictures import Picture


@dataclass
class Files:
    """What is known of the files beside the annotations, each read once.

    Attributes:
        headers: 0: pictures and PNGs are read whole. Otherwise only the headers of pictures are, of at most
            so many a file.
        pictures: what was read of each.
        maps: the same of panoptic PNGs.
        painted: panoptic PNG -> what a corrected copy holds in its place.
    """

    headers: int = 0
    pictures: dict[Path, Picture] = field(default_factory=dict)
    maps: dict[Path, Map] = field(default_factory=dict)
    painted: dict[Path, bytes] = field(default_factory=dict)
