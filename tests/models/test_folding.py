"""is_plain: a module that is exactly torch's own, unchanged, to which nobody listens."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize, prune

from models.folding import FrozenBatchNorm2d, is_plain


class Subclass(nn.Conv2d):
    pass


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 1)


@pytest.mark.parametrize("make", [conv, lambda: nn.MultiheadAttention(4, 2), lambda: FrozenBatchNorm2d(4)])
def test_modules_as_built_are_plain(make: Callable[[], nn.Module]) -> None:
    assert is_plain(make()) and is_plain(make().eval().double())


@pytest.mark.parametrize("module", [Subclass(4, 4, 1), nn.Linear(4, 4), nn.BatchNorm2d(4), nn.Identity()])
def test_other_classes_are_not(module: nn.Module) -> None:
    assert not is_plain(module)


HOOKS = ("forward", "forward_pre", "full_backward", "full_backward_pre")


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_the_module_and_on_all_modules_are_seen(kind: str) -> None:
    module = conv()
    handles = [
        getattr(module, f"register_{kind}_hook")(lambda *_: None),
        getattr(torch_module, f"register_module_{kind}_hook")(lambda *_: None),
    ]
    assert not is_plain(module)
    handles[0].remove()
    assert not is_plain(module)
    handles[1].remove()
    assert is_plain(module)


def test_a_forward_of_ones_own_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module, other = conv(), conv()
    module.forward = lambda x: x  # type: ignore
    assert not is_plain(module) and is_plain(other)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: x)
    assert not is_plain(other)


def test_changed_weights_are_seen() -> None:
    pruned, parametrised = conv(), conv()
    prune.l1_unstructured(pruned, "weight", 0.5)
    parametrize.register_parametrization(parametrised, "weight", nn.Tanh())
    assert not is_plain(pruned) and not is_plain(parametrised)
    prune.remove(pruned, "weight")
    assert is_plain(pruned)
    assert torch.count_nonzero(pruned.weight) == 8
