"""What files of torch.save may hold beside tensors and plain values, and how others are refused."""

from __future__ import annotations

import argparse
import re
from datetime import date, datetime, timedelta, timezone
from pathlib import PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

# Modules whose functions and classes act when they are called, as a pickle does.
ACTING = ["os", "posix", "nt", "io", "_io", "sys", "subprocess", "shutil", "runpy", "importlib", "ctypes"]


def refusal(error: Exception) -> str:
    """Why torch.load(..., weights_only=True) does not read a file, from what it says."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not found:
        return "not a checkpoint, or damaged"
    name = found.group(1)
    if "." not in name or name.split(".")[0] in ACTING:  # torch leaves out `builtins`
        return (
            f"refused, because loading it would run code ({name}); ask its author for a file that holds only "
            "tensors"
        )
    return (
        f"holds a {name}, neither a tensor nor a plain value, and is not loaded: where that package is, save "
        "its state_dict alone with torch.save"
    )


def harmless_types() -> list[Any]:
    """What checkpoints hold beside tensors and plain values; making one has no effect but itself."""
    import numpy as np

    arrays = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bhilqBHILQefdFDSUMmO")]
    # NumPy 1 and 2 keep the functions that make scalars and arrays in modules of different names.
    makers = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    arrays += [
        (maker, f"numpy.{core}.multiarray.{maker.__name__}") for maker in makers for core in ("core", "_core")
    ]
    # A path of another system cannot be made here, but its text can. Python 3.13 alone has a module for them.
    paths = [
        (kind, f"{module}.{prefix}{kind.__name__.removeprefix('Pure')}")
        for kind in (PurePosixPath, PureWindowsPath)
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
    ]
    # torch fills dicts and lists alone: these two become such.
    filled = [
        (lambda *default_factory: {}, "collections.defaultdict"),
        (lambda items=(), most=None: list(items), "collections.deque"),
    ]
    plain = [range, slice, complex, frozenset, list, dict, tuple, set, int, float, str, bool]
    dates = [date, datetime, timedelta, timezone]
    return [argparse.Namespace, SimpleNamespace, *plain, *filled, *dates, *arrays, *paths]
