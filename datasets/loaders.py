"""Data loaders, of batches on their way to the device: by worker processes, or by threads of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from datasets.augmented import AugmentedImages
from util.collector import leave_parents_objects
from util.interruption import leave_to_parent
from util.nested_tensor import collate_bytes
from util.parcel import handed_over

AHEAD = 4  # batches: as many as two of torch's data workers have ready
MOST_THREADS = 4  # Python's lock keeps more from helping, and each has a team of torch's threads of its own


def make_loader(
    dataset: Dataset,
    batch_sampler: Iterable[list[int]],
    num_workers: int = 0,
    *,
    multiple: int = 1,
    pinned: bool = False,
    seed: int = 0,
) -> DataLoader:
    """A loader of (ByteBatch, targets): once an epoch is set, the same batches for any number of workers.

    Args:
        dataset: of uint8 images; one of datasets.augmented, or a user's own.
        batch_sampler: the indices of each batch.
        num_workers: processes; 0: threads of this one, or nobody else where the data set has a `__getitem__`
            of its own.
        multiple: see collate_bytes.
        pinned: put what goes to the device into page-locked memory.
        seed: of the workers.
    """
    common: dict[str, Any] = {
        "batch_sampler": batch_sampler,
        "collate_fn": partial(handed_over, partial(collate_bytes, multiple=multiple)),
        "pin_memory": pinned,
    }
    if num_workers == 0 and type(dataset).__getitem__ is AugmentedImages.__getitem__:
        return ThreadLoader(dataset, **common)
    return DataLoader(
        dataset,
        **common,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        # One of its own keeps the seeds of the workers apart from the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def _start_worker(_: int) -> None:
    leave_to_parent()
    leave_parents_objects()


class ThreadLoader(DataLoader):
    """torch's loader without workers, for datasets.augmented: gives the same batches, sooner.

    Random numbers are drawn in the caller's thread, item by item, in the order of the batches, and some
    batches ahead of the one that is asked for. A few threads work on the pixels: loading goes on while a
    batch is trained on, without processes that share memory. Transforms of a user's own, which want pixels,
    work in the caller's thread.

    Args:
        As DataLoader, of which it takes dataset, batch_sampler, collate_fn and pin_memory.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        threads = ThreadPoolExecutor(min(torch.get_num_threads(), MOST_THREADS), "pixels")
        begun: deque[list[Future]] = deque()
        try:
            for indices in self.batch_sampler:  # type: ignore[union-attr]  # it is given
                begun.append([self._begin(index, threads) for index in indices])
                if len(begun) > AHEAD:
                    yield self._finish(begun.popleft())
            while begun:
                yield self._finish(begun.popleft())
        finally:
            # An epoch that is left waits for nothing that has not begun.
            threads.shutdown(cancel_futures=True)

    def _begin(self, index: int, threads: ThreadPoolExecutor) -> Future:
        try:
            return threads.submit(self.dataset.begin(index))  # type: ignore[attr-defined]
        except Exception as error:  # to be raised when it is this item's turn
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _finish(self, items: list[Future]) -> Any:
        batch = self.collate_fn([item.result() for item in items])
        return pin_memory(batch) if self.pin_memory and torch.cuda.is_available() else batch
