"""Random numbers of a data set's items that depend on seed, epoch and index, not on who draws them.

Data workers come and go, and their number changes; a resumed run must still see the same augmentation.
So each item is drawn from generators seeded by (seed, epoch, index) where an epoch is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
