"""Whether a function is the project's own, or somebody has put another in its place.

One pass over all decoder layers may stand in for the published calls, one a layer, only where nobody has
replaced what it stands in for. Functions are marked where they are defined, so a replacement is seen wherever
it is made: on the object, in a subclass, on the class, in the module, in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

AnyFunction = TypeVar("AnyFunction", bound=Callable)

_ORIGINALS: list[Callable] = []


def original(function: AnyFunction) -> AnyFunction:
    """Decorator that marks a function as the project's own. Whoever edits such a function takes it off."""
    _ORIGINALS.append(function)
    return function


def is_original(owner: Any, name: str) -> bool:
    """Whether calling `owner.name` calls the function that the project defines by this name.

    Args:
        owner: an object or a module; or what was found by this name already.
    """
    found = owner if isinstance(owner, FunctionType) else getattr(owner, name, None)
    function = getattr(found, "__func__", found)  # of a bound method
    return any(function is own and own.__name__ == name for own in _ORIGINALS)
