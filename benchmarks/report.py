"""Results as a table, as JSON and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Compared
from benchmarks.settings import Settings
from benchmarks.stages import Stage
from util.errors import UserError


@dataclass(frozen=True)
class Row:
    """One stage's comparison.

    Attributes:
        stage: what was measured.
        peer: with whom.
        ours, theirs: seconds of one call, or bytes.
        items: images a call.
        ratio, least, most: theirs / ours, of the medians, and the extremes over rounds.
        target: least ratio; None: none.
        difference: between the results; None: not compared.
    """

    stage: Stage
    peer: str
    ours: float
    theirs: float
    items: int
    ratio: float
    least: float
    most: float
    target: float | None
    difference: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        return None if self.target is None else self.ratio >= self.target

    @property
    def equal(self) -> bool | None:
        """Whether the results are the same within the stage's tolerance; None: not compared."""
        return None if self.difference is None else self.difference <= self.stage.tolerance


def make_row(stage: Stage, settings: Settings, peer: str, found: Compared) -> Row:
    """What is said of a stage."""
    medians = statistics.median(found.ours), statistics.median(found.theirs)
    target = stage.target_of(settings) if peer == "reference" else None
    return Row(stage, peer, *medians, found.items, *found.ratios, target, found.difference)


def headline(peer: str) -> str:
    """What stands over the rows."""
    return (
        f"{'stage':<18}{'':<43}{'ours':>12}{peer:>12}{'ratio':>7}{'spread':>15}{'target':>8}  {'':<5}"
        f"{'results':<12}"
    ).rstrip()


def line(row: Row) -> str:
    """A row of the table."""
    spread = f"{row.least:.2f} - {row.most:.2f}" if row.least != row.most else ""
    target = "" if row.target is None else f"{row.target:.2f}"
    verdict = {None: "", True: "met", False: "NOT"}[row.met]
    same = {None: "", True: "equal", False: f"OFF {row.difference or 0:.1e}"}[row.equal]
    return (
        f"{row.stage.name:<18}{row.stage.title:<43}{_quantity(row.ours, row.stage.unit):>12}"
        f"{_quantity(row.theirs, row.stage.unit):>12}{row.ratio:>7.2f}{spread:>15}{target:>8}  "
        f"{verdict:<5}{same:<12}"
    ).rstrip()


def _quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value * 1000:,.1f} ms"


def as_json(rows: Sequence[Row], settings: Settings, machine: dict[str, Any], floors: Any) -> dict[str, Any]:
    """All that a run found, ready for json.dumps."""
    shown = ("device", "amp", "compile", "tiny")
    return {
        "machine": machine,
        "settings": {name: getattr(settings, name) for name in shown},
        "stages": {
            row.stage.name: {
                "title": row.stage.title,
                "unit": row.stage.unit,
                "against": row.peer,
                "images": row.items,
                "ours": row.ours,
                "theirs": row.theirs,
                "ratio": row.ratio,
                "ratio_least": row.least,
                "ratio_most": row.most,
                "target": row.target,
                "met": row.met,
                "difference": row.difference,
            }
            for row in rows
        },
        "floors": floors,
    }


def plot(rows: Sequence[Row], path: Path, machine: dict[str, Any]) -> None:
    """The ratios as bars on a logarithmic axis, with their spread and their targets.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(range(len(rows)))[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.3 + 0.34 * len(rows)), layout="constrained")
    colours = ["#b3403a" if row.met is False else "#2f6f9f" for row in rows]
    around = [[row.ratio - row.least for row in rows], [row.most - row.ratio for row in rows]]
    around = [[max(value, 0) for value in side] for side in around]
    axes.barh(places, [row.ratio for row in rows], 0.62, color=colours, xerr=around, ecolor="#888888")
    for place, row in zip(places, rows, strict=True):
        end = max(row.most, row.target or 0)  # the target's line would cross the number
        axes.annotate(f"{row.ratio:.2f}", (end, place), (5, 0), textcoords="offset points", va="center")
        if row.target is not None:
            axes.plot([row.target] * 2, [place - 0.42, place + 0.42], color="black", lw=1.8)
    axes.axvline(1, color="#888888", lw=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, *(row.least for row in rows)) * 0.95, max(row.most for row in rows) * 1.35)
    ticks = [tick for tick in (0.5, 1, 2, 3, 5, 10, 20) if tick < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [row.stage.title for row in rows])
    axes.set_xlabel(f"{rows[0].peer} / ours: times, or bytes for memory; black lines are targets")
    device = machine.get("gpu") or machine["processor"]
    axes.set_title(f"{device}, {machine['threads']} threads, torch {machine['torch']}")
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise UserError(f"--plot {path}: cannot be written ({error.strerror})") from error
    finally:
        pyplot.close(figure)
