"""Curves of one or several runs, drawn from what training wrote.

    python -m util.plot_utils outputs/run1 outputs/run2 -o curves.png

writes a PNG without needing a display. `plot_logs` and `plot_precision_recall` draw in a notebook.

Longer than 300 lines: the published functions and the command draw with the same few helpers.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from util.command_line import OneLineParser
from util.errors import UserError, exit_status
from util.run_log import Run, load_runs, read_evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Figures that the evaluators write: axis label, key in log.txt, place in its value.
FIGURES: dict[str, tuple[str, str, int | str]] = {
    "mAP": ("box AP50, test_coco_eval_bbox[1]", "test_coco_eval_bbox", 1),  # the published name for AP50
    "AP": ("box AP", "test_coco_eval_bbox", 0),
    "AP50": ("box AP50", "test_coco_eval_bbox", 1),
    "mask AP": ("mask AP", "test_coco_eval_masks", 0),
    "PQ": ("panoptic quality", "test_PQ_all", "pq"),
}
LineStyle = Literal["solid", "dashed"]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
PANELS, OPTIONAL_PANELS = ("loss", "class_error", "AP", "AP50"), ("mask AP", "PQ")
MAX_EPOCHS_WITH_DOTS = 40
FILLINGS: dict[LineStyle, str | None] = {"solid": None, "dashed": "white"}  # of dots; None: the line's colour
LABEL_DISTANCE = 7  # points from a best figure's dot to its number


class Curve(NamedTuple):
    """A series to draw; arrays [T]."""

    style: LineStyle
    epochs: np.ndarray
    values: np.ndarray


def smooth(values: np.ndarray, com: float) -> np.ndarray:
    """Exponentially weighted mean of each value and those before it; as pandas' ewm(com, ignore_na=True).

    Args:
        values: [T]; nan counts as absent.
        com: centre of mass; the weight falls by com / (1 + com) a step. 0 leaves the values as they are.
    """
    if com < 0:
        raise ValueError(f"com is {com}; it must not be negative")
    decay = com / (1 + com)
    smoothed = []
    weighted_sum = weight = 0.0
    for value in values:
        if not math.isnan(value):
            weighted_sum, weight = value + decay * weighted_sum, 1 + decay * weight
        smoothed.append(weighted_sum / weight if weight else math.nan)
    return np.array(smoothed)


def _curve(run: Run, style: LineStyle, key: str, place: int | str | None = None) -> Curve | None:
    """The epochs that logged a key, None where none did; -1 means "nothing to evaluate" in a COCO figure."""
    points = []
    for record in run.epochs:
        value = record.get(key)
        if place is not None:
            try:
                value = value[place]  # type: ignore[index]
            except (TypeError, LookupError):  # nothing was evaluated, or by another program
                value = None
        if isinstance(value, (int, float)) and not (place is not None and value == -1):
            points.append((record["epoch"], value))
    if not points:
        return None
    epochs, values = np.array(points, dtype=float).T
    return Curve(style, epochs, values)


def _curves(run: Run, field: str) -> list[Curve]:
    """What a run holds of a field: the training and the test curve, or the one of an evaluator's figure."""
    if field in FIGURES:
        _, key, place = FIGURES[field]
        found = [_curve(run, "solid", key, place)]
    else:
        found = [_curve(run, "solid", f"train_{field}"), _curve(run, "dashed", f"test_{field}")]
    return [curve for curve in found if curve is not None]


def _require_fields(runs: Sequence[Run], fields: Sequence[str]) -> None:
    if not fields:
        raise UserError("no field to draw: name some, such as loss or AP")
    for field in fields:
        if field not in FIGURES and not any(_curves(run, field) for run in runs):
            first = runs[0]
            known = {key.split("_", 1)[1] for key in first.epochs[-1] if key.startswith(("train_", "test_"))}
            raise UserError(f"{first.log}: no field {field!r}; it holds {', '.join(sorted(known))}")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _draw_field(axis: Axes, runs: Sequence[Run], field: str, com: float) -> None:
    """Draw one field of every run into an axis, in a colour per run."""
    from matplotlib.ticker import MaxNLocator

    curves = [(index, curve) for index, run in enumerate(runs) for curve in _curves(run, field)]
    for index, (style, epochs, values) in curves:
        marker, width = ("o", 1.8) if len(epochs) <= MAX_EPOCHS_WITH_DOTS else ("", 1.2)
        values = smooth(values, com) if com else values
        (line,) = axis.plot(epochs, values, linestyle=style, color=_colour(index), linewidth=width)
        line.set(marker=marker, markersize=3.5, markerfacecolor=FILLINGS[style] or _colour(index))
    title = FIGURES[field][0] if field in FIGURES else field
    axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not curves:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, "no evaluation in the log", ha="center", color="0.5", transform=axis.transAxes)
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(runs: Sequence[Run], styles: bool) -> dict[str, list]:
    """Legend entries: the colour of each run and, if asked, the lines and dots of training and test."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_colour(index), linewidth=2) for index in range(len(runs))]
    labels = [run.name for run in runs]
    if styles:
        dotted = any(len(run.epochs) <= MAX_EPOCHS_WITH_DOTS for run in runs)
        dots: dict[str, Any] = {"marker": "o" if dotted else "", "markersize": 3.5, "color": "0.3"}
        lines += [
            Line2D([], [], linestyle=style, markerfacecolor=filling or "0.3", **dots)
            for style, filling in FILLINGS.items()
        ]
        labels += ["train", "test"]
    return {"handles": lines, "labels": labels}


def plot_logs(
    logs: str | os.PathLike | Sequence[str | os.PathLike],
    fields: Sequence[str] = ("class_error", "loss_bbox_unscaled", "mAP"),
    ewm_col: float = 0,
    log_name: str = "log.txt",
) -> tuple[Figure, np.ndarray]:
    """Draw fields of the logs of one or several runs side by side: training solid, test dashed and hollow.

    In a script, call `matplotlib.pyplot.show()` or `savefig` afterwards.

    Args:
        logs: folder of a run, or several of them.
        fields: names in log.txt without `train_` and `test_`, or one of FIGURES; "mAP" is, as published, the
            AP at IoU 0.5.
        ewm_col: centre of mass of an exponential smoothing, 0 for none; see `smooth`.
        log_name: file in each folder.

    Returns:
        The figure and its axes, [len(fields)].

    Raises:
        UserError: a log is missing or empty, or no run holds a field.
    """
    from matplotlib import pyplot as plt

    runs = load_runs([logs] if isinstance(logs, (str, os.PathLike)) else logs, log_name)
    _require_fields(runs, fields)
    fig, axs = plt.subplots(ncols=len(fields), figsize=(16, 5), squeeze=False)
    for axis, field in zip(axs[0], fields, strict=True):
        _draw_field(axis, runs, field, ewm_col)
        axis.legend(**_legend(runs, styles=field not in FIGURES))
    return fig, axs[0]


def plot_precision_recall(
    files: str | os.PathLike | Sequence[str | os.PathLike], naming_scheme: str = "iter"
) -> tuple[Figure, np.ndarray]:
    """Draw precision and score over recall at IoU 0.5 (all areas, most detections), as means over classes.

    Args:
        files: files of the `eval` folder of one or several runs.
        naming_scheme: how curves are called: "iter" by the file (its epoch), "exp_id" by the run's folder.

    Returns:
        The figure and its two axes.

    Raises:
        UserError: a file is missing or holds no evaluation.
    """
    from matplotlib import pyplot as plt

    paths = [Path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise UserError("no evaluation to draw: pass files of a run's eval folder")
    if naming_scheme not in ("iter", "exp_id"):
        raise ValueError(f"naming_scheme is {naming_scheme!r}; it must be 'iter' or 'exp_id'")
    names = [path.stem if naming_scheme == "iter" else path.resolve().parts[-3] for path in paths]
    evaluations = [read_evaluation(path) for path in paths]
    fig, axs = plt.subplots(ncols=2, figsize=(16, 5))
    shades = plt.get_cmap("Blues")(np.linspace(0.3, 1.0, len(paths) + 1)[1:])  # darker: later in the list
    for name, evaluation, shade in zip(names, evaluations, shades, strict=True):
        precision = _mean_over_classes(evaluation["precision"][0, :, :, 0, -1])  # [R]
        scores = _mean_over_classes(evaluation["scores"][0, :, :, 0, -1])  # [R]
        recall = float(_mean_over_classes(evaluation["recall"][0, :, 0, -1]))
        mean = float(precision.mean())
        f1 = 2 * mean * recall / (mean + recall) if mean + recall else 0.0
        print(f"{name}: AP50 {mean:.3f}, mean score {scores.mean():.3f}, recall {recall:.3f}, F1 {f1:.3f}")
        for axis, values in zip(axs, (precision, scores), strict=True):
            axis.plot(np.linspace(0, 1, len(values)), values, color=shade)
    for axis, label in zip(axs, ("Precision", "Scores"), strict=True):
        axis.set_title(f"{label} / Recall at IoU 0.5")
        axis.set_xlabel("recall")
        axis.legend(names)
    return fig, axs


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, without classes that have no object (-1 in every figure)."""
    present = values > -1
    return np.where(present, values, 0).sum(-1) / np.maximum(present.sum(-1), 1)


def draw_curves(
    logs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    panels: Sequence[str] | None = None,
    ewm_col: float = 0,
    log_name: str = "log.txt",
) -> Path:
    """Write a picture of one or several runs' curves, without a display -> output.

    Args:
        logs: folders of runs.
        output: file to write; its ending chooses the format (png, pdf, svg …).
        panels: fields as in `plot_logs`, one panel each; by default loss, class_error, AP and AP50, and mask
            AP and PQ where a run has them.
        ewm_col: centre of mass of an exponential smoothing, 0 for none.
        log_name: file in each folder.

    Raises:
        UserError: a log is missing or empty, no run knows a field, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing looks for a display

    runs = load_runs(logs, log_name)
    if panels is None:
        panels = [*PANELS, *(panel for panel in OPTIONAL_PANELS if any(_curves(run, panel) for run in runs))]
    _require_fields(runs, panels)
    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    rows = math.ceil(len(panels) / columns)
    fig = Figure(figsize=(4.8 * columns, 3.1 * rows + 0.5), dpi=150, layout="constrained")
    axs = fig.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axs, panels, strict=False):
        _draw_field(axis, runs, panel, ewm_col)
        low, high = axis.get_ylim()
        axis.set_ylim(0 if axis.dataLim.ymin >= 0 else low, 1.08 * high)  # above is room for the best figure
    for axis in axs[len(panels) :]:
        axis.set_visible(False)
    fig.legend(**_legend(runs, styles=True), loc="outside upper left", ncols=4, frameon=False)
    fig.draw_without_rendering()  # the layout decides where points and numbers lie
    for axis, panel in zip(axs, panels, strict=False):
        if panel in FIGURES and not ewm_col:
            _keep_apart(axis, _mark_best(axis, runs, panel))
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path)
    except (OSError, ValueError) as error:  # ValueError: an ending that names no picture format
        raise UserError(f"{path}: cannot be written ({error})") from error
    return path


def _mark_best(axis: Axes, runs: Sequence[Run], panel: str) -> list[Annotation]:
    """Write each run's best figure above its point."""
    from matplotlib.patheffects import withStroke

    on_lines = [withStroke(linewidth=2.5, foreground="white")]
    labels = []
    for index, run in enumerate(runs):
        for _, epochs, values in _curves(run, panel):
            best = int(values.argmax())
            point, colour = (epochs[best], values[best]), _colour(index)
            axis.plot(*point, "o", color=colour, markersize=6)
            place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, LABEL_DISTANCE)}
            place |= {"ha": "center", "path_effects": on_lines}
            labels.append(axis.annotate(f"{values[best]:.3f}", point, color=colour, **place))
    return labels


def _keep_apart(axis: Axes, labels: Sequence[Annotation]) -> None:
    """Move numbers that lie on another one under their points or, where no room is, further away."""
    taken: list[Bbox] = []
    for label in sorted(labels, key=lambda label: label.xy[1], reverse=True):  # the best stays where it is
        first = box = label.get_window_extent()
        step = 1.2 * float(label.get_fontsize())  # in points, a line of text
        for number in range(2 * len(labels)):
            if not box.count_overlaps(taken) and (box is first or axis.bbox.y0 <= box.y0 < axis.bbox.y1):
                break
            distance, under = LABEL_DISTANCE + number // 2 * step, number % 2 == 0
            label.set(va="top" if under else "baseline")
            label.xyann = (0, -distance if under else distance)
            box = label.get_window_extent()
        taken.append(box)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line -> exit status."""
    description = "Draw the curves of one or several runs into one picture."
    parser = OneLineParser(prog="python -m util.plot_utils", description=description)
    parser.add_argument("runs", nargs="+", metavar="DIR", help="folder of a run, its --output_dir")
    parser.add_argument("-o", "--output", default="curves.png", help="file to write (default: %(default)s)")
    parser.add_argument("--fields", nargs="+", help="what to draw (default: loss class_error AP AP50)")
    parser.add_argument("--smooth", type=float, default=0, help="centre of mass of the smoothing, in epochs")
    parser.add_argument("--log_name", default="log.txt", help="log in each folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.smooth < 0:
        parser.error("--smooth must not be negative")
    runs, fields = options.runs, options.fields
    return exit_status(
        lambda: print(draw_curves(runs, options.output, fields, options.smooth, options.log_name))
    )


if __name__ == "__main__":
    sys.exit(main())
