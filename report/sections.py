"""The parts of a report that show pictures: the first ones of the split, and the worst mistakes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from report.html import escape, tag
from report.mistakes import RIGHT, Matches, Mistake, count_kinds, false_positives, is_missed, misses
from report.page import Section
from report.pictures import EmbeddedPicture, definition, marked, marked_crop, read_crop
from report.source import Boxes, Region, ReportSource

CROPS = 120  # of both kinds, shared out among the classes
MOST_CROPS_EACH = 5  # of a class and kind
SECONDS_FOR_CROPS = 1.0  # large photographs or a slow disk must not hold up training


class Shown(NamedTuple):
    """A picture with what is there and what was found; `title` is its file and id."""

    title: str
    picture: EmbeddedPicture
    truth: Sequence[Region]
    found: Sequence[Region]


def pictures_section(shown: Sequence[Shown], names: Mapping[int, str], threshold: float) -> Section:
    """Pictures with ground truth and, beside it, what was found.

    Args:
        threshold: the score from which detections are shown until a user moves the slider.
    """
    has_scores = any(region.score is not None for one in shown for region in one.found)
    cards = []
    for number, one in enumerate(shown):
        name = f"picture{number}"
        pair = [
            tag("div", marked(one.picture, name, regions, names, threshold), tag("span", title))
            for title, regions in (("ground truth", one.truth), ("found", one.found))
        ]
        figure = tag("div", *pair, class_="pair"), tag("figcaption", escape(one.title))
        cards.append(definition(one.picture, name) + tag("figure", *figure, class_="card picture"))
    labels = {region.label for one in shown for region in (*one.truth, *one.found)}
    keys = [tag("span", escape(names.get(label, label)), class_=f"c{label}") for label in sorted(labels)]
    controls = tag("p", *keys, class_="colours")
    if has_scores:
        value = f"{threshold:.2f}"
        output = tag("output", value, id="score-value", for_="score")
        label = tag("label", f"Detections from a score of {output}", for_="score")
        slider = tag("input", type="range", id="score", min=0, max=1, step=0.01, value=value)
        controls = tag("div", label, slider, class_="controls") + controls
    title = f"The first {len(cards)} validation pictures"
    html = controls + tag("div", *cards, class_="pictures") if cards else ""
    return Section(title, "pictures", "A click on a picture shows it large.", html)


def mistakes_section(
    found: Boxes, truth: Boxes, matches: Matches, names: Mapping[int, str], source: ReportSource
) -> Section:
    """Crops of the worst mistakes, class by class."""
    each = max(1, min(MOST_CROPS_EACH, CROPS // (2 * max(1, len(names)))))
    both = (found, truth, matches, names, each)
    mistakes = sorted([*false_positives(*both), *misses(*both)], key=lambda mistake: mistake.rank)
    crops = crops_in_time(mistakes, source)
    cards = []
    for label in sorted({mistake.label for mistake, _ in crops}):
        parts = [tag("h3", escape(names.get(label, label)))]
        for title, missed in (("false positives", False), ("missed", True)):
            chosen = [html for one, html in crops if (one.label, one.missed) == (label, missed)]
            if chosen:
                parts += [tag("h4", title), tag("div", *chosen, class_="crops")]
        cards.append(tag("div", *parts, class_="card class"))
    note = mistakes_in_words(found, truth, matches)
    if len(crops) < len(mistakes):
        note += f" {len(mistakes) - len(crops)} crops were left out, to save time."
    html = tag("div", *cards, class_="classes") if cards else ""
    return Section("Worst mistakes", "mistakes", note, html)


def mistakes_in_words(found: Boxes, truth: Boxes, matches: Matches) -> str:
    """How many detections are right, wrong in which way, and how many objects are missed."""
    right = int(((found.score >= matches.threshold) & (matches.kind == RIGHT)).sum())
    kinds = ", ".join(f"{n:,} {name}" for name, n in count_kinds(found, matches).items() if n)
    objects = int((~truth.crowd).sum())
    missed = int(is_missed(truth, matches).sum())
    return (
        f"From a score of {matches.threshold:.2f}, {right:,} detections are right. Wrong: {kinds or 'none'}. "
        f"Of {objects:,} objects {missed:,} are missed. Shown of each class: the wrong detections of highest "
        "score, and the largest objects that were missed; in dashes the objects that are there, or the "
        "detections near a missed one."
    )


def crops_in_time(mistakes: Sequence[Mistake], source: ReportSource) -> list[tuple[Mistake, str]]:
    """Mistakes with their crops, in their order, as many as time allows."""
    end = time.perf_counter() + SECONDS_FOR_CROPS
    crops: list[tuple[Mistake, str]] = []
    for mistake in mistakes:
        if time.perf_counter() > end:
            break
        path = source.picture_file(mistake.image_id)
        stated = source.stated_size(mistake.image_id)
        crop, place = read_crop(path, mistake.box.tolist(), stated, source.white_level)
        remark = tag("figcaption", escape(mistake.remark), title=f"{path.name}, id {mistake.image_id}")
        crops.append((mistake, tag("figure", marked_crop(crop, place, mistake), remark)))
    return crops
