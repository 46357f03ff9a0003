"""What a converter or `--fix` did to the pictures and objects of each split: before, after, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from doctor.report import count

MOST = 0.1  # the share of a split's pictures or objects that goes without being asked for


@dataclass
class Tally:
    """Pictures, and objects by the name of their class; crowds count as classes of their own."""

    pictures: int = 0
    objects: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.pictures + other.pictures, self.objects + other.objects)

    def __str__(self) -> str:
        total = sum(self.objects.values())
        classes = ", ".join(f"{name} {number}" for name, number in sorted(self.objects.items()))
        shown = f" ({classes})" if classes else ""
        return f"{count(self.pictures, 'picture')}, {count(total, 'object')}{shown}"


@dataclass
class Loss:
    """What a split lacks for one reason."""

    split: str
    reason: str
    tally: Tally
    merged: bool  # another entry stands for it, so that nothing is gone


@dataclass
class Summary:
    """What each split holds before and after, which must agree, but for the losses."""

    before: dict[str, Tally] = field(default_factory=dict)
    after: dict[str, Tally] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)  # one a split and reason
    notes: list[str] = field(default_factory=list)  # what else was done

    def lose(self, split: str, reason: str, tally: Tally, merged: bool = False) -> None:
        """Note what a split lacks, and why."""
        for loss in self.losses:
            if (loss.split, loss.reason, loss.merged) == (split, reason, merged):
                loss.tally += tally
                return
        self.losses.append(Loss(split, reason, tally, merged))

    def too_much(self) -> list[str]:
        """One line for each split of which more than MOST would be dropped; the reasons are named."""
        lines = []
        for split, before in self.before.items():
            gone = [loss for loss in self.losses if loss.split == split and not loss.merged]
            lost = sum((loss.tally for loss in gone), Tally())
            pictures, objects = lost.pictures, sum(lost.objects.values())
            total = sum(before.objects.values())
            if pictures > MOST * before.pictures or objects > MOST * total:
                reasons = "; ".join(f"{loss.reason}: {loss.tally}" for loss in gone)
                of_pictures = f"{pictures} of {count(before.pictures, 'picture')}"
                of_objects = f"{objects} of {count(total, 'object')}"
                lines.append(f"{split or 'the file'} would lose {of_pictures}, {of_objects} ({reasons})")
        return lines

    def lines(self) -> list[str]:
        """The summary as text; what the losses do not explain is said."""
        lines = list(self.notes)
        for split in dict.fromkeys([*self.before, *self.after]):
            before, after = self.before.get(split, Tally()), self.after.get(split, Tally())
            lines.append(f"{split or 'file'}: {before} before; {after} after")
            gone = [loss for loss in self.losses if loss.split == split]
            for loss in gone:
                verb = "merged" if loss.merged else "dropped"
                lines.append(f"    {verb}: {loss.tally}: {loss.reason}")
            expected = sum((loss.tally for loss in gone), after)
            differences = [("pictures", before.pictures - expected.pictures)]
            names = sorted(before.objects.keys() | expected.objects.keys())
            differences += [(name, before.objects[name] - expected.objects[name]) for name in names]
            lines += [f"    unexplained: {number:+d} {name}" for name, number in differences if number]
        return lines
