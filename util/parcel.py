"""What a data worker hands over, all of its tensors in one piece of shared memory.

Each tensor that is sent by itself costs the receiving process a connection to the worker, a quarter of a
millisecond: for a batch of images and targets more than loading it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils.data
from torch import Tensor

from util.errors import UserError

_ALIGNMENT = 64  # bytes


class _Place(NamedTuple):
    """Where a tensor lies in the piece of memory."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    interleaved: bool
    """Its first axis is the last one in memory, as of a decoded picture."""


def handed_over(make: Callable[..., Any], *content: Any) -> Any:
    """make(*content), or in a data worker what arrives as that: for a data loader's `collate_fn`.

    Args:
        make, content: see Parcel.
    """
    return make(*content) if torch.utils.data.get_worker_info() is None else Parcel(make, *content)


class Parcel:
    """A call to be made where this arrives: out of a data loader's queue comes the result.

    Args:
        make: what is called; a function that pickle knows by name.
        content: its arguments: tuples, named ones too, lists and dicts of tensors and other values.

    Raises:
        UserError: there is not enough shared memory.
    """

    def __init__(self, make: Callable[..., Any], *content: Any):
        # Packed here and not when it is pickled: a thread does that, whose errors reach nobody, and the
        # loader would wait for ever.
        tensors: list[Tensor] = []
        places: list[_Place] = []
        self.make = make
        self.structure = _emptied(content, tensors, places)
        self.memory = _shared(places[-1].start + places[-1].size if places else 0)
        for tensor, place in zip(tensors, places, strict=True):
            _lying(self.memory, place).copy_(tensor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _delivered, (self.make, self.structure, self.memory)


def _shared(size: int) -> Tensor:
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise UserError(
            f"no room for a batch of {size / 2**20:.1f} MiB in the memory that processes share (/dev/shm): "
            "pass --num_workers 0, or give the container more (docker run --shm-size=1g)"
        ) from error
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _delivered(make: Callable[..., Any], structure: Any, memory: Tensor) -> Any:
    return make(*_filled(structure, memory))


def _emptied(value: Any, tensors: list[Tensor], places: list[_Place]) -> Any:
    """The same with places instead of tensors, which are appended."""
    if isinstance(value, Tensor):
        end = places[-1].start + places[-1].size if places else 0
        interleaved = value.ndim == 3 and not value.is_contiguous() and value.movedim(0, -1).is_contiguous()
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        size = value.numel() * value.element_size()
        tensors.append(value)
        places.append(_Place(start, size, value.dtype, tuple(value.shape), interleaved))
        return places[-1]
    if isinstance(value, dict):
        return {key: _emptied(inner, tensors, places) for key, inner in value.items()}
    if _is_sequence(value):
        return _alike(value, [_emptied(inner, tensors, places) for inner in value])
    return value


def _filled(value: Any, memory: Tensor) -> Any:
    """The inverse of `_emptied`; tensors are views of the memory."""
    if isinstance(value, _Place):
        return _lying(memory, value)
    if isinstance(value, dict):
        return {key: _filled(inner, memory) for key, inner in value.items()}
    if _is_sequence(value):
        return _alike(value, [_filled(inner, memory) for inner in value])
    return value


def _is_sequence(value: Any) -> bool:
    return type(value) in (list, tuple) or hasattr(value, "_make")


def _alike(value: Any, parts: list[Any]) -> Any:
    """A sequence of the type of `value`, of other parts."""
    return value._make(parts) if hasattr(value, "_make") else type(value)(parts)


def _lying(memory: Tensor, place: _Place) -> Tensor:
    flat = memory[place.start : place.start + place.size].view(place.dtype)
    if not place.interleaved:
        return flat.view(place.shape)
    first, *rest = place.shape
    return flat.view(*rest, first).movedim(-1, 0)
