"""A data loader for one process: threads work on the pixels of the next batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader

AHEAD = 4  # batches: as many as two of torch's data workers have ready


class ThreadLoader(DataLoader):
    """torch's loader without workers, for datasets.augmented: gives the same batches, sooner.

    Random numbers are drawn in the caller's thread, item by item, in the order of the batches. As many
    threads as torch uses work on the pixels, some batches ahead of the one that is asked for: loading goes on
    while a batch is trained on, without processes that share memory.

    Args:
        As DataLoader, of which it takes dataset, batch_sampler, collate_fn and pin_memory.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with ThreadPoolExecutor(torch.get_num_threads(), "pixels") as threads:
            begun: deque[list[Future]] = deque()
            for indices in self.batch_sampler:  # type: ignore[union-attr]  # it is given
                begun.append([self._begin(index, threads) for index in indices])
                if len(begun) > AHEAD:
                    yield self._finish(begun.popleft())
            while begun:
                yield self._finish(begun.popleft())

    def _begin(self, index: int, threads: ThreadPoolExecutor) -> Future:
        try:
            return threads.submit(self.dataset.begin(index))  # type: ignore[attr-defined]
        except Exception as error:  # to be raised when it is this item's turn
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _finish(self, items: list[Future]) -> Any:
        samples, targets = self.collate_fn([item.result() for item in items])
        if not self.pin_memory:
            return samples, targets
        pinned = ({name: value.pin_memory() for name, value in target.items()} for target in targets)
        return samples.pin_memory(), tuple(pinned)
