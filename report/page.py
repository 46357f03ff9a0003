"""The report as a page: sections in one HTML file, with nothing to be fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from inference.visualize import class_colour
from report.html import escape, tag

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Section(NamedTuple):
    """A part of the page: its title, the name that links use, a sentence on what it shows, and its HTML."""

    title: str
    name: str
    note: str
    html: str


def page(title: str, remarks: Sequence[str], lead: str, sections: Sequence[Section], labels: set[int]) -> str:
    """The whole file.

    Args:
        remarks: lines under the title.
        lead: HTML above the sections.
        sections: those without HTML are left out.
        labels: categories whose colours the page needs.
    """
    sections = [section for section in sections if section.html]
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    style += "".join(f".c{label}{{--class:rgb{class_colour(label)}}}" for label in sorted(labels))
    script = (folder / "page.js").read_text(encoding="utf-8")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # http-equiv is no Python name
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        tag("title", escape(title)),
        tag("link", rel="icon", href="data:,"),
        tag("style", style),
    ]
    links = [tag("a", escape(section.title), href=f"#{section.name}") for section in sections]
    top = tag("h1", escape(title)), *(tag("p", escape(text)) for text in remarks), tag("nav", *links)
    parts = []
    for section in sections:
        note = [tag("p", escape(section.note), class_="note")] if section.note else []
        parts.append(tag("section", tag("h2", escape(section.title)), *note, section.html, id=section.name))
    body = [tag("header", *top), tag("main", lead, *parts), tag("dialog"), tag("script", script)]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"
