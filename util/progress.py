"""What a user sees of a running loop: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
from collections import deque
from datetime import timedelta
from typing import Any

import torch

from util.distributed import get_world_size, is_main_process

MEGABYTE = 1024 * 1024
RECENT = 20  # steps over which speed is averaged
BAR = "{desc} {n_fmt}/{total_fmt} eta {remaining}{postfix}"  # without a bar: the numbers need its room


class Progress:
    """How far a loop is and how fast; only the main process prints.

    Args:
        meters: a MetricLogger, read whenever something is shown, and only then.
        header: what opens each line.
        start: steps done before this loop.
        total: steps at its end, None if unknown.
    """

    def __init__(self, meters: Any, header: str, start: int, total: int | None):
        self.meters, self.header, self.start, self.total = meters, header, start, total
        self.done = self.last_shown = start
        self.seconds = 0.0
        self.recent_seconds: deque[float] = deque(maxlen=RECENT)
        self.recent_data_seconds: deque[float] = deque(maxlen=RECENT)
        self.recent_images: deque[int] = deque(maxlen=RECENT)
        self.prints = is_main_process()
        self.bar: Any = None
        # There may be no output, or an object that has `write` and `flush` alone.
        if self.prints and hasattr(sys.stdout, "isatty") and sys.stdout.isatty():
            from tqdm import tqdm

            options: dict[str, Any] = {"file": sys.stdout, "dynamic_ncols": True, "bar_format": BAR}
            self.bar = tqdm(desc=header, initial=start, total=total, **options)

    def step_done(self, seconds: float, data_seconds: float, batch: Any) -> None:
        """Count a step that took so long in all, and so long until its batch was there."""
        self.done += 1
        self.seconds += seconds
        self.recent_seconds.append(seconds)
        self.recent_data_seconds.append(data_seconds)
        if isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], (tuple, list)):
            # (samples, targets): a target an image; several batches of a step hold one more level
            self.recent_images.append(sum(len(t) if isinstance(t, (tuple, list)) else 1 for t in batch[1]))
        if self.bar is not None:
            self.bar.update(1)

    def show(self) -> None:
        """Print a line, or refresh the text beside the bar; nothing where this step was shown already."""
        if not self.prints or self.done == self.last_shown:
            return
        self.last_shown = self.done
        # Over all processes, in the last steps; unknown where batch sizes are
        rate = None
        if self.recent_images and sum(self.recent_seconds):
            rate = sum(self.recent_images) / sum(self.recent_seconds) * get_world_size()
        data_seconds, megabytes = _mean(self.recent_data_seconds), _memory_megabytes()
        if self.bar is not None:
            shown = self.meters.shown()
            names = [name for name in ("loss", "class_error", "lr") if name in shown] or list(shown)[:3]
            values = [shown[name].value if name == "lr" else shown[name].median for name in names]
            fields = [f"{name} {value:.4g}" for name, value in zip(names, values, strict=True)]
            fields += [] if rate is None else [f"{rate:.1f} images/s"]
            fields += [f"data {data_seconds:.3f} s", f"{megabytes:.0f} MB"]
            self.bar.set_postfix_str("  ".join(fields))
            return
        count, eta = f"[{self.done}]", ""
        if self.total is not None:
            count = f"[{self.done:{len(str(self.total))}}/{self.total}]"
            eta = f"eta: {_clock(self.seconds / (self.done - self.start) * (self.total - self.done))}"
        fields = [self.header, count, eta, str(self.meters)]
        fields += [] if rate is None else [f"images/s: {rate:.1f}"]
        fields += [f"time: {_mean(self.recent_seconds):.4f}", f"data: {data_seconds:.4f}"]
        fields += [f"max mem: {megabytes:.0f}"]
        print(self.meters.delimiter.join(filter(None, fields)), flush=True)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self.bar is not None:
            self.bar.close()

    def summarize(self, seconds: float) -> None:
        """Say how long the loop took."""
        if self.prints:
            per_step = seconds / max(self.done - self.start, 1)
            print(f"{self.header} Total time: {_clock(seconds)} ({per_step:.4f} s / it)".lstrip(), flush=True)


def length(iterable: Any) -> int | None:
    """How many items come; None where nobody knows."""
    try:
        return len(iterable)
    except TypeError:  # a generator, or a loader over a stream
        return None


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _memory_megabytes() -> float:
    """Most memory used so far: allocated on the GPU where one is in use, else resident in this process."""
    if torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / MEGABYTE
    try:
        import resource
    except ImportError:  # Windows has no such count
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEGABYTE if sys.platform == "darwin" else peak / 1024  # bytes there, kilobytes elsewhere
