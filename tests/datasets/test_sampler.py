"""Batches for training and evaluation: what is covered, by whom, and in which order."""

import pytest

from datasets.sampler import EvalBatchSampler, TrainBatchSampler
from util.errors import UserError


def images(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("count, ranks", [(1, 1), (23, 1), (23, 2), (23, 3), (24, 3), (2, 3)])
def test_evaluation_deals_out_the_batches_of_one_process(count, ranks):
    alone = list(EvalBatchSampler(range(count), 4))
    dealt = [list(EvalBatchSampler(range(count), 4, ranks, rank)) for rank in range(ranks)]
    assert images(alone) == list(range(count))
    assert all(len(batch) == 4 for batch in alone[:-1])
    for rank, batches in enumerate(dealt):
        assert batches == alone[rank::ranks]
        assert len(EvalBatchSampler(range(count), 4, ranks, rank)) == len(batches)


def test_evaluation_refuses_an_impossible_rank():
    with pytest.raises(ValueError, match="rank is 0 to 1"):
        EvalBatchSampler(range(9), 2, 2, 2)


def test_training_shuffles_each_epoch_anew_and_drops_the_incomplete_batch():
    sampler = TrainBatchSampler(range(23), 4, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == sampler.batches_per_epoch == 5
        assert all(len(batch) == 4 for batch in batches)
        assert len(set(images(batches))) == 20
        orders.append(batches)
    assert orders[0] == orders[2] != orders[1]
    assert images(orders[0]) != sorted(images(orders[0]))
    assert list(TrainBatchSampler(range(23), 4, seed=2)) != orders[0]


@pytest.mark.parametrize("ranks", [2, 3])
def test_training_ranks_together_take_the_batches_of_one_process(ranks):
    together = TrainBatchSampler(range(24), 2 * ranks, seed=3)
    apart = [TrainBatchSampler(range(24), 2, ranks, rank, seed=3) for rank in range(ranks)]
    for sampler in (together, *apart):
        sampler.set_epoch(5)
    for whole, *parts in zip(together, *apart, strict=True):
        assert sorted(whole) == sorted(images(parts))


def test_an_interrupted_epoch_goes_on_where_it_stopped():
    sampler = TrainBatchSampler(range(23), 4, 2, 1, seed=1)
    sampler.set_epoch(7)
    whole = list(sampler)
    for start in range(len(whole) + 1):
        sampler.set_epoch(7, start)
        assert list(sampler) == whole[start:]
        assert len(sampler) == len(whole) - start and sampler.batches_per_epoch == len(whole)
    sampler.set_epoch(8)
    assert len(sampler) == len(whole)
    with pytest.raises(ValueError, match="start_batch is 0 to 3"):
        sampler.set_epoch(7, 4)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(UserError, match="5 images, 3 for each of 2 process.*--batch_size"):
        TrainBatchSampler(range(5), 4, num_replicas=2)
