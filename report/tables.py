"""The tables of a report: what its cells hold, and one for each of data, classes and flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from report.html import escape, tag
from report.mistakes import ClassCounts
from run.summary import Split


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
    body = []
    for row in rows:
        cells = [
            tag("td", cell.html, class_=kind, data_value="" if cell.value is None else cell.value)
            for cell, kind in zip(row, kinds, strict=True)
        ]
        body.append(tag("tr", *cells))
    top = tag("thead", tag("tr", *titles))
    return tag("div", tag("table", top, tag("tbody", *body), **attributes), class_="scroll")


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


def data_table(splits: Sequence[Split]) -> str:
    """Images, objects and classes of each split."""
    rows = []
    for split in splits:
        objects = sum(split.objects.values())
        present = sum(1 for value in split.objects.values() if value)
        mean = objects / split.images if split.images else None
        rows.append([text(split.name), whole(split.images), whole(objects), number(mean, 1), whole(present)])
    return table(("split", "images", "objects", "objects an image", "classes that occur"), rows)


def class_table(
    categories: Mapping[int, str],
    splits: Sequence[Split],
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    counts: Mapping[int, ClassCounts],
) -> str:
    """A row for each class: PQ, AP, AP of masks, precision, recall, objects, as far as there are any."""
    by_id = {kind: {row["id"]: row for row in rows} for kind, rows in figures.items()}
    columns: list[tuple[str, str, str]] = []  # title, kind, key
    if "panoptic" in by_id:
        columns += [("PQ", "panoptic", "pq"), ("SQ", "panoptic", "sq"), ("RQ", "panoptic", "rq")]
    if "bbox" in by_id:
        columns += [("AP", "bbox", "AP"), ("AP50", "bbox", "AP50"), ("AR", "bbox", "AR")]
    if "segm" in by_id:
        columns += [("mask AP", "segm", "AP"), ("mask AP50", "segm", "AP50")]
    head = [
        "id",
        "class",
        *(title for title, _, _ in columns),
        *(("precision", "recall") if counts else ()),
        *(f"{split.name} objects" for split in splits),
    ]
    rows = []
    for category, name in categories.items():
        cells = [Cell(str(category), category), text(name)]
        for _, kind, key in columns:
            cells.append(bar(by_id[kind].get(category, {}).get(key)))
        if counts:
            of_class = counts.get(category)
            cells += [bar(of_class and of_class.precision), bar(of_class and of_class.recall)]
        cells += [whole(split.objects.get(category, 0)) for split in splits]
        rows.append(cells)
    return table(head, rows, class_="sortable")


def flag_tables(args: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The flags that differ from their defaults, and all of them."""
    changed = {k: v for k, v in args.items() if k in defaults and v != defaults[k]}
    rows = [[text(f"--{k}"), text(_value(v)), text(_value(defaults[k]))] for k, v in changed.items()]
    everything = [[text(k), text(_value(v))] for k, v in sorted(args.items())]
    first = table(("flag", "value", "default"), rows) if rows else tag("p", "All flags have their defaults.")
    rest = tag("details", tag("summary", f"All {len(args)} values"), table(("name", "value"), everything))
    return first + rest


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
