"""A round of corrections of a file: what the actions of `doctor.mend_*` work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from doctor.columns import SECTIONS, RawFile, means_crowd, show
from doctor.numbering import Numbering
from doctor.report import Group
from doctor.sources import Files, Source
from doctor.summary import Summary, Tally


@dataclass
class Correction:
    """One round of corrections of a file; its entries are edited, for they were read for this.

    `dropped` says for each list which places the result leaves out, and why: (reason, another entry stands
    for it). `drop` adds to it.
    """

    split: str  # its name
    raw: RawFile
    raws: Mapping[str, RawFile]  # of all splits
    source: Source
    files: Files | None  # what is known of pictures and PNGs; None: they are not looked at
    num_classes: int | None  # of the model, None if it does not matter
    may_drop: bool = False  # drop what training survives too
    dropped: dict[str, dict[int, tuple[str, bool]]] = field(
        default_factory=lambda: {name: {} for name in SECTIONS}
    )
    dropped_segments: dict[tuple[int, int], str] = field(default_factory=dict)  # (annotation, place) -> why

    def drop(self, section: str, rows: Iterable[Any], why: str, merged: bool = False) -> None:
        """Leave out entries of a list."""
        for row in rows:
            self.dropped[section].setdefault(int(row), (why, merged))

    def drop_images(self, rows: Iterable[Any], why: str) -> None:
        """Leave out images with all that belongs to them."""
        chosen = [int(row) for row in rows if row >= 0]
        self.drop("images", chosen, why)
        self.drop("annotations", np.flatnonzero(np.isin(self.raw.image_rows, chosen)), why)

    def picture(self, row: int) -> Path | None:
        """The picture of an image."""
        return self.source.picture(self.raw.names[row])

    def result(self, summary: Summary) -> RawFile:
        """The file as corrected; what it lacks goes to the summary."""
        raw, labels = self.raw, labels_of(self.raw)
        for why, merged in self.dropped["images"].values():
            summary.lose(self.split, why, Tally(1), merged)
        for row, (why, merged) in self.dropped["annotations"].items():
            summary.lose(self.split, why, Tally(0, Counter(labels(raw.annotations[row]))), merged)
        for (row, place), why in sorted(self.dropped_segments.items(), reverse=True):
            segments = raw.annotations[row]["segments_info"]
            if row not in self.dropped["annotations"]:
                one = {"segments_info": [segments[place]]}
                summary.lose(self.split, why, Tally(0, Counter(labels(one))))
            del segments[place]
        lists: dict[str, Any] = dict(raw.rest)
        for section in SECTIONS:
            gone = self.dropped[section]
            lists[section] = [r for row, r in enumerate(getattr(raw, section)) if row not in gone]
        return RawFile(raw.path, lists)


def labels_of(raw: RawFile) -> Callable[[dict[str, Any]], list[str]]:
    """annotation -> the names of the classes of its objects: one, or one for each segment."""
    ids, names = raw.column("categories", "id"), raw.column("categories", "name")
    numbering = Numbering(ids, raw.column("annotations", "category_id"), [(name,) for name in names])
    known = dict(zip(numbering.numbers[::-1], names[::-1], strict=True))  # the first of an id counts

    def label(record: Any) -> str:
        record = record if isinstance(record, dict) else {}
        category = record.get("category_id")
        number = category if category in known and type(category) is int else numbering(category)
        name = str(known[number]) if number in known else f"category {show(category, 20)}"
        return f"{name} (crowd)" if means_crowd(record.get("iscrowd")) else name

    def labels(annotation: dict[str, Any]) -> list[str]:
        segments = annotation.get("segments_info", [annotation])
        return list(map(label, segments)) if isinstance(segments, list) else []

    return labels


def tally_of(raw: RawFile) -> Tally:
    """What a file holds."""
    labels = labels_of(raw)
    return Tally(len(raw.images), Counter(name for record in raw.annotations for name in labels(record)))


Action = Callable[[Correction, Group], str]
"""Mends the findings of a group -> what was done, in a few words; '' where nothing could be."""


def each(section: str, change: Callable[..., Any], done: str) -> Action:
    """The action that calls `change` with each entry; of annotations also with the size of their image."""

    def action(correction: Correction, group: Group) -> str:
        raw = correction.raw
        for row in group.rows:
            size = [raw.limits[row]] if section == "annotations" else []
            change(getattr(raw, section)[row], *size)
        return done

    return action


def drop(section: str, merged: bool = False) -> Action:
    """The action that leaves out the entries of a list.

    Args:
        merged: another entry stands for each.
    """

    def action(correction: Correction, group: Group) -> str:
        correction.drop(section, group.rows, group.kind.title, merged)
        return "dropped"

    return action
