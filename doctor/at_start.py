"""The doctor at the start of a training: what needs no pixels, said in a few lines or refused in one.

The headers of pictures are read, of large sets those of a sample.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.layouts import find_split
from doctor.report import Report, finding_line
from doctor.sources import Source
from util.errors import UserError, warn

MODES = ("warn", "error", "off")
HEADERS = 5_000  # pictures of a file whose headers are read, about a second's worth
LARGE = 32 << 20  # bytes of annotations; fewer are checked within a second
_SHOWN = 5  # kinds of faults


@dataclass(frozen=True)
class Verdict:
    """What the doctor says of a data set.

    Attributes:
        refusal: the worst fault with which training would stop or learn something wrong; '' where none is.
        worst: the worst fault of any kind; '' where none is.
        lines: of the faults that training survives, one a kind.
        mended: `--fix` mends all that is refused; where nothing is, some of the other faults.
    """

    refusal: str
    worst: str
    lines: list[str]
    mended: bool


def check_at_start(
    mode: str,
    dataset_file: str,
    coco_path: str | Path | None,
    panoptic_path: str | Path | None = None,
    num_classes: int | None = None,
    masks: bool = False,
) -> None:
    """Check a data set that is about to be trained on; warnings go to stderr.

    Args:
        mode: 'warn': faults that training survives are listed; 'error': they are refused too; 'off': none
            is looked for.
        dataset_file: 'coco', 'custom' or 'coco_panoptic'; others, such as the built-in pictures, are not
            checked.
        coco_path, panoptic_path: folders of the data set, as main's flags name them.
        num_classes: of the model, None if it is inferred.
        masks: masks are to be trained.

    Raises:
        UserError: a file is missing; training would stop, or learn something wrong; with 'error', any fault.
    """
    if mode == "off" or dataset_file not in ("coco", "custom", "coco_panoptic"):
        return
    sources = training_sources(dataset_file, coco_path, panoptic_path)
    found = _verdict(sources, num_classes, masks)
    folder = panoptic_path if dataset_file == "coco_panoptic" else coco_path
    flags = [] if num_classes is None else ["--num_classes", str(num_classes)]
    command = shlex.join(["python", "-m", "doctor", str(folder), *flags, *["--masks"][: int(masks)]])
    mend = ", and with --fix NEW_FOLDER writes a corrected copy" if found.mended else ""
    more = f"{command} shows all{mend}"
    if found.refusal:
        raise UserError(f"{found.refusal} ({more})")
    if mode == "error" and found.worst:
        raise UserError(f"--check_data error: {found.worst} ({more})")
    for line in found.lines:
        warn(line)
    if found.lines:
        warn(more)


def training_sources(
    dataset_file: str, coco_path: str | Path | None, panoptic_path: str | Path | None = None
) -> dict[str, Source]:
    """The files that training reads, by split; see doctor.check.find_sources for all that a folder holds.

    Raises:
        UserError: one is missing; the flag is named.
    """
    if dataset_file != "coco_panoptic":
        splits = {name: find_split(coco_path, name, dataset_file) for name in ("train", "val")}
        return {name: Source(split.annotations, split.images) for name, split in splits.items()}
    from datasets.panoptic_annotations import find_panoptic_files

    sources = {}
    for name in ("train", "val"):
        images, pngs, annotations = find_panoptic_files(coco_path, panoptic_path, name)
        sources[f"panoptic {name}"] = Source(annotations, images, pngs)
    return sources


def _verdict(sources: Mapping[str, Source], num_classes: int | None, masks: bool) -> Verdict:
    from doctor.check import check_dataset

    if sum(map(_size, sources.values())) >= LARGE:
        print("data: checking the annotation files (--check_data off leaves it out)", flush=True)
    report = check_dataset(sources, num_classes, decode=False, headers=HEADERS, masks=masks)
    return summarise(report)


def summarise(report: Report) -> Verdict:
    """A report in a few lines."""
    from doctor.fix import MENDED

    faults = report.faults
    fatal = {group.name for group in report.fatal}
    mended = fatal <= MENDED if fatal else any(group.name in MENDED for group in faults)
    lines = []
    for group in faults[:_SHOWN]:
        first = finding_line(next(group.findings(1)))
        lines.append(f"{group.file}: {group.kind.title} ({group.count}), first {first}. {group.kind.why}")
    if len(faults) > _SHOWN:
        lines.append(f"and {len(faults) - _SHOWN} more kinds of faults")
    worst = report.one_line() if faults else ""
    return Verdict(worst if fatal else "", worst, lines, mended)


def _size(source: Source) -> int:
    try:
        return source.annotations.stat().st_size
    except OSError:
        return 0
