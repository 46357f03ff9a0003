"""Writing a corrected copy of a data set: what `doctor.check` finds is mended or left out, and listed.

The original is never written to: all writing goes through doctor.new_folder. Pictures are linked, not copied.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from datasets.images import picture_name
from doctor import mend_ids, mend_objects, mend_pictures
from doctor.check import check_raw
from doctor.columns import SECTIONS, RawFile, means_crowd, read_raw
from doctor.correction import Action, Correction, drop, each, tally_of
from doctor.new_folder import NewFolder, names_inside
from doctor.report import EXAMPLES, Group, Report, finding_line
from doctor.sources import Files, Source
from doctor.splits import split_of
from doctor.summary import Summary
from util.errors import UserError

Changes = dict[str, list[str]]  # what was done -> the findings that it was done about
# Kind of fault -> what is done about it, in the order in which that has to be: where anything of a stage is
# found, the rest waits for the next round. Wrong boxes come before areas, by which boxes are judged, are
# computed, and before objects are dropped.
_CROWD = each("annotations", lambda one, _: one.update(iscrowd=int(means_crowd(one.get("iscrowd")))),
              "1 where it said so, 0 otherwise")  # fmt: skip
_EMPTIED = each("annotations", lambda one, _: one.update(segmentation=[]), "emptied the segmentation")
_FEWER = each("annotations", mend_objects.keep_good_polygons, "dropped the polygon")
_CLAMPED = each("annotations", mend_objects.clamp_polygons, "clamped the points to the image")
_TURNED = each("images", lambda one: one.update(width=one["height"], height=one["width"]),
               "stated the other frame: swapped width and height")  # fmt: skip
STAGES: tuple[dict[str, Action], ...] = (
    {"id_type": mend_ids.number_everything, "file_name_missing": mend_pictures.drop_images},
    {
        "duplicate_image_id": mend_ids.merge_one_id,
        "duplicate_category_id": drop("categories"),
        "duplicate_annotation_id": mend_ids.new_annotation_ids,
        "image_missing": mend_pictures.find_or_drop,
        "bbox_missing": mend_objects.box_from_elsewhere,
        "bbox_malformed": mend_objects.box_from_elsewhere,
        "bbox_not_finite": mend_objects.box_from_elsewhere,
    },
    {
        "exif_other_frame": _TURNED,
        "image_twice": mend_ids.merge_one_picture,
        "categories_differ": mend_ids.take_ids_of_train,
        "looks_xyxy": mend_objects.convert_boxes,
        "looks_centred": mend_objects.convert_boxes,
        "looks_normalised": mend_objects.convert_boxes,
        "bbox_wrong_by_mask": mend_objects.box_of_mask,
    },
    {
        "annotation_id_zero": mend_ids.new_annotation_ids,
        "dangling_image_id": drop("annotations"),
        "dangling_category_id": mend_ids.drop_uncategorised,
        "category_range": mend_ids.move_categories,
        "bbox_negative": each("annotations", mend_objects.swap_corners, "swapped the corners"),
        "bbox_no_size": mend_objects.box_of_mask,
        "bbox_outside": drop("annotations"),
        "bbox_over_edge": each("annotations", mend_objects.clamp_box, "clamped to the image"),
        "area_malformed": mend_objects.compute_area,
        "area_wrong": mend_objects.compute_area,
        "iscrowd_missing": _CROWD,
        "iscrowd_malformed": _CROWD,
        "duplicate_object": drop("annotations", merged=True),
        "segmentation_malformed": _EMPTIED,
        "rle_misfit": _EMPTIED,
        "polygon_points": _FEWER,
        "polygon_not_finite": _FEWER,
        "polygon_far": _FEWER,
        "polygon_outside": _CLAMPED,
        "image_unreadable": mend_pictures.drop_images,
        "image_too_large": mend_pictures.drop_images,
        "image_truncated": mend_pictures.drop_images,
        "image_size": mend_pictures.take_size,
        "image_size_missing": mend_pictures.take_size,
        "image_in_both_splits": mend_pictures.drop_if_asked,
        "isthing_missing": each("categories", lambda record: record.update(isthing=1), "called things"),
        "segments_malformed": mend_pictures.drop_segments,
        "segment_id": mend_pictures.drop_segments,
        "image_without_segments": drop("images"),
        "png_unreadable": mend_pictures.drop_images_of,
        "png_size": mend_pictures.drop_images_of,
        "png_not_in_json": mend_pictures.paint_void,
        "json_not_in_png": mend_pictures.drop_segments,
    },
    {"no_segmentation": drop("annotations")},
)
ACTIONS = {name: action for stage in STAGES for name, action in stage.items()}
MENDED = {*ACTIONS, "broken_record"}  # the kinds of faults that a corrected copy is without
_ROUNDS = 12  # mending one fault may uncover another: a picture dropped, an object without image


def write_corrected(
    sources: Mapping[str, Source],
    out: str | Path,
    num_classes: int | None = None,
    decode: bool = True,
    masks: bool = False,
    drop: bool = False,
) -> list[str]:
    """Write a corrected copy in COCO's layout to a new folder -> lines that list what was done.

    Args:
        out: the new folder; CHANGES.txt in it lists every change.
        decode: read the pictures too; False: only the annotations are corrected.
        masks: masks are to be trained: objects without one are dropped, where others of the file have one.
        drop: drop whatever cannot be mended, however much it is.

    Raises:
        UserError: the folder holds something already; more than a tenth of a split's pictures or objects
            would be dropped, without `drop`; or all of them.
    """
    folder = NewFolder(out)
    first, summary = Report(), Summary()
    read = {split: read_raw(source.annotations, first, split) for split, source in sources.items()}
    raws = {split: raw for split, raw in read.items() if raw is not None}
    lost = [f"{s.annotations}: cannot be corrected" for split, s in sources.items() if split not in raws]
    if not raws:
        return lost
    changes: Changes = {}
    summary.before = {split: tally_of(raw) for split, raw in raws.items()}
    for group in first.groups:
        if group.name == "broken_record":
            findings = [finding.value for finding in group.findings()]
            changes[f"{group.file}: {group.kind.title}: left out"] = findings
            summary.notes += [f"left out: {finding}" for finding in findings]
    files = Files() if decode else None
    report = _correct(raws, sources, summary, changes, num_classes, files, masks, drop)
    for split, raw in raws.items():
        total = sum(summary.before[split].objects.values())
        if not raw.images or (total and not raw.annotations):
            gone = [f"{loss.reason}: {loss.tally}" for loss in summary.losses if loss.split == split]
            raise UserError(
                f"--fix: nothing of {raw.path} would be left ({'; '.join(gone)}): mend the source"
            )
    if not drop and (lines := summary.too_much()):
        more = "nothing was written; mend that, or pass --drop to leave it out"
        raise UserError(f"--fix: {'; '.join(lines)}: {more}")
    write_set(folder, raws, sources, files)
    summary.after = {split: tally_of(raw) for split, raw in raws.items()}
    said = [*lost, "", *summary.lines()]
    folder.write("CHANGES.txt", "\n".join([*_listing(changes, None), *said, ""]))
    copy = f"the corrected copy in {folder.path}{', which lacks what cannot be corrected,' if lost else ''}"
    lines = [*_listing(changes, EXAMPLES), *said, f"{copy} {_outcome(report)}"]
    missing = [split for split in ("train", "val") if not (folder.path / f"{split}2017").exists()]
    if missing and not lost and not report.faults and not any(raw.panoptic for raw in raws.values()):
        draws = f"python -m doctor.convert coco {shlex.quote(str(folder.path))} OUT"
        lines.append(f"training needs {missing[0]} too: {draws} draws it from these pictures")
    return lines


def _outcome(report: Report) -> str:
    """What the checks say of the corrected copy."""
    if not report.faults:
        return "passes the checks"
    kinds: dict[str, list[Group]] = {}
    for group in report.faults:
        kinds.setdefault(group.name, []).append(group)
    left = []
    for groups in kinds.values():
        count, first = sum(group.count for group in groups), finding_line(next(groups[0].findings(1)))
        left.append(f"{groups[0].kind.title} ({count}), first {first}. {groups[0].kind.advice}")
    return f"still has {report.tally}, which --fix cannot mend: {' '.join(left)}"


def _correct(
    raws: dict[str, RawFile],
    sources: Mapping[str, Source],
    summary: Summary,
    changes: Changes,
    num_classes: int | None,
    files: Files | None,
    masks: bool,
    drop: bool,
) -> Report:
    """Mend the annotations in `raws`, which are replaced, and list the changes -> the report on the rest."""
    tried: set[tuple[Path, str]] = set()  # in vain
    for last in [False] * _ROUNDS + [True]:
        report = Report(files=[raw.path for raw in raws.values()], masks=masks)
        for split, raw in raws.items():
            for section in SECTIONS:
                if not getattr(raw, section) and not (split.endswith("test") and section == "annotations"):
                    report.tell("empty_section", raw.path, f"'{section}' is empty: all of it was dropped")
        if not report.faults:
            check_raw(raws, sources, report, num_classes, None, files)
        groups = [g for g in report.faults if g.name in ACTIONS and (g.file, g.name) not in tried]
        if last or not groups or report.status == 2:
            break
        stage = next(names for names in STAGES if any(group.name in names for group in groups))
        for split, raw in list(raws.items()):
            correction = Correction(split, raw, raws, sources[split], files, num_classes, drop)
            for group in groups:
                if group.file == raw.path and group.name in stage:
                    findings = [finding_line(finding) for finding in group.findings()]
                    if done := ACTIONS[group.name](correction, group):
                        changes.setdefault(f"{raw.path}: {group.kind.title}: {done}", []).extend(findings)
                    else:
                        tried.add((group.file, group.name))
            raws[split] = correction.result(summary)
    return report


def _listing(changes: Changes, limit: int | None) -> list[str]:
    """The changes as text, the first `limit` of each kind."""
    lines = []
    for what, findings in changes.items():
        lines += [f"{what} ({len(findings)})", *(f"    {finding}" for finding in findings[:limit])]
        if limit is not None and len(findings) > limit:
            lines.append(f"    … and {len(findings) - limit} more, all of them in CHANGES.txt")
    return lines


def write_set(
    folder: NewFolder, raws: Mapping[str, RawFile], sources: Mapping[str, Source], files: Files | None = None
) -> None:
    """Write annotation files in COCO's layout, and links to the pictures and PNGs that they name.

    Args:
        raws: name of the split -> its annotations; pictures get new names where theirs lead elsewhere.
        files: what stands in place of some PNGs.
    """
    by_split: dict[str, list[str]] = {}
    for name in raws:
        split = name.removeprefix("panoptic ") or split_of(sources[name].annotations.stem) or "train"
        by_split.setdefault(split, []).append(name)
    for split, names in by_split.items():
        found = {
            name: [_picture(sources[name], one, raws[name]) for one in raws[name].images] for name in names
        }
        pairs = [(path, sources[name].images) for name in names for path in found[name] if path is not None]
        inside = names_inside(pairs)
        for picture, new in inside.items():
            folder.link(picture, f"{split}2017/{new}")
        for name in names:
            raw, pngs = raws[name], sources[name].pngs
            form = "panoptic" if raw.panoptic else "instances"
            for record, path in zip(raw.images, found[name], strict=True):
                if path is not None:
                    new = inside[path]
                    ending = os.path.splitext(picture_name(record))[1]  # panoptic files keep theirs
                    record["file_name"] = os.path.splitext(new)[0] + ending if raw.panoptic else new
            if raw.panoptic and pngs is not None:
                maps = [pngs / str(record.get("file_name")) for record in raw.annotations]
                called = names_inside((path, pngs) for path in maps)
                for record, path in zip(raw.annotations, maps, strict=True):
                    record["file_name"] = called[path]
                    place = f"panoptic_{split}2017/{called[path]}"
                    if files is not None and path in files.painted:
                        folder.write(place, files.painted[path])
                    elif path.is_file():
                        folder.link(path, place)
            content = {**raw.rest, **{section: getattr(raw, section) for section in SECTIONS}}
            folder.write(f"annotations/{form}_{split}2017.json", json.dumps(content))


def _picture(source: Source, record: dict, raw: RawFile) -> Path | None:
    """The picture of an image; panoptic files may call it by another ending."""
    name = picture_name(record)
    path = source.picture(name)
    if path is None and raw.panoptic and isinstance(name, str):
        others = (source.picture(os.path.splitext(name)[0] + ending) for ending in (".jpg", ".png"))
        path = next(filter(None, others), None)
    return path
