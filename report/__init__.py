"""A training report: `report.html` in the run's folder, one file that a browser shows without a network.

It is written again after every epoch, from log.txt and from what the evaluation kept. Nothing here draws
random numbers or talks to other processes, and a fault is a warning: no run ends because of its report.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from report.curves import curves, headline
from report.html import tag
from report.mistakes import DEFAULT_THRESHOLD, count, match
from report.page import Section, page
from report.pictures import EmbeddedPicture, read_picture
from report.sections import Shown, mistakes_section, pictures_section
from report.source import Region, ReportSource
from report.tables import class_table, data_table, flag_tables
from run.records import RunRecords
from run.summary import Split, splits_of
from util.errors import UserError, warn
from util.files import write_whole
from util.flags import get_args_parser
from util.machine import get_sha, package_versions
from util.random_state import random_state_kept
from util.run_log import read_log

PICTURES = 16
MOST_DETECTIONS = 60  # in a picture
MOST_IMAGES = 5000  # that mistakes are looked for in, so that this takes a second at most
CURVES_NOTE = "Over epochs. Values show under the pointer, or epoch by epoch with the arrow keys."


class RunReport:
    """Writes the report of one run.

    Args:
        folder: the run's --output_dir.
        categories: id -> name.
        defaults: of the flags; those that differ are listed first.
        board: a SummaryWriter of TensorBoard that gets the pictures and the figures of classes too, or None.
        name: of the file.
    """

    def __init__(
        self,
        folder: Path,
        source: ReportSource,
        categories: Mapping[int, str],
        splits: Sequence[Split],
        args: Mapping[str, Any],
        defaults: Mapping[str, Any],
        board: Any = None,
        name: str = "report.html",
    ):
        self.folder, self.source, self.board, self.name = folder, source, board, name
        self.categories, self.splits = dict(categories), list(splits)
        self.args, self.defaults = dict(args), dict(defaults)
        # They are the same in every epoch.
        self._pictures: dict[int, tuple[EmbeddedPicture, list[Region]]] = {}

    def write(self, evaluator: Any, lines: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write the page; whatever goes wrong is a warning.

        Args:
            evaluator: the CocoEvaluator of the newest epoch, after `accumulate`; None without boxes.
            lines: of the log, the newest last; left out, those of log.txt. Curves need their `epoch`.
        """
        try:
            # Reading pictures may draw, and a resumed run does not write again what is written already.
            with random_state_kept():
                lines = read_log(self.folder / "log.txt") if lines is None else lines
                write_whole(self.folder / self.name, self.page(evaluator, lines))
        except Exception as error:
            reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            warnings.warn(f"{self.folder / self.name} is not up to date: {reason}", stacklevel=2)

    def page(self, evaluator: Any, lines: Sequence[Mapping[str, Any]]) -> str:
        """The page as HTML; arguments as of `write`."""
        both = self.source.boxes(evaluator, MOST_IMAGES)
        matches = None if both is None else match(*both)
        threshold = DEFAULT_THRESHOLD if matches is None else matches.threshold
        counts = {} if both is None or matches is None else count(*both, matches)
        figures = self.source.class_figures(evaluator)
        ids = self.source.image_ids(PICTURES)
        paths = {i: self.source.picture_file(i) for i in ids}
        for i in ids:
            if i not in self._pictures:
                picture = read_picture(paths[i], self.source.stated_size(i), self.source.white_level)
                self._pictures[i] = picture, self.source.truth(i)
        found = self.source.found(ids, evaluator, MOST_DETECTIONS)
        shown = [Shown(f"{paths[i].name}, id {i}", *self._pictures[i], found[i]) for i in ids]
        if self.board is not None:
            from report.tensorboard import add_classes, add_pictures

            epoch = lines[-1].get("epoch", 0)
            add_classes(self.board, epoch, figures, self.categories)
            add_pictures(self.board, epoch, shown, self.categories, threshold)
            self.board.flush()
        charts = curves([line for line in lines if "epoch" in line])
        table = class_table(self.categories, self.splits, figures, counts)
        note = "Figures of the newest evaluation. A click on a column's title sorts by it."
        if counts:
            note += f" Precision and recall at IoU 0.5 are of detections from a score of {threshold:.2f}"
            note += ", where F1 over all classes is best." if any(c.right for c in counts.values()) else "."
            note += self._limit()
        sections = [
            Section("Curves", "curves", CURVES_NOTE, tag("div", *charts, class_="charts") if charts else ""),
            Section("Classes", "classes", note, table),
            pictures_section(shown, self.categories, threshold),
        ]
        if both is not None and matches is not None:
            mistakes = mistakes_section(*both, matches, self.categories, self.source)
            sections.append(mistakes._replace(note=mistakes.note + self._limit()))
        packages = ", ".join(f"{name} {version}" for name, version in package_versions().items())
        sections += [
            Section("Data", "data", "", data_table(self.splits)),
            Section("Flags", "flags", f"{get_sha()}. {packages}.", flag_tables(self.args, self.defaults)),
        ]
        labels = {*self.categories, *(r.label for one in shown for r in (*one.truth, *one.found))}
        kind = "evaluation" if self.args.get("eval") else "training"
        title = f"{self.folder.resolve().name}: {kind} report"
        remarks = [f"Written {datetime.now():%Y-%m-%d %H:%M}."]
        if "epoch" in lines[-1]:
            done = f"{len(lines)} of {self.args['epochs']} epochs are trained and evaluated"
            remarks.insert(0, f"{done}; the newest is epoch {lines[-1]['epoch']}.")
        return page(title, remarks, headline(lines), sections, labels)

    def _limit(self) -> str:
        """To which images figures of single detections are limited."""
        limited = self.splits[-1].images > MOST_IMAGES
        return f" They are counted in the first {MOST_IMAGES:,} images." if limited else ""


def build_report(
    args: Namespace,
    records: RunRecords,
    categories: dict[int, str],
    train_loader: DataLoader | None,
    val_loader: DataLoader,
) -> RunReport | None:
    """What writes a run's report.html, for an evaluation alone eval.html; None where pictures are unknown.

    Args:
        records: of a process that writes.
        train_loader, val_loader: of the splits; the former None for an evaluation alone.
    """
    assert records.folder is not None
    dataset = val_loader.dataset
    if not hasattr(dataset, "image_path"):
        warn("no report: this data set does not tell where its pictures lie (`image_path`)")
        return None
    panoptic = args.masks and args.dataset_file == "coco_panoptic"
    folder = records.folder / "panoptic_eval" if panoptic else None
    source = ReportSource(dataset, folder, args.white_level)
    name = "eval.html" if args.eval else "report.html"
    defaults = vars(get_args_parser().parse_args([]))
    loaders = [] if train_loader is None else [("train", train_loader)]
    splits = splits_of([*loaders, ("val", val_loader)])
    return RunReport(records.folder, source, categories, splits, vars(args), defaults, records.board, name)
