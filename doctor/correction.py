"""A round of corrections of a file: what the actions of `doctor.mend_*` work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from doctor.columns import SECTIONS, RawFile
from doctor.report import Group
from doctor.sources import Files, Source


@dataclass
class Target:
    """Where the corrected files of a split go: the new annotation file, and the new folders."""

    annotations: Path
    images: Path
    pngs: Path


@dataclass
class Correction:
    """One round of corrections of a file; its entries are edited, for they were read for this.

    Attributes:
        raw: the file.
        raws: the files of all splits.
        source, target: where its pictures are, and where corrected ones go.
        files: what is known of pictures and PNGs; None: they are not looked at.
        num_classes: of the model, None if it does not matter.
        dropped: places in each list that the result leaves out.
    """

    raw: RawFile
    raws: Mapping[str, RawFile]
    source: Source
    target: Target
    files: Files | None
    num_classes: int | None
    dropped: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in SECTIONS})
    dropped_segments: set[tuple[int, int]] = field(default_factory=set)

    def drop_images(self, rows: Iterable[int]) -> None:
        """Leave out images with all that belongs to them."""
        rows = {int(row) for row in rows if row >= 0}
        self.dropped["images"] |= rows
        owners = np.flatnonzero(np.isin(self.raw.image_rows, list(rows)))
        self.dropped["annotations"] |= set(owners.tolist())

    def path(self, row: int) -> Path:
        """The picture of an image."""
        assert self.source.images is not None
        return self.source.images / self.raw.images[row]["file_name"]

    def result(self) -> RawFile:
        """The file as corrected."""
        lists: dict[str, Any] = dict(self.raw.rest)
        for annotation, place in sorted(self.dropped_segments, reverse=True):
            del self.raw.annotations[annotation]["segments_info"][place]
        for section in SECTIONS:
            gone = self.dropped[section]
            lists[section] = [r for row, r in enumerate(getattr(self.raw, section)) if row not in gone]
        return RawFile(self.raw.path, lists)


Action = Callable[[Correction, Group], str]
"""Mends the findings of a group -> what was done, in a few words; '' where nothing could be."""


def drop(section: str) -> Action:
    """The action that leaves out the entries of a list."""

    def action(correction: Correction, group: Group) -> str:
        correction.dropped[section] |= {int(row) for row in group.rows}
        return "dropped"

    return action
