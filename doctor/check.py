"""The checks of a data set, put together: every split with its annotation file and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datasets.layouts import LAYOUTS, PANOPTIC, find_layout, known_layouts, splits_below
from doctor.boxes import check_areas_and_crowds, check_boxes
from doctor.columns import RawFile, read_raw
from doctor.ids import check_categories, check_ids, compare_categories, note_classes
from doctor.masks import check_masks, measure
from doctor.panoptic import check_pngs, check_segments
from doctor.pictures import check_across, check_listing, check_names, check_pictures
from doctor.report import Report
from doctor.sources import Files, Source
from util.collector import paused_collector
from util.errors import UserError


def check_dataset(
    sources: Mapping[str, Source],
    num_classes: int | None = None,
    num_queries: int | None = None,
    decode: bool = True,
    headers: int = 0,
    masks: bool = False,
) -> Report:
    """All checks of the splits of a data set.

    Args:
        sources: name of the split -> its files; 'train' and 'val' are compared with each other.
        num_classes: of the model, highest category id + 1; None: any id of 0 or more will do.
        num_queries: of the model; None: images may hold any number of objects.
        decode: read every picture and panoptic PNG too.
        headers: where they are not decoded, read at least the headers of so many pictures of each file:
            their size and their orientation.
        masks: masks are to be trained, so that objects need good ones.
    """
    report = Report(masks=masks)
    raws = {split: read_raw(source.annotations, report, split) for split, source in sources.items()}
    readable = {split: raw for split, raw in raws.items() if raw is not None}
    files = Files() if decode else Files(headers) if headers else None
    check_raw(readable, sources, report, num_classes, num_queries, files)
    return report


def check_raw(
    raws: Mapping[str, RawFile],
    sources: Mapping[str, Source],
    report: Report,
    num_classes: int | None,
    num_queries: int | None,
    files: Files | None,
) -> None:
    """check_dataset on files that have been read.

    Args:
        files: pictures and PNGs that have been read, to which others are added; None: none is opened.
    """
    counts: dict[str, dict[str, int]] = {}
    digests: dict[str, dict[bytes, int]] = {}
    for split, raw in raws.items():
        source = sources[split]
        with paused_collector():
            check_ids(raw, report)
            check_listing(raw, report)
            check_categories(raw, report, num_classes)
            if raw.panoptic:
                check_segments(raw, report)
            else:
                extents, faults = measure(raw)
                check_boxes(raw, report, extents)
                check_areas_and_crowds(raw, report)
                check_masks(raw, report, extents, faults, scored=split == "val")
            counts[split] = note_classes(raw, report, num_queries)
        if source.images is not None:
            if not raw.panoptic:  # there, pictures may end in .jpg where the file says .png
                check_names(raw, report, source)
            if files is not None:
                digests[split] = check_pictures(raw, report, source, files.pictures, files.headers)
        if source.pngs is not None and files is not None and not files.headers and raw.panoptic:
            check_pngs(raw, report, source.pngs, files.maps)
    pairs = [(f"{form}train", f"{form}{other}") for form in ("", "panoptic ") for other in ("val", "test")]
    for one, other in pairs:
        if {one, other} <= raws.keys():
            compare_categories(report, raws[one], raws[other], counts[one], counts[other], split=other)
        if {one, other} <= digests.keys():
            check_across(report, (raws[one], digests[one]), (raws[other], digests[other]))


def find_sources(
    path: str | Path, dataset_file: str | None = None, images: str | None = None
) -> dict[str, Source]:
    """The annotation files at a path, by split.

    Args:
        path: an annotation file, or a data set's folder in one of datasets.layouts.
        dataset_file: coco, custom or coco_panoptic; None: instances and panoptic files, whatever is there.
        images: folder of the pictures of an annotation file.

    Raises:
        UserError: there is nothing at the path, or a folder of an unknown layout.
    """
    root = Path(path)
    if root.is_file():
        return {"": Source(root, Path(images) if images else None)}
    if not root.is_dir():
        raise UserError(f"{root}: there is no such file or folder")
    found: dict[str, Source] = {}
    if dataset_file != "coco_panoptic":
        layout = find_layout(root, dataset_file or "coco")
        splits = splits_below(root, layout) if layout else {}
        found = {name: Source(split.annotations, split.images) for name, split in splits.items()}
    if dataset_file in (None, "coco_panoptic"):
        for name, split in splits_below(root, PANOPTIC).items():
            pictures = None if name in found else root / LAYOUTS["coco"].splits[name][0]
            found[f"panoptic {name}"] = Source(split.annotations, pictures, split.images)
    if not found:
        there = ", ".join(sorted(entry.name for entry in root.iterdir())[:10]) or "nothing"
        layouts = known_layouts("train")
        raise UserError(f"{root}: no annotation files of a known layout; it holds {there}. {layouts}")
    return found
