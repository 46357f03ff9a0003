"""Which images form which batch, and which random numbers each image meets.

Batches are shuffled for training; whole ones are dealt out for evaluation. Data workers come and go, and
their number changes; a resumed run must still see the same augmentation. So each item is drawn from
generators seeded by (seed, epoch, index) where an epoch is known.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler

from util.errors import UserError


class TrainBatchSampler(Sampler[list[int]]):
    """Batches of one rank for training: shuffled anew each epoch, the last incomplete batch dropped.

    The order follows from seed and epoch alone, so an interrupted epoch continues with
    `set_epoch(epoch, start_batch)` where it stopped. Taken together, the ranks' k-th batches hold the
    images that one process with the whole batch size would take, as long as the images divide evenly.

    With `groups`, every batch holds images of one group: the shuffled images are collected group by group, a
    batch is made whenever a group has enough for one, and the batches are dealt out to the ranks in turn.
    Each group drops its last incomplete batch. The number of batches is the same in every epoch and on every
    rank, as without groups.

    `len()` is the number of batches that the next iteration gives: those from `start_batch` on.

    Args:
        dataset: anything with a length.
        batch_size: images a batch and rank.
        num_replicas, rank: number of processes, and which of them this is.
        seed: of the order; the same on every rank.
        groups: the group of each image, in the data set's order; None: all are one.

    Raises:
        UserError: there are too few images for one batch.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        groups: Sequence[int] | None = None,
    ):
        self.batch_size = batch_size
        self.groups = groups
        alone = groups is not None  # then every rank sees the whole order, to take its batches of all
        self._order: DistributedSampler = DistributedSampler(
            dataset,  # type: ignore[arg-type]  # only its length is used
            num_replicas=1 if alone else num_replicas,
            rank=0 if alone else rank,
            shuffle=True,
            seed=seed,
        )
        self._dealt = slice(rank, None, num_replicas) if alone else slice(None)
        # Of a whole epoch, wherever the next iteration starts
        self.batches_per_epoch = len(self._order) // batch_size
        if groups is not None:
            whole = sum(count // batch_size for count in Counter(groups).values())
            self.batches_per_epoch = whole // num_replicas
        self.start_batch = 0
        if self.batches_per_epoch == 0:
            share = -(-len(dataset) // num_replicas)
            grouped = ", of one aspect (--group_by_aspect)" if alone else ""
            raise UserError(
                f"the training set has {len(dataset)} images, {share} for each of {num_replicas} "
                f"process(es), fewer than one batch of {batch_size}{grouped}: lower --batch_size"
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch (from 0) with which it begins."""
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"start_batch is 0 to {self.batches_per_epoch}, not {start_batch}")
        self._order.set_epoch(epoch)
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[int]]:
        collected: defaultdict[int, list[int]] = defaultdict(list)
        batches: list[list[int]] = []  # every whole one; those of all ranks where images are grouped
        for index in self._order:
            group = collected[0 if self.groups is None else self.groups[index]]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(list(group))
                group.clear()
        yield from batches[self._dealt][self.start_batch : self.batches_per_epoch]

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch


def aspect_groups(dataset: Any) -> list[int]:
    """For each image of a data set 1 if it is wider than high, 0 otherwise.

    Args:
        dataset: has `get_height_and_width(index)`.

    Raises:
        UserError: the annotation file does not give an image's width and height.
    """
    if not hasattr(dataset, "get_height_and_width"):
        raise UserError("--group_by_aspect: this data set does not tell the sizes of images; leave it out")
    groups = []
    for index in range(len(dataset)):
        try:
            height, width = dataset.get_height_and_width(index)
            known = height > 0 and width > 0
        except (KeyError, TypeError):  # left out, or no number
            known = False
        if not known:
            raise UserError(
                f"--group_by_aspect: {dataset.annotations.source} gives no width and height of image "
                f"{dataset.ids[index]}; add them, or leave the flag out"
            )
        groups.append(int(width > height))
    return groups


class EvalBatchSampler(Sampler[list[int]]):
    """Batches of one rank for evaluation: the very batches of a single process, dealt out in turn.

    Rank r of w takes batches r, r + w, r + 2w, … of the images in order; the last batch may be smaller. No
    image is seen twice, and none is left out, so figures do not depend on the number of processes.

    Args:
        dataset: anything with a length.
        batch_size: images a batch.
        num_replicas, rank: number of processes, and which of them this is.
    """

    def __init__(self, dataset: Sized, batch_size: int, num_replicas: int = 1, rank: int = 0):
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank is 0 to {num_replicas - 1}, not {rank}")
        self.num_images = len(dataset)
        self.batch_size = batch_size
        self._starts = range(rank * batch_size, self.num_images, num_replicas * batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield list(range(start, min(start + self.batch_size, self.num_images)))

    def __len__(self) -> int:
        return len(self._starts)


class ItemSeeds:
    """Seeds the transforms of each item of a data set.

    Args:
        seed: of all epochs.

    Attributes:
        epoch: int64 [1], in memory shared with the data workers, which see at once when it changes, also
            those that outlive an epoch; -1 as long as nobody has set one.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.epoch = torch.full((1,), -1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int | None) -> None:
        """Fix what is drawn for each item; None: draw anew at each call."""
        if epoch is not None and epoch < 0:
            raise ValueError(f"an epoch is 0 or more, not {epoch}")
        self.epoch.fill_(-1 if epoch is None else epoch)

    @contextmanager
    def of_item(self, index: int) -> Iterator[None]:
        """A block in which `random`, NumPy's and torch's CPU generators follow from (seed, epoch, index).

        Their states are restored after it, so that dropout and whatever else draws from them goes on as if
        the block had not been there. Transforms of any origin may be used: all three generators are covered.
        """
        epoch = int(self.epoch)
        if epoch < 0:
            yield
            return
        sequence = np.random.SeedSequence([self.seed % 2**63, epoch, index])
        for_python, for_numpy, for_torch = (int(word) for word in sequence.generate_state(3, np.uint32))
        generator = torch.default_generator  # not torch.manual_seed, which would touch the devices as well
        states = random.getstate(), np.random.get_state(), generator.get_state()
        random.seed(for_python)
        np.random.seed(for_numpy)
        generator.manual_seed(for_torch)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            generator.set_state(states[2])
