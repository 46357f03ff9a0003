"""Ids of any type as integers, alike wherever they are referred to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from datasets.layouts import is_integer

_NUMBER = re.compile(r"(-?[0-9]{1,19})(?:\.0*)?")


def as_integer(value: Any) -> int | None:
    """The integer that 7, '7', ' 7.0' or 7.0 means; None for what means none."""
    if isinstance(value, str):
        value = int(found[1]) if (found := _NUMBER.fullmatch(value.strip())) else None
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if is_integer(value) else None


class Numbering:
    """Integers for the ids of a list, and for what refers to them.

    Integers stay. '7' and 7.0 become 7 where no other entry is 7; every other id becomes the lowest number
    from 1 on that neither an id nor a reference is. Equal ids stay equal.

    Args:
        ids: of the entries, of any type.
        references: to them; their numbers are not given to anything else.
        names: of each entry: a reference may be one that means a single number.

    Attributes:
        numbers: of the entries, in their order.
    """

    def __init__(
        self, ids: Sequence[Any], references: Iterable[Any] = (), names: Sequence[Sequence[Any]] = ()
    ):
        taken = {value for value in ids if is_integer(value)}
        referred = {as_integer(value) for value in itertools.chain(ids, references)}
        fresh = (number for number in itertools.count(1) if number not in taken and number not in referred)
        self._exact: dict[str, int] = {}
        self._meant: dict[int, int] = {number: number for number in taken}
        self.numbers: list[int] = []
        for value in ids:
            known = None if value is None else self._exact.get(repr(value))
            number = value if is_integer(value) else known
            if number is None:
                meant = as_integer(value)
                number = meant if meant is not None and meant not in taken else next(fresh)
                taken.add(number)
                if meant is not None:
                    self._meant.setdefault(meant, number)
            if value is not None:
                self._exact[repr(value)] = number
            self.numbers.append(number)
        found: dict[str, set[int]] = {}
        for called, number in zip(names, self.numbers, strict=False):
            for name in called:
                if isinstance(name, str):
                    found.setdefault(name.strip(), set()).add(number)
        self._named = {name: next(iter(numbers)) for name, numbers in found.items() if len(numbers) == 1}

    def __call__(self, reference: Any) -> int | None:
        """The number of the entry that is referred to: by its id, by what the id means, or by its name."""
        if (number := self._exact.get(repr(reference))) is not None:
            return number
        meant = as_integer(reference)
        if meant is not None and meant in self._meant:
            return self._meant[meant]
        return self._named.get(reference.strip()) if isinstance(reference, str) else None
