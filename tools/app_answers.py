"""What the page of tools/app.py answers when its visitors do something.

Each method of Answers is given the values of components, and returns those of others.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from inference.drawing import draw
from inference.predicting import PANOPTIC, PANOPTIC_THRESHOLD, THRESHOLD, Found
from inference.trained import TrainedModel
from inference.visualize import save_picture
from tools.app_found import Choice, draw_where, find, hit, in_words, table, timed, to_shown, written
from tools.app_look import LEAST, Limits, Look, file_name, look_at
from util.errors import UserError

MOST = 0.99
"""The highest threshold."""

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
        found, milliseconds = timed(find, look, _choice(kind, threshold, classes))
        drawn = self._stored(draw(look.shown, found, self.trained.names), f"{Path(look.name).stem}.jpg")
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
        return gr.Column(visible=True), self._stored(sheet, "attention.jpg")

    def _stored(self, picture: Tensor, name: str) -> str:
        path = Path(tempfile.mkdtemp(dir=self.cache)) / name
        save_picture(picture, path)
        return str(path)


def _no_attention() -> Values:
    return gr.Column(visible=False), None


def _choice(kind: str, threshold: float, classes: Sequence[int]) -> Choice:
    return Choice(kind, threshold, frozenset(classes))


def uploaded(payload: Any) -> tuple[str, str] | None:
    """What gradio knows of an uploaded file -> its path, and its name at home."""
    return None if payload is None or not payload.path else (payload.path, file_name(payload.orig_name))


def default_threshold(kind: str) -> float:
    """The published one."""
    return PANOPTIC_THRESHOLD if kind == PANOPTIC else THRESHOLD


def within_slider(value: float | None) -> float:
    """A threshold that somebody types, perhaps not to its end, as one that the slider has."""
    return min(max(value or 0, LEAST), MOST)
