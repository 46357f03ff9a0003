"""Which images form which batch: shuffled for training, whole batches dealt out for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from torch.utils.data import DistributedSampler, Sampler

from util.errors import UserError


class TrainBatchSampler(Sampler[list[int]]):
    """Batches of one rank for training: shuffled anew each epoch, the last incomplete batch dropped.

    The order follows from seed and epoch alone, so an interrupted epoch continues with
    `set_epoch(epoch, start_batch)` where it stopped. Taken together, the ranks' k-th batches hold the
    images that one process with the whole batch size would take, as long as the images divide evenly.

    `len()` is the number of batches that the next iteration gives: those from `start_batch` on.

    Args:
        dataset: anything with a length.
        batch_size: images a batch and rank.
        num_replicas, rank: number of processes, and which of them this is.
        seed: of the order; the same on every rank.

    Raises:
        UserError: there are too few images for one batch.
    """

    def __init__(self, dataset: Sized, batch_size: int, num_replicas: int = 1, rank: int = 0, seed: int = 0):
        self.batch_size = batch_size
        self._order: DistributedSampler = DistributedSampler(
            dataset,  # type: ignore[arg-type]  # only its length is used
            num_replicas=num_replicas,
            rank=rank,
            shuffle=True,
            seed=seed,
        )
        self.start_batch = 0
        if self.batches_per_epoch == 0:
            raise UserError(
                f"the training set has {len(dataset)} images, {len(self._order)} for each of {num_replicas} "
                f"process(es), fewer than one batch of {batch_size}: lower --batch_size"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, wherever the next iteration starts."""
        return len(self._order) // self.batch_size

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch (from 0) with which it begins."""
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"start_batch is 0 to {self.batches_per_epoch}, not {start_batch}")
        self._order.set_epoch(epoch)
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for batch in range(self.start_batch, self.batches_per_epoch):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch


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
