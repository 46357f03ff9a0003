"""What `doctor.check` found, grouped by kind and file: as text, as JSON, and as an exit status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from doctor.kinds import KINDS, NEEDED_BY_MASKS, Kind, Level

EXAMPLES = 10  # findings of a group that are shown
# Files of COCO's size hold a few faults that training survives: its own training set has two boxes without
# height among 860,000. A kind that is as rare as one in this many objects is noted, and no fault.
RARE = 20_000
_ORDER = {name: place for place, name in enumerate(KINDS)}


class Finding(NamedTuple):
    """What of the file is concerned, and the value found there; ids are None where there is none."""

    annotation_id: Any
    image_id: Any
    value: str


def text_finding(text: Any) -> Finding:
    """A finding that is told by a text alone."""
    return Finding(None, None, str(text))


@dataclass(frozen=True)
class Group:
    """All findings of a kind in an annotation file.

    `rows` has one entry a finding: places in a list of the file (which one, the kind tells), or other values
    by which `describe` and the correction know the place.
    """

    name: str  # of the kind, a key of doctor.kinds.KINDS
    file: Path
    rows: list[Any]
    describe: Callable[[Any], Finding]  # of an entry of `rows`
    level: Level  # of the kind, or NOTE where it is rare
    about: str = ""  # what else the correction has to know: which ids, which convention

    @property
    def kind(self) -> Kind:
        """What is said of the kind."""
        return KINDS[self.name]

    @property
    def count(self) -> int:
        """Number of findings."""
        return len(self.rows)

    def findings(self, limit: int | None = None) -> Iterator[Finding]:
        """The findings in the order of the file, the first `limit` of them."""
        return (self.describe(row) for row in self.rows[:limit])


@dataclass
class Report:
    """The findings on one or more annotation files.

    Attributes:
        files: the annotation files that were checked.
        groups: of findings, in the order in which they were found.
        summary: one line a file: what it holds.
        sampled: one line a file of which only some pictures were looked at.
        masks: masks are to be trained, so that what is wrong with them is an error.
    """

    files: list[Path] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    sampled: list[str] = field(default_factory=list)
    masks: bool = False

    def add(
        self,
        name: str,
        file: Path,
        rows: Sequence[Any] | np.ndarray,
        describe: Callable[[Any], Finding],
        among: int = 0,
        about: str = "",
    ) -> None:
        """Add a group; nothing where `rows` is empty.

        Args:
            among: how many objects the file has.
        """
        if len(rows):
            level = KINDS[name].level
            if level == Level.WARNING and len(rows) * RARE <= among:
                level = Level.NOTE
            if self.masks and name in NEEDED_BY_MASKS:
                level = Level.ERROR
            places = rows.tolist() if isinstance(rows, np.ndarray) else list(rows)
            self.groups.append(Group(name, file, places, describe, level, about))

    def tell(self, name: str, file: Path, value: str) -> None:
        """Add one finding on the file as a whole."""
        self.add(name, file, [value], text_finding)

    def doubts_boxes(self, file: Path) -> bool:
        """Whether the boxes of a file are written in another convention than COCO's."""
        return any(group.file == file and group.name.startswith("looks_") for group in self.groups)

    @property
    def faults(self) -> list[Group]:
        """The groups that are faults, worst first."""
        faults = [group for group in self.groups if group.level < Level.NOTE]
        return sorted(faults, key=lambda group: (group.level, _ORDER[group.name]))

    @property
    def fatal(self) -> list[Group]:
        """The faults with which training would stop or learn something wrong, worst first."""
        return [group for group in self.faults if group.level < Level.WARNING]

    @property
    def notes(self) -> list[Group]:
        """The groups that are no faults."""
        notes = [group for group in self.groups if group.level == Level.NOTE]
        return sorted(notes, key=lambda group: _ORDER[group.name])

    @property
    def status(self) -> int:
        """Exit status: 0 without faults, 1 with, 2 where a file is unusable."""
        levels = [group.level for group in self.groups]
        return 2 if Level.UNUSABLE in levels else 1 if self.faults else 0

    @property
    def tally(self) -> str:
        """How many faults there are, and of how many kinds."""
        kinds = f" of {count(len({group.name for group in self.faults}), 'kind')}" if self.faults else ""
        return f"{count(sum(group.count for group in self.faults), 'fault')}{kinds}"

    def lines(self) -> list[str]:
        """The report as text, worst first."""
        lines = [*self.summary, *self.sampled]
        for group in [*self.faults, *self.notes]:
            lines.append(f"\n{group.level.name.lower()}: {group.kind.title} ({group.count}) in {group.file}")
            lines.append(f"  {group.kind.why} {group.kind.advice}".rstrip())
            findings = list(group.findings(EXAMPLES))
            more = f"… and {group.count - EXAMPLES} more" if group.count > EXAMPLES else ""
            if group.level == Level.NOTE and all(one[:2] == (None, None) for one in findings):
                names = ", ".join(one.value for one in findings)  # in one line
                lines.append(f"    {names} {more}".rstrip())
                continue
            lines += [f"    {finding_line(finding)}" for finding in findings] + [f"    {more}"] * bool(more)
        notes_found = count(len(self.notes), "note")
        return [*lines, "", f"{self.tally}, {notes_found}: {', '.join(map(str, self.files))}"]

    def one_line(self) -> str:
        """The worst finding, and how many more there are, for an error message."""
        worst = (self.faults or self.notes)[0]
        others = sum(group.count for group in self.faults) - 1
        more = f" (and {count(others, 'fault')} more)" if others > 0 else ""
        finding = finding_line(next(worst.findings(1)))
        return f"{worst.file}: {worst.kind.title}: {finding}{more}. {worst.kind.advice}".strip()

    def to_json(self) -> dict[str, Any]:
        """Everything, not only the first findings of each kind, as JSON's types."""
        return {
            "status": self.status,
            "files": [str(file) for file in self.files],
            "groups": [
                {
                    "kind": group.name,
                    "level": group.level.name.lower(),
                    "title": group.kind.title,
                    "why": group.kind.why,
                    "advice": group.kind.advice,
                    "file": str(group.file),
                    "count": group.count,
                    "findings": [finding._asdict() for finding in group.findings()],
                }
                for group in [*self.faults, *self.notes]
            ],
        }


def finding_line(finding: Finding) -> str:
    """The finding in one line."""
    names = []
    if finding.annotation_id is not None:
        names.append(f"annotation id {finding.annotation_id!r}")
    if finding.image_id is not None:
        names.append(f"image id {finding.image_id!r}")
    return ": ".join(part for part in (", ".join(names), finding.value) if part)


def count(number: int, noun: str) -> str:
    """Number and noun, as in 1 fault, 2 faults."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
