"""Records of Python, packed in one buffer: how a data set keeps annotations that data workers share."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch


class PackedRecords(Sequence):
    """A list whose entries lie pickled in one tensor, as detectron2 keeps a data set's.

    COCO's training set has 860,000 objects. As Python dicts they take gigabytes, and every data worker that
    touches them copies them page by page, because counting references writes to them. A tensor is read
    without being written, so forked workers share it, and torch hands it to spawned ones in shared memory.

    Args:
        records: what pickle takes; each is packed when it comes.
    """

    def __init__(self, records: Iterable[Any]):
        buffer, ends = bytearray(), [0]
        for record in records:
            buffer += pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
        self._buffer = torch.frombuffer(buffer or bytearray(1), dtype=torch.uint8)
        self._ends = torch.from_numpy(np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        """A new copy of one record."""
        index = range(len(self))[index]
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(self._buffer[start:end].numpy().data)

    @property
    def nbytes(self) -> int:
        """Memory that the buffer takes."""
        return self._buffer.nbytes + self._ends.nbytes
