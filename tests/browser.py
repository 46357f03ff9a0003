"""A headless Chromium for tests that look at pages as a user does.

The browser and its driver cannot be opened twice at a time: no fixture of a wider scope than a module's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb"),
)
LOCAL_SCHEMES = ("file", "data", "blob", "about")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def find_chromium() -> str | None:
    """The path of an installed Chromium ($CHROMIUM comes first), None where there is none."""
    chosen = os.environ.get("CHROMIUM")
    return chosen or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium, and end it. The test is skipped where it or playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or name one in $CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that is looked at, and what it did meanwhile.

    Attributes:
        errors: messages of the console's level "error", and uncaught exceptions.
        requests: addresses beyond this machine that the page asked for; none of them was answered.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        root = "document.documentElement"
        return int(self.page.evaluate(f"() => {root}.scrollWidth - {root}.clientWidth"))

    def broken_images(self) -> int:
        """Images that are loaded and have no pixels."""
        broken = "() => [...document.images].filter(i => i.complete && !i.naturalWidth).length"
        return int(self.page.evaluate(broken))

    def assert_sound(self) -> None:
        """Nothing failed, was fetched, is broken, or is wider than the window."""
        assert self.errors == []
        assert self.requests == []
        assert self.broken_images() == 0
        assert self.overflow() == 0


@contextlib.contextmanager
def visit(
    browser: Browser, address: str, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[Visit]:
    """Open an address in a window of its own, cut off from the network but for this machine.

    Args:
        address: file:// or http://127.0.0.1.
        width, height: of the window, in pixels.
        dark: prefer a dark colour scheme.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        accept_downloads=True,
    )
    try:
        seen = Visit(context.new_page())

        def console(message: ConsoleMessage) -> None:
            if message.type == "error":
                seen.errors.append(f"{message.text} ({message.location.get('url', '')})")

        def requested(request: Request) -> None:
            if not is_local(request.url):
                seen.requests.append(request.url)

        seen.page.on("console", console)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on("request", requested)
        context.route(lambda url: not is_local(url), lambda route: route.abort())
        seen.page.goto(address)
        yield seen
    finally:
        context.close()


def is_local(address: str) -> bool:
    """Whether an address stays on this machine."""
    parts = urlsplit(address)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname in LOCAL_HOSTS
