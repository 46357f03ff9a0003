"""Writing a corrected copy of a data set: what `doctor.check` finds is mended or left out, and listed.

The original is never written to. Pictures are linked, not copied, but for those that have to change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from doctor import mend_ids, mend_objects, mend_pictures
from doctor.check import check_raw
from doctor.columns import SECTIONS, RawFile, read_raw
from doctor.correction import Correction, Target
from doctor.links import link
from doctor.report import EXAMPLES, Group, Report, finding_line
from doctor.sources import Files, Source
from util.errors import UserError

ACTIONS = {**mend_ids.ACTIONS, **mend_objects.ACTIONS, **mend_pictures.ACTIONS}
MENDED = {*ACTIONS, "broken_record"}  # the kinds of faults that a corrected copy is without
# What has to be mended first; where any of it is found, the rest waits for the next round.
STAGES = {
    "id_type": 0,
    "file_name_missing": 0,
    "duplicate_image_id": 1,
    "duplicate_category_id": 1,
    "duplicate_annotation_id": 1,
    "image_missing": 1,
    "bbox_missing": 1,
    "bbox_malformed": 1,
    "bbox_not_finite": 1,
    "image_twice": 2,
    "categories_differ": 2,
    "looks_xyxy": 2,
    "looks_centred": 2,
    "looks_normalised": 2,
    "bbox_wrong_by_mask": 2,  # before areas, by which boxes are judged, are computed, and objects are dropped
    "no_segmentation": 4,
}
_USUAL_STAGE = 3
_ROUNDS = 12  # mending one fault may uncover another: a picture dropped, an object without image
_ENDINGS = ("", ".jpg", ".png")  # of the pictures of panoptic files, which the file may call otherwise


def write_corrected(
    sources: Mapping[str, Source],
    out: str | Path,
    num_classes: int | None = None,
    decode: bool = True,
    masks: bool = False,
) -> list[str]:
    """Write a corrected copy in COCO's layout to a new folder -> lines that list what was done.

    Args:
        sources: name of the split -> its files.
        out: the new folder; CHANGES.txt in it lists every change.
        num_classes: of the model, None if it does not matter.
        decode: read the pictures too; False: only the annotations are corrected.
        masks: masks are to be trained: objects without one are dropped, where others of the file have one.

    Raises:
        UserError: the folder holds something already.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--fix {folder}: it holds something already; name a new folder")
    first = Report()
    read = {split: read_raw(source.annotations, first) for split, source in sources.items()}
    raws = {split: raw for split, raw in read.items() if raw is not None}
    lost = [f"{s.annotations}: cannot be corrected" for split, s in sources.items() if split not in raws]
    if not raws:
        return lost
    targets = {split: _target(folder, split, sources[split]) for split in raws}
    for place in {t.annotations.parent for t in targets.values()}:
        place.mkdir(parents=True, exist_ok=True)
    changes: dict[str, list[str]] = {}
    for group in first.groups:
        if group.name == "broken_record":
            _add(changes, f"{group.file}: {group.kind.title}: left out", [f.value for f in group.findings()])
    files = Files() if decode else None
    report = _correct(raws, sources, targets, changes, num_classes, files, masks)
    for split, raw in raws.items():
        _write(raw, sources[split], targets[split])
    (folder / "CHANGES.txt").write_text("\n".join([*lost, *_listing(changes, None), ""]), encoding="utf-8")
    copy = f"the corrected copy in {folder}{', which lacks what cannot be corrected,' if lost else ''}"
    return [*lost, *_listing(changes, EXAMPLES), f"{copy} {_outcome(report)}"]


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


def _target(folder: Path, split: str, source: Source) -> Target:
    name = split.removeprefix("panoptic ")
    if not name:  # a file by itself
        pictures = source.images.name if source.images else "images"
        return Target(folder / source.annotations.name, folder / pictures, folder / "panoptic")
    form = "panoptic" if split.startswith("panoptic ") else "instances"
    file = folder / "annotations" / f"{form}_{name}2017.json"
    return Target(file, folder / f"{name}2017", folder / f"panoptic_{name}2017")


def _correct(
    raws: dict[str, RawFile],
    sources: Mapping[str, Source],
    targets: Mapping[str, Target],
    changes: dict[str, list[str]],
    num_classes: int | None,
    files: Files | None,
    masks: bool,
) -> Report:
    """Mend the annotations in `raws`, which are replaced, and list the changes -> the report on the rest."""
    tried: set[tuple[Path, str]] = set()  # in vain
    for _ in range(_ROUNDS):
        report = _check(raws, sources, num_classes, files, masks)
        groups = [g for g in report.faults if g.name in ACTIONS and (g.file, g.name) not in tried]
        if not groups or report.status == 2:
            return report
        stage = min(STAGES.get(group.name, _USUAL_STAGE) for group in groups)
        for split, raw in list(raws.items()):
            correction = Correction(raw, raws, sources[split], targets[split], files, num_classes)
            for group in groups:
                if group.file == raw.path and STAGES.get(group.name, _USUAL_STAGE) == stage:
                    findings = [finding_line(finding) for finding in group.findings()]
                    if done := ACTIONS[group.name](correction, group):
                        _add(changes, f"{raw.path}: {group.kind.title}: {done}", findings)
                    else:
                        tried.add((group.file, group.name))
            raws[split] = correction.result()
    return _check(raws, sources, num_classes, files, masks)


def _check(
    raws: Mapping[str, RawFile],
    sources: Mapping[str, Source],
    num_classes: int | None,
    files: Files | None,
    masks: bool,
) -> Report:
    report = Report(files=[raw.path for raw in raws.values()], masks=masks)
    for raw in raws.values():
        for section in SECTIONS:
            if not getattr(raw, section):
                report.tell("empty_section", raw.path, f"'{section}' is empty: all of it was dropped")
    if not report.faults:
        check_raw(raws, sources, report, num_classes, None, files)
    return report


def _add(changes: dict[str, list[str]], what: str, findings: list[str]) -> None:
    changes.setdefault(what, []).extend(findings)


def _listing(changes: Mapping[str, list[str]], limit: int | None) -> list[str]:
    """The changes as text, the first `limit` of each kind."""
    lines = []
    for what, findings in changes.items():
        lines += [f"{what} ({len(findings)})", *(f"    {finding}" for finding in findings[:limit])]
        if limit is not None and len(findings) > limit:
            lines.append(f"    … and {len(findings) - limit} more, all of them in CHANGES.txt")
    return lines


def _write(raw: RawFile, source: Source, target: Target) -> None:
    """The annotation file, and links to the pictures and PNGs that it names."""
    content = {**raw.rest, **{section: getattr(raw, section) for section in SECTIONS}}
    target.annotations.write_text(json.dumps(content), encoding="utf-8")
    names = [name for name in raw.column("images", "file_name") if isinstance(name, str)]
    if source.images is not None:
        endings = _ENDINGS if raw.panoptic else _ENDINGS[:1]
        for name in names:
            for ending in endings:
                path = Path(name).with_suffix(ending) if ending else Path(name)
                link(source.images / path, target.images / path)
    if source.pngs is not None:
        for name in raw.column("annotations", "file_name"):
            link(source.pngs / str(name), target.pngs / str(name))
