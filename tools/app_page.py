"""The page of tools/app.py: gradio's components, and what they answer when visitors do something.

A picture goes to the model once. Its answer stays with the visitor's session, and threshold, classes, kind
and clicks are served from it.
"""

from __future__ import annotations

import html
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from inference.drawing import draw
from inference.predicting import PANOPTIC, Found, default_threshold, kinds_of
from inference.trained import TrainedModel
from inference.visualize import save_picture
from tools.app_look import LEAST, Limits, Look, file_name, look_at
from tools.app_results import Choice, draw_where, find, hit, in_words, table, to_shown, written
from util.errors import UserError

COLUMNS = ["#", "class", "probability", "x", "y", "width", "height"]
HOUR = 3600  # seconds after which a visitor's picture, and whatever was drawn of it, is forgotten


@dataclass
class Controls:
    """What visitors set, and the buttons that give them files."""

    given: gr.Image
    kind: gr.Radio
    threshold: gr.Slider
    classes: gr.Dropdown
    json: gr.DownloadButton
    png: gr.DownloadButton


@dataclass
class Results:
    """What they see."""

    drawn: gr.Image
    words: gr.Textbox
    rows: gr.Dataframe
    explained: gr.Column
    attention: gr.Image


def build_page(trained: TrainedModel, limits: Limits) -> gr.Blocks:
    """The page for a model; nothing is served yet."""
    title = "/".join(Path(trained.source).parts[-2:])
    with gr.Blocks(analytics_enabled=False, title=f"DETR: {title}", delete_cache=(600, HOUR)) as page:
        look = gr.State(None, time_to_live=HOUR)
        gr.Markdown(
            "Click an object to see the attention it was found with, or a place without one to see where the "
            "encoder looks from there.",
            elem_id="advice",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                controls = build_controls(trained, limits)
            with gr.Column(scale=5, min_width=400):
                drawn = _picture("drawn")
                words = gr.Textbox(label=f"Found by {title}", lines=3, interactive=False, elem_id="words")
        with gr.Column(visible=False) as explained:
            attention = _picture("attention")
        rows = gr.Dataframe(
            headers=COLUMNS,
            datatype=["number", "str", "number", "number", "number", "number", "number"],
            label="Detections, in pixels of the picture: click a row for its attention",
            interactive=False,
            elem_id="rows",
        )
        results = Results(drawn, words, rows, explained, attention)
        connect(Answers(trained, limits, drawn.GRADIO_CACHE), look, controls, results)
    return page


def _picture(name: str) -> gr.Image:
    """A place for a drawn picture; a label would lie on it."""
    return gr.Image(
        show_label=False, interactive=False, buttons=["download", "fullscreen"], elem_id=name, alt_text=name
    )


def build_controls(trained: TrainedModel, limits: Limits) -> Controls:
    """What visitors set, as far as the model has a choice."""
    kinds = kinds_of(trained)
    given = gr.Image(
        label=f"Picture, up to {limits.megabytes:g} MB and {limits.megapixels:g} megapixels",
        sources=["upload", "webcam", "clipboard"],
        webcam_options=gr.WebcamOptions(mirror=False),
        buttons=[],
        height=260,
        elem_id="given",
    )
    # gradio's own would decode the file before anybody knows how large it becomes.
    given.preprocess = uploaded  # type: ignore[method-assign, assignment]
    kind = gr.Radio(kinds, value=kinds[-1], label="Show", visible=len(kinds) > 1, elem_id="kind")
    threshold = gr.Slider(
        LEAST, MOST, default_threshold(kinds[-1]), step=0.01, label="Least probability", elem_id="threshold"
    )
    # gradio's own complains of 0 while somebody types 0.5.
    threshold.preprocess = within_slider  # type: ignore[method-assign, assignment]
    names = trained.names or {i: str(i) for i in range(trained.args.num_classes)}
    classes = gr.Dropdown(
        [(name, i) for i, name in names.items()],
        value=[],
        multiselect=True,
        label="Classes",
        info="none chosen: all",
        elem_id="classes",
    )
    json = gr.DownloadButton("Download JSON", interactive=False, elem_id="json")
    png = gr.DownloadButton("Download the segments' PNG", interactive=False, visible=False, elem_id="png")
    return Controls(given, kind, threshold, classes, json, png)


def connect(answers: Answers, look: gr.State, controls: Controls, results: Results) -> None:
    """Say what answers which component; the buttons' files are made after the picture is shown."""
    choice = [look, controls.kind, controls.threshold, controls.classes]
    buttons = [controls.json, controls.png]
    shown = [results.drawn, results.words, results.rows, *buttons]
    explained = [results.explained, results.attention]
    loud: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {**loud, "show_progress": "hidden"}

    seen = controls.given.input(
        answers.see,
        [controls.given, *choice[1:]],
        [look, *shown, *explained],
        trigger_mode="always_last",
        **loud,
    )
    other_kind = controls.kind.input(default_threshold, controls.kind, controls.threshold, **quiet)
    drawn_anew = gr.on(
        [controls.threshold.input, controls.classes.input],
        answers.show,
        choice,
        shown,
        trigger_mode="always_last",
        **quiet,
    )
    for event in (seen, other_kind.then(answers.show, choice, shown, **quiet), drawn_anew):
        event.then(answers.files, choice, buttons, **quiet)
    results.drawn.select(answers.clicked, choice, explained, **loud)
    results.rows.select(answers.chosen, choice, explained, **loud)


# --- Answers --------------------------------------------------------------------------------------------

MOST = 0.99  # the highest threshold

Values = tuple[Any, ...]


class Answers:
    """What visitors are answered; each visitor's picture is kept by gradio, not here.

    Args:
        trained: the model.
        limits: of the pictures it is given.
        cache: folder that gradio serves files from, and where it deletes old ones.
    """

    def __init__(self, trained: TrainedModel, limits: Limits, cache: str):
        self.trained = trained
        self.limits = limits
        self.cache = cache

    def see(
        self, given: tuple[str, str] | None, kind: str, threshold: float, classes: Sequence[int]
    ) -> Values:
        """A new picture, or none -> what is kept of it, what `show` gives, and no attention yet."""
        look, reason = None, ""
        if given is not None:
            try:
                look = look_at(self.trained, *given, self.limits)
            except UserError as error:
                reason = str(error)
                gr.Warning(html.escape(reason))
        return look, *self.show(look, kind, threshold, classes, reason), *_no_attention()

    def show(
        self, look: Look | None, kind: str, threshold: float, classes: Sequence[int], reason: str = ""
    ) -> Values:
        """What is found: drawn, in words, as a table; and two buttons that wait for their files.

        Args:
            reason: why there is no picture.
        """
        waiting = gr.DownloadButton(interactive=False)
        if look is None:
            return None, reason, [], waiting, waiting
        started = time.perf_counter()
        found = find(look, _choice(kind, threshold, classes))
        milliseconds = 1e3 * (time.perf_counter() - started)
        drawn = self._saved(draw(look.shown, found, self.trained.names), f"{Path(look.name).stem}.jpg")
        return drawn, in_words(look, found, milliseconds), table(look, found), waiting, waiting

    def files(self, look: Look | None, kind: str, threshold: float, classes: Sequence[int]) -> Values:
        """The two buttons with what they download: JSON, and the ids of panoptic segments as a PNG."""
        contents = {} if look is None else written(look, _choice(kind, threshold, classes))
        folder = Path(tempfile.mkdtemp(dir=self.cache))
        paths: dict[str, str] = {}
        for name, content in contents.items():
            path = folder / name
            path.write_bytes(content)
            paths[path.suffix] = str(path)
        json, png = paths.get(".json"), paths.get(".png")
        return (
            gr.DownloadButton(value=json, interactive=json is not None),
            gr.DownloadButton(value=png, interactive=png is not None, visible=kind == PANOPTIC),
        )

    def clicked(
        self, look: Look | None, kind: str, threshold: float, classes: Sequence[int], event: gr.SelectData
    ) -> Values:
        """A click into the drawn picture -> the attention of what is there, or from there."""
        if look is None:
            return _no_attention()
        found = find(look, _choice(kind, threshold, classes))
        point = to_shown(look, *event.index)
        return self._attention(look, found, hit(found, *point), point)

    def chosen(
        self, look: Look | None, kind: str, threshold: float, classes: Sequence[int], event: gr.SelectData
    ) -> Values:
        """A click on a row of the table, which may be sorted -> the attention of its detection."""
        if look is None:
            return _no_attention()
        found = find(look, _choice(kind, threshold, classes))
        number = int(event.row_value[0] or 0) if event.row_value else 0
        return self._attention(look, found, number - 1) if 0 < number <= len(found) else _no_attention()

    def _attention(
        self, look: Look, found: Found, index: int | None, point: tuple[float, float] = (0, 0)
    ) -> Values:
        try:
            sheet = draw_where(look, found, index, point)
        except UserError as error:
            gr.Info(html.escape(str(error)))
            return _no_attention()
        return gr.Column(visible=True), self._saved(sheet, "attention.jpg")

    def _saved(self, picture: Tensor, name: str) -> str:
        path = Path(tempfile.mkdtemp(dir=self.cache)) / name
        save_picture(picture, path)
        return str(path)


def _no_attention() -> Values:
    return gr.Column(visible=False), None


def _choice(kind: str, threshold: float, classes: Sequence[int]) -> Choice:
    return Choice(kind, threshold, frozenset(classes))


def uploaded(payload: Any) -> tuple[str, str] | None:
    """What gradio knows of an uploaded file -> its path, and the name it had."""
    return None if payload is None or not payload.path else (payload.path, file_name(payload.orig_name))


def within_slider(value: float | None) -> float:
    """A threshold that somebody types, perhaps not to its end, as one that the slider has."""
    return min(max(value or 0, LEAST), MOST)
