"""Random numbers that follow from (seed, epoch, index), and leave the generators as they were."""

import multiprocessing
import random

import numpy as np
import pytest
import torch

from datasets.seeding import SharedEpoch, seeded


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def drawn(*key):
    with seeded(*key):
        return draw()


def test_draws_depend_on_the_three_numbers_alone():
    keys = [(seed, epoch, index) for seed in (0, 1, -1) for epoch in (0, 1) for index in (0, 1)]
    first = [drawn(*key) for key in keys]
    draw()
    assert [drawn(*key) for key in keys] == first
    for values in zip(*first, strict=True):  # of one generator
        assert len(set(values)) == len(keys)


def test_generators_go_on_as_if_nothing_had_been_drawn():
    def start():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    start()
    expected = [draw(), draw()]
    start()
    got = [draw()]
    with pytest.raises(KeyError), seeded(1, 2, 3):
        draw()
        raise KeyError
    got.append(draw())
    assert got == expected


def _wait_for(epoch, wanted, found):
    while epoch.value != wanted:
        pass
    found.put(epoch.value)


def test_a_running_process_sees_the_epoch_change():
    epoch = SharedEpoch()
    assert epoch.value is None
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(target=_wait_for, args=(epoch, 3, found), daemon=True)
    process.start()
    epoch.value = 3
    assert found.get() == 3
    process.join(300)
    epoch.value = None
    assert epoch.value is None
    with pytest.raises(ValueError, match="0 or more"):
        epoch.value = -1
