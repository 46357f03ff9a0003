"""Random numbers that follow from (seed, epoch, index), and leave the generators as they were."""

import random

import numpy as np
import pytest
import torch

from datasets.sampler import ItemSeeds


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def drawn(seed, epoch, index):
    seeds = ItemSeeds(seed)
    seeds.set_epoch(epoch)
    with seeds.of_item(index):
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
    seeds = ItemSeeds(1)
    seeds.set_epoch(2)
    with pytest.raises(KeyError), seeds.of_item(3):
        draw()
        raise KeyError
    got.append(draw())
    assert got == expected


def test_without_an_epoch_each_block_draws_on():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    seeds = ItemSeeds()
    got = []
    for _ in range(2):
        with seeds.of_item(0):
            got.append(draw())
    assert got == expected


def test_epochs_are_counted_from_zero():
    with pytest.raises(ValueError, match="0 or more"):
        ItemSeeds().set_epoch(-1)
