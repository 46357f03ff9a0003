"""Random numbers of a data set's items that depend on seed, epoch and index, not on who draws them.

Data workers come and go, and their number changes; a resumed run must still see the same augmentation.
So each item is drawn from generators seeded by (seed, epoch, index) where an epoch is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch


class SharedEpoch:
    """The current epoch, seen at once by every process that holds a copy of the data set.

    Data workers that outlive an epoch hold a copy of their own; the number lies in shared memory, which
    survives fork and torch's pickling for spawned workers.
    """

    _NONE = -1

    def __init__(self) -> None:
        self._epoch = torch.full((1,), self._NONE, dtype=torch.int64).share_memory_()

    @property
    def value(self) -> int | None:
        """The epoch, None as long as nobody has set one."""
        epoch = int(self._epoch)
        return None if epoch == self._NONE else epoch

    @value.setter
    def value(self, epoch: int | None) -> None:
        if epoch is not None and epoch < 0:
            raise ValueError(f"an epoch is 0 or more, not {epoch}")
        self._epoch.fill_(self._NONE if epoch is None else epoch)

    def drawing(self, seed: int, index: int) -> AbstractContextManager[None]:
        """A block in which item `index` draws by `seeded`; freely as long as nobody has set an epoch."""
        epoch = self.value
        return nullcontext() if epoch is None else seeded(seed, epoch, index)


@contextmanager
def seeded(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Within the block, `random`, NumPy's and torch's CPU generators follow from the three numbers alone.

    Their states are restored behind it, so that dropout and whatever else draws from them goes on as if
    the block had not been there. Transforms of any origin may be used: all three generators are covered.
    """
    sequence = np.random.SeedSequence([seed % 2**63, epoch, index])
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
