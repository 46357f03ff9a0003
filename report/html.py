"""HTML and SVG as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as _escape
from typing import NamedTuple

VOID = {"br", "hr", "img", "input", "link", "meta"}


def escape(value: object) -> str:
    """A value as text that HTML does not interpret, in attributes either."""
    return _escape(str(value), quote=True)


def tag(name: str, /, *content: str, **attributes: object) -> str:
    """An element.

    Args:
        content: HTML; what is text must be escaped.
        attributes: escaped here. A trailing underscore is dropped (`class_`), others become hyphens in
            names that begin with data or aria; None leaves an attribute out, True gives it without a value.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_")
        if key.startswith(("data_", "aria_", "stroke_", "text_")):
            key = key.replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None:
            words.append(f'{key}="{escape(value)}"')
    start = f"<{' '.join(words)}>"
    return start if name in VOID else f"{start}{''.join(content)}</{name}>"


class Cell(NamedTuple):
    """A cell of a table: its HTML, and the value that it is sorted by."""

    html: str
    value: float | str | None = None


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], **attributes: object) -> str:
    """A table; columns whose cells hold numbers are set flush right by the style sheet's `number`."""
    rows = [list(row) for row in rows]
    numeric = [
        all(isinstance(row[i].value, (int, float, type(None))) for row in rows) for i in range(len(head))
    ]
    kinds = ["number" if is_numeric else "text" for is_numeric in numeric]
    titles = [tag("th", escape(text), scope="col", class_=k) for text, k in zip(head, kinds, strict=True)]
    body = [tag("tr", *(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    top = tag("thead", tag("tr", *titles))
    return tag("div", tag("table", top, tag("tbody", *body), **attributes), class_="scroll")


def _cell(cell: Cell, kind: str) -> str:
    return tag("td", cell.html, class_=kind, data_value="" if cell.value is None else cell.value)


def number(value: float | None, digits: int = 3) -> Cell:
    """A figure; n/a where there is none."""
    return Cell('<span class="none">n/a</span>') if value is None else Cell(f"{value:.{digits}f}", value)


def whole(value: int) -> Cell:
    """A whole number with separators of thousands."""
    return Cell(f"{value:,}", value)


def bar(value: float | None) -> Cell:
    """A figure in [0, 1] with a bar under it."""
    if value is None:
        return number(None)
    return Cell(f'<span class="bar" style="--share:{100 * value:.1f}%">{value:.3f}</span>', value)


def text(value: object) -> Cell:
    """A word or two."""
    return Cell(escape(value), str(value))
