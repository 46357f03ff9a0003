"""HTML and SVG as text."""

from __future__ import annotations

from html import escape as _escape

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
