"""Random number generators continue where they were saved."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from util.random_state import random_state, random_state_kept, seed_everything, set_random_state


def draw() -> list[float]:
    """From every generator, also in ways that keep half a result for the next call."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        *torch.randn(3).tolist(),
    ]


def test_seeds_determine_what_is_drawn() -> None:
    seed_everything(3)
    first = draw()
    seed_everything(4)
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    seed_everything(3)
    assert draw() == first


@pytest.mark.parametrize("before", range(4))
def test_what_is_drawn_goes_on_after_a_checkpoint(tmp_path: Path, before: int) -> None:
    seed_everything(3)
    for _ in range(before):
        draw()  # an odd number leaves the second of two normal numbers waiting
    torch.save(random_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_a_state_is_not_moved_by_later_draws() -> None:
    seed_everything(3)
    state = random_state()
    first = draw()
    for _ in range(2):
        set_random_state(state)
        assert draw() == first


def test_a_block_may_draw_without_a_trace() -> None:
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with random_state_kept():
        draw()
    assert draw() == expected
    seed_everything(3)
    with pytest.raises(KeyError), random_state_kept():
        draw()
        raise KeyError
    assert draw() == expected


def test_a_machine_with_other_devices_takes_what_it_has() -> None:
    state = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 64}
    set_random_state(state)
