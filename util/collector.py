"""Millions of objects: no search for garbage where it only costs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """No search for cycles inside: among the records of a file of COCO's size it takes as long again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def leave_parents_objects() -> None:
    """In a forked process: search for garbage among its own objects alone.

    A search writes into every object, and so copies all pages that hold the parent's: some 75 MiB for a
    process that has imported torch.
    """
    gc.freeze()
