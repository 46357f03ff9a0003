"""The curves of a report and its headline, from what the run has logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from report.charts import Series, chart
from report.html import escape, tag

Line = Mapping[str, Any]  # of log.txt

TERMS = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
TERM_NAMES = {"loss_ce": "class", "loss_bbox": "box L1", "loss_giou": "GIoU"}
TERM_NAMES |= {"loss_mask": "mask focal", "loss_dice": "mask dice"}


class Figure(NamedTuple):
    """A figure of evaluation: how it is called, its key in the log, and its place in that value."""

    name: str
    key: str
    place: int | str


AVERAGED = ", weights averaged"
MAIN_FIGURES = (
    Figure("PQ", "test_PQ_all", "pq"),
    Figure("box AP", "test_coco_eval_bbox", 0),
    Figure("box AP50", "test_coco_eval_bbox", 1),
    Figure("mask AP", "test_coco_eval_masks", 0),
    Figure(f"PQ{AVERAGED}", "test_ema_PQ_all", "pq"),
    Figure(f"box AP{AVERAGED}", "test_ema_coco_eval_bbox", 0),
)
FIGURE_CHARTS = {
    "Box AP": [
        Figure(name, "test_coco_eval_bbox", place) for place, name in enumerate(("AP", "AP50", "AP75"))
    ],
    "Box AP by size of objects": [
        Figure(name, "test_coco_eval_bbox", place)
        for place, name in ((3, "small"), (4, "medium"), (5, "large"))
    ],
    "Mask AP": [
        Figure(name, "test_coco_eval_masks", place) for place, name in enumerate(("AP", "AP50", "AP75"))
    ],
    "Panoptic quality": [
        Figure(name, f"test_PQ_{key}", "pq")
        for key, name in (("all", "all"), ("th", "things"), ("st", "stuff"))
    ],
}


def value_of(line: Line, figure: Figure) -> float | None:
    """A figure of an epoch, in [0, 1]; None where it was not evaluated, or there was nothing to find."""
    values = line.get(figure.key)
    value = None if values is None else values[figure.place]
    return None if value is None or value == -1 else float(value)


def curves(lines: Sequence[Line]) -> list[str]:
    """The charts of a run, those that have something to show."""
    both = [_series(lines, "train", "train_loss", 0), _series(lines, "validation", "test_loss", 1)]
    charts = [chart("Loss", both)]
    charts += [figure_chart(lines, title, figures) for title, figures in FIGURE_CHARTS.items()]
    terms = []
    for i, term in enumerate(TERMS):
        name = TERM_NAMES[term]
        terms += [
            _series(lines, name, f"test_{term}", i),
            _series(lines, f"{name}, train", f"train_{term}", i, dashed=True),
        ]
    charts.append(chart("Loss terms, weighted (dashed: train)", terms))
    wrong = [
        _series(lines, "train", "train_class_error", 0),
        _series(lines, "validation", "test_class_error", 1),
    ]
    charts.append(chart("Class error, % of matched objects", wrong, from_zero=True))
    charts.append(chart("Learning rate", [_series(lines, "all but the backbone", "train_lr", 0)]))
    return [one for one in charts if one]


def figure_chart(lines: Sequence[Line], title: str, figures: Sequence[Figure]) -> str:
    """Figures over epochs, and in dashes those of the averaged weights (`--ema`)."""
    averaged = [f._replace(key=f.key.replace("test_", "test_ema_"), name=f.name + AVERAGED) for f in figures]
    series = []
    for i, pair in enumerate(zip(figures, averaged, strict=True)):
        for figure, dashed in zip(pair, (False, True), strict=True):
            points = [(line["epoch"], v) for line in lines if (v := value_of(line, figure)) is not None]
            series.append(Series(figure.name, points, i, dashed))
    has_averages = any(one.dashed and one.points for one in series)
    return chart(title + " (dashed: weights averaged)" * has_averages, series, from_zero=True)


def _series(lines: Sequence[Line], name: str, key: str, colour: int, dashed: bool = False) -> Series:
    points = [(line["epoch"], float(line[key])) for line in lines if isinstance(line.get(key), (int, float))]
    return Series(name, points, colour, dashed)


def headline(lines: Sequence[Line]) -> str:
    """The newest value of each main figure, with the best and its epoch."""
    tiles = []
    for figure in MAIN_FIGURES:
        values = [(v, line.get("epoch")) for line in lines if (v := value_of(line, figure)) is not None]
        if not values:
            continue
        best, epoch = max(values, key=lambda pair: pair[0])
        note = f"best {best:.3f} in epoch {epoch}"
        if values[-1][0] == best:
            note = "the best so far" if len(values) > 1 else ""
        tiles.append(_tile(figure.name, f"{values[-1][0]:.3f}", note))
    last = lines[-1]
    for name, key in (("loss, train", "train_loss"), ("loss, validation", "test_loss")):
        if isinstance(last.get(key), (int, float)):
            tiles.append(_tile(name, f"{last[key]:.3g}", ""))
    return tag("div", *tiles, class_="tiles")


def _tile(name: str, value: str, note: str) -> str:
    parts = [tag("span", escape(name)), tag("strong", value)]
    return tag("div", *parts, *([tag("small", escape(note))] if note else []), class_="tile")
