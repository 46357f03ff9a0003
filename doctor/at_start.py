"""The doctor at the start of a training: what needs no pixels, said in a few lines or refused in one.

The headers of pictures are read, of large sets those of a sample.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from datasets.layouts import find_split
from doctor.report import finding_line
from doctor.sources import Source
from util.errors import UserError, warn

MODES = ("warn", "error", "off")
HEADERS = 5_000  # pictures of a file whose headers are read, about a second's worth
LARGE = 32 << 20  # bytes of annotations; fewer are checked within a second
_SHOWN = 5  # kinds of faults


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

    Raises:
        UserError: a file is missing; training would stop, or learn something wrong; with 'error', any fault.
    """
    if mode == "off" or dataset_file not in ("coco", "custom", "coco_panoptic"):
        return
    from doctor.check import check_dataset  # what is not checked needs none of it
    from doctor.fix import MENDED

    sources = training_sources(dataset_file, coco_path, panoptic_path)
    files = (source.annotations for source in sources.values())
    if sum(file.stat().st_size for file in files if file.is_file()) >= LARGE:
        print("data: checking the annotation files (--check_data off leaves it out)", flush=True)
    report = check_dataset(sources, num_classes, decode=False, headers=HEADERS, masks=masks)
    for line in report.sampled:
        print(f"data: {line}", flush=True)
    faults, fatal = report.faults, {group.name for group in report.fatal}
    if not faults:
        return
    mended = fatal <= MENDED if fatal else any(group.name in MENDED for group in faults)
    folder = panoptic_path if dataset_file == "coco_panoptic" else coco_path
    flags = [] if num_classes is None else ["--num_classes", str(num_classes)]
    more = shlex.join(["python", "-m", "doctor", str(folder), *flags, *["--masks"][: int(masks)]])
    more += f" shows all{', and with --fix NEW_FOLDER writes a corrected copy' if mended else ''}"
    if fatal or mode == "error":
        raise UserError(f"{'' if fatal else '--check_data error: '}{report.one_line()} ({more})")
    for group in faults[:_SHOWN]:
        first = finding_line(next(group.findings(1)))
        warn(f"{group.file}: {group.kind.title} ({group.count}), first {first}. {group.kind.why}")
    if len(faults) > _SHOWN:
        warn(f"and {len(faults) - _SHOWN} more kinds of faults")
    warn(more)


def training_sources(
    dataset_file: str, coco_path: str | Path | None, panoptic_path: str | Path | None = None
) -> dict[str, Source]:
    """The files that training reads, by split; see doctor.check.find_sources for all that a folder holds.

    Raises:
        UserError: one is missing; the flag is named.
    """
    sources = {}
    for name in ("train", "val"):
        if dataset_file == "coco_panoptic":
            from datasets.panoptic_annotations import find_panoptic_files

            images, pngs, annotations = find_panoptic_files(coco_path, panoptic_path, name)
            sources[f"panoptic {name}"] = Source(annotations, images, pngs)
        else:
            split = find_split(coco_path, name, dataset_file)
            sources[name] = Source(split.annotations, split.images)
    return sources
