"""What a checkpoint says beside its weights, as far as it says it in a form that is known."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def stored_flags(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a checkpoint holds, none where its `args` are none; published files hold a Namespace."""
    flags = checkpoint.get("args")
    if isinstance(flags, argparse.Namespace):
        return dict(vars(flags))
    return dict(flags) if isinstance(flags, Mapping) else {}


def stored_categories(checkpoint: Mapping[str, Any]) -> dict[int, str]:
    """The categories that a checkpoint holds, id -> name; none in published ones, or in another form."""
    stored = checkpoint.get("categories")
    if not isinstance(stored, Mapping):
        return {}
    try:
        return {int(i): str(name) for i, name in stored.items()}
    except (TypeError, ValueError):  # by something else than ids
        return {}
