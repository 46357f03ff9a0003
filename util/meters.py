"""Running statistics of a training or evaluation loop.

Values may be tensors on a device. They stay there until somebody reads a meter (a line is printed, an epoch
ends), and are then read in one transfer: a step never waits for the device because of a log.
"""

from __future__ import annotations

import collections
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from util.distributed import all_gather
from util.progress import Progress, length

T = TypeVar("T")

# Auxiliary layers' and unscaled terms: forty of them are logged, and no line can show them readably.
AUXILIARY_AND_UNSCALED = r"^(loss|class_error|cardinality_error)\w*?_(\d+|unscaled)$"
MAX_PENDING = 1000  # updates kept on the device before they are read unasked


class SmoothedValue:
    """Statistics of one series: over the last values (median, avg, max, value) and over all (global_avg).

    Every statistic of an empty series is nan.

    Args:
        window_size: how many values the statistics of the last values look at.
        fmt: a format string with the fields median, avg, global_avg, max and value.
    """

    def __init__(self, window_size: int = 20, fmt: str | None = None):
        self.fmt = "{median:.4f} ({global_avg:.4f})" if fmt is None else fmt
        self._window: collections.deque[float] = collections.deque(maxlen=window_size)
        self._total = 0.0
        self._count = 0
        self._settle: Callable[[], None] | None = None  # set by a logger that holds values back

    def update(self, value: float | Tensor, n: int = 1) -> None:
        """Add a value that counts n times; one with n = 0 does not count at all. A tensor is read at once."""
        if n == 0:
            return
        number = float(value)
        self._window.append(number)
        self._count += n
        self._total += number * n

    def _settled(self) -> SmoothedValue:
        if self._settle is not None:
            self._settle()
        return self

    @property
    def deque(self) -> collections.deque[float]:
        """The last values, oldest first."""
        return self._settled()._window

    @property
    def count(self) -> int:
        """How often values counted in all."""
        return self._settled()._count

    @count.setter
    def count(self, value: int) -> None:
        self._settled()._count = value

    @property
    def total(self) -> float:
        """Sum of all values, each times its n."""
        return self._settled()._total

    @total.setter
    def total(self, value: float) -> None:
        self._settled()._total = value

    @property
    def median(self) -> float:
        """Median of the last values; the lower one of two in the middle."""
        values = list(self.deque)
        if not values or any(math.isnan(value) for value in values):
            return math.nan
        return sorted(values)[(len(values) - 1) // 2]

    @property
    def avg(self) -> float:
        """Plain mean of the last values, whatever their n."""
        values = self.deque
        return sum(values) / len(values) if values else math.nan

    @property
    def global_avg(self) -> float:
        """Mean of all values, weighted by n."""
        return self.total / self.count if self.count else math.nan

    @property
    def max(self) -> float:
        """Largest of the last values."""
        return max(self.deque, default=math.nan)

    @property
    def value(self) -> float:
        """The last value."""
        return self.deque[-1] if self.deque else math.nan

    def synchronize_between_processes(self) -> None:
        """Sum count and total over all processes; the window stays this process's own."""
        gathered = all_gather((self.count, self.total))
        self.count = sum(count for count, _ in gathered)
        self.total = sum(total for _, total in gathered)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and strings."""
        window = self.deque
        sums = {"total": self.total, "count": self.count}
        return {"window": list(window), "window_size": window.maxlen, "fmt": self.fmt, **sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._window = collections.deque(state["window"], maxlen=state["window_size"])
        self._total, self._count, self.fmt = state["total"], state["count"], state["fmt"]

    def __str__(self) -> str:
        return self.fmt.format(
            median=self.median, avg=self.avg, global_avg=self.global_avg, max=self.max, value=self.value
        )


class MetricLogger:
    """Named meters, and a loop that shows them.

    Meters are read as `logger.loss` or `logger.meters["loss"]`, and come to life with their first value.

    Args:
        delimiter: between the fields of a printed line.
        hidden: regular expression of the names that lines leave out (they are counted all the same), such as
            AUXILIARY_AND_UNSCALED; "" shows every meter.
    """

    def __init__(self, delimiter: str = "\t", hidden: str = ""):
        self.delimiter = delimiter
        self.hidden = hidden
        self._pending: list[tuple[Sequence[str], Tensor, list[int]]] = []  # names, values [K], counts
        self._meters: defaultdict[str, SmoothedValue] = defaultdict(self._new_meter)

    def update(self, weights: Mapping[str, int] | None = None, /, **values: float | Tensor) -> None:
        """Add one value per name: numbers, or tensors of one element, which are copied but not read.

        Args:
            weights: how often the value of a name counts, 1 where not given. With 0 it does not count: so
                class_error, weighted by matched objects, leaves out batches without objects.
        """
        by_device: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
        for name, value in values.items():
            self._meters[name]  # exists from now on, in the order of the names
            if not isinstance(value, Tensor):
                value = torch.tensor(float(value), dtype=torch.float64)
            by_device[value.device][name] = value.detach().reshape(())
        for group in by_device.values():
            self.update_vector(list(group), torch.stack(list(group.values())), weights)

    def update_vector(
        self, names: Sequence[str], values: Tensor, weights: Mapping[str, int] | None = None
    ) -> None:
        """Add values[k] to the meter names[k], with no work per value before somebody reads a meter.

        Args:
            values: [K] on any device; copied, so that the caller may overwrite it.
            weights: as in `update`.
        """
        if values.shape != (len(names),):
            raise ValueError(f"{len(names)} names need a vector of as many values, not {list(values.shape)}")
        counts = [(weights or {}).get(name, 1) for name in names]
        self._pending.append((names, values.detach().clone(), counts))
        if len(self._pending) >= MAX_PENDING:
            self._flush()

    def _flush(self) -> None:
        """Read what is pending into the meters, in the order in which it came, with one transfer a device."""
        pending, self._pending = self._pending, []
        numbers: dict[torch.device, Iterator[float]] = {}
        for device in {values.device for _, values, _ in pending}:
            vectors = [values for _, values, _ in pending if values.device == device]
            numbers[device] = iter(torch.cat(vectors).cpu().tolist())
        for names, values, counts in pending:
            for name, count in zip(names, counts, strict=True):
                self._meters[name].update(next(numbers[values.device]), count)

    def _new_meter(self) -> SmoothedValue:
        meter = SmoothedValue()
        meter._settle = self._flush
        return meter

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        """Use a meter with a window or format of its own."""
        meter._settle = self._flush
        self.meters[name] = meter

    @property
    def meters(self) -> defaultdict[str, SmoothedValue]:
        """All meters by name, up to date; an unknown name creates a meter."""
        self._flush()
        return self._meters

    def __getattr__(self, name: str) -> SmoothedValue:
        if "_meters" in self.__dict__ and name in self.meters:
            return self._meters[name]
        raise AttributeError(f"{type(self).__name__} has no meter or attribute {name!r}")

    def shown(self) -> dict[str, SmoothedValue]:
        """The meters that lines show: all but the hidden ones and those without a value."""
        names = [name for name in self.meters if not self.hidden or not re.search(self.hidden, name)]
        return {name: self._meters[name] for name in names if self._meters[name].count}

    def __str__(self) -> str:
        return self.delimiter.join(f"{name}: {meter}" for name, meter in self.shown().items())

    def synchronize_between_processes(self) -> None:
        """Sum counts and totals over all processes, for all meters at once.

        Processes need not hold the same meters (one may have had no batch); afterwards they do, in one order.
        """
        gathered = all_gather({name: (meter.count, meter.total) for name, meter in self.meters.items()})
        names = dict.fromkeys(name for sums in gathered for name in sums)
        for name in names:
            found = [sums[name] for sums in gathered if name in sums]
            meter = self._meters.pop(name) if name in self._meters else self._new_meter()
            meter.count = sum(count for count, _ in found)
            meter.total = sum(total for _, total in found)
            self._meters[name] = meter

    def state_dict(self) -> dict[str, Any]:
        """All meters as plain Python values, for a checkpoint inside an epoch."""
        return {name: meter.state_dict() for name, meter in self.meters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._pending = []
        for name, meter_state in state.items():
            self._meters[name].load_state_dict(meter_state)

    def log_every(
        self,
        iterable: Iterable[T],
        print_freq: int,
        header: str | None = None,
        start: int = 0,
        total: int | None = None,
    ) -> Iterator[T]:
        """Yield from an iterable and show the meters: a bar on a terminal, else lines; main process only.

        Lines come after the first step, every print_freq steps and after the last one.

        Args:
            header: what opens each line, for example "Epoch: [3]".
            start: steps done before the first one that iterable yields, for an epoch that was interrupted.
            total: steps of the whole epoch; by default start and the length of iterable, if it has one.
        """
        items = length(iterable)
        if total is None and items is not None:
            total = start + items
        progress = Progress(self, header or "", start, total)
        began = received = time.perf_counter()
        try:
            for item in iterable:
                data_seconds = time.perf_counter() - received
                yield item
                progress.step_done(time.perf_counter() - received, data_seconds, item)
                if progress.done % print_freq == 0 or progress.done == start + 1:
                    progress.show()
                received = time.perf_counter()
            progress.show()
        finally:
            progress.close()
        progress.summarize(time.perf_counter() - began)
