"""Curves as SVG. The page's script reads the values from the SVG and shows them under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from report.html import escape, tag

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26  # margins
MAX_DOTS = 30
LOGARITHMIC_FROM = 20.0  # ratio of largest to smallest value


class Series(NamedTuple):
    """A curve: its name, its points (epoch, value), and whether it is dashed, which legends leave out.

    colour: number of a colour in the style sheet; curves that belong together share it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


class Axis(NamedTuple):
    """An axis: the values at its ends and the ticks written next to it."""

    low: float
    high: float
    ticks: list[float]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end, 1 at the high end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def chart(title: str, series: Sequence[Series], from_zero: bool = False) -> str:
    """A figure with a title, a legend and curves over epochs; empty if there is no point to draw.

    The values' axis is logarithmic where they are positive and span more than LOGARITHMIC_FROM.

    Args:
        from_zero: the values' axis begins at 0 (and is linear).
    """
    series = [one._replace(points=[p for p in one.points if math.isfinite(p[1])]) for one in series]
    series = [one for one in series if one.points]
    if not series:
        return ""
    across = epoch_axis([x for one in series for x, _ in one.points])
    up = value_axis([y for one in series for _, y in one.points], from_zero)
    parts = []
    for tick in up.ticks:
        y = f"{_y(up, tick):.1f}"
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(tag("text", f"{tick:g}", x=LEFT - 7, y=y, dy="0.32em", text_anchor="end"))
    for tick in across.ticks:
        parts.append(
            tag("text", f"{tick:g}", x=f"{_x(across, tick):.1f}", y=HEIGHT - 8, text_anchor="middle")
        )
    for one in series:
        places = [(f"{_x(across, x):.1f}", f"{_y(up, y):.1f}") for x, y in one.points]
        path = tag("path", d="M" + "L".join(f"{x} {y}" for x, y in places))
        dots = places if len(places) <= MAX_DOTS else places[-1:]
        circles = [tag("circle", cx=x, cy=y, r=2.6) for x, y in dots]
        kind = f"curve s{one.colour}" + (" dashed" if one.dashed else "")
        parts.append(tag("g", path, *circles, class_=kind))
    parts.append(tag("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM, x1=-9, x2=-9))
    values = [{"name": one.name, "points": [list(p) for p in one.points]} for one in series]
    picture = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        aria_label=title,
        tabindex=0,
        data_series=json.dumps(values, separators=(",", ":")),
        data_axis=json.dumps([across.low, across.high, LEFT, WIDTH - RIGHT]),
    )
    legend = [tag("span", escape(one.name), class_=f"key s{one.colour}") for one in series if not one.dashed]
    caption = tag("figcaption", tag("b", escape(title)), tag("span", *legend, class_="legend"))
    return tag("figure", caption, picture, tag("output", class_="values"), class_="card")


def value_axis(values: Sequence[float], from_zero: bool = False) -> Axis:
    """An axis for values between round ticks."""
    low, high = min(values), max(values)
    if not from_zero and low > 0 and high / low > LOGARITHMIC_FROM:
        # From one to another of 1, 2 and 5 times a power of ten; beyond two decades only powers are written.
        steps = np.asarray(LogLocator(subs=(1, 2, 5), numticks=1000).tick_values(low / 10, high * 10))
        low, high = steps[steps <= low * (1 + 1e-9)][-1], steps[steps >= high * (1 - 1e-9)][0]
        written = LogLocator(subs=(1, 2, 5) if high / low < 101 else (1,), numticks=1000)
        inside = [tick for tick in written.tick_values(low, high) if low <= tick <= high]
        return Axis(low, high, inside, logarithmic=True)
    low = min(low, 0) if from_zero else low
    if high == low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0, 1)
    ticks = np.round(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high), 12).tolist()
    return Axis(ticks[0], ticks[-1], ticks)


def epoch_axis(epochs: Sequence[float]) -> Axis:
    """An axis for epochs, with ticks at whole ones."""
    low, high = min(epochs), max(epochs)
    if low == high:
        return Axis(low - 1, high + 1, [low])
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True).tick_values(low, high)
    return Axis(low, high, [float(tick) for tick in ticks if low <= tick <= high])


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
