"""--group_by_aspect: batches of wide or of tall images, on any number of ranks, from any step on."""

from collections import Counter
from pathlib import Path

import pytest
import torch

import main
from datasets import build_dataset
from datasets.sampler import TrainBatchSampler, aspect_groups
from tests.helpers import TRAIN_SIZES, Refused, write_instances, write_pictures
from tests.test_main_flags import resolved
from util.errors import UserError

GROUPS = [0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1]  # 6 tall or square, 13 wide


def epoch_of(epoch: int = 0, start: int = 0, ranks: int = 1, rank: int = 0, batch_size: int = 2) -> list:
    sampler = TrainBatchSampler(range(len(GROUPS)), batch_size, ranks, rank, seed=1, groups=GROUPS)
    sampler.set_epoch(epoch, start)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 19), (2, 3 + 6), (4, 1 + 3), (6, 1 + 2)])
def test_every_batch_is_of_one_group(batch_size: int, batches: int) -> None:
    for epoch in range(5):
        found = epoch_of(epoch, batch_size=batch_size)
        assert len(found) == batches, "as many in every epoch"
        assert all(len(batch) == batch_size for batch in found)
        assert all(len({GROUPS[index] for index in batch}) == 1 for batch in found)
        assert max(Counter(index for batch in found for index in batch).values()) == 1


def test_groups_keep_the_order_in_which_the_images_were_shuffled() -> None:
    """Each image comes when its group's batch is full, so that both groups are spread over the epoch."""
    (order,) = TrainBatchSampler(range(len(GROUPS)), len(GROUPS), seed=1)
    expected: list[list[int]] = []
    waiting: dict[int, list[int]] = {0: [], 1: []}
    for index in order:
        waiting[GROUPS[index]].append(index)
        if len(waiting[GROUPS[index]]) == 2:
            expected.append(waiting.pop(GROUPS[index]))
            waiting[GROUPS[index]] = []
    assert epoch_of() == expected


def test_with_one_group_all_is_as_without() -> None:
    alike = TrainBatchSampler(range(19), 2, seed=1, groups=[7] * 19)
    assert list(alike) == list(TrainBatchSampler(range(19), 2, seed=1))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_the_batches_evenly(ranks: int) -> None:
    alone = epoch_of(3)
    shares = [epoch_of(3, ranks=ranks, rank=rank) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(alone) // ranks}
    for step, batches in enumerate(zip(*shares, strict=True)):
        assert list(batches) == alone[step * ranks : (step + 1) * ranks]


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_goes_on_where_it_stopped(ranks: int) -> None:
    whole = epoch_of(2, ranks=ranks, rank=ranks - 1)
    assert whole != epoch_of(1, ranks=ranks, rank=ranks - 1), "each epoch is shuffled anew"
    for start in range(len(whole) + 1):
        assert epoch_of(2, start, ranks=ranks, rank=ranks - 1) == whole[start:]


def test_fewer_images_of_each_group_than_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"fewer than one batch of 4, of one aspect .--group_by_aspect."):
        TrainBatchSampler(range(6), 4, groups=[0, 1] * 3)


# --- As a flag -------------------------------------------------------------------------------------------


def test_the_training_loader_gives_batches_of_one_aspect(coco_root: Path) -> None:
    flags = ("--coco_path", coco_root, "--batch_size", 2, "--no_crop")
    loader = main.build_data_loaders(resolved(*flags, "--group_by_aspect"))[0]
    assert loader is not None and len(loader) == 2
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for _, targets in loader:
            height, width = torch.stack([target["size"] for target in targets]).T
            assert len(set((width > height).tolist())) == 1


def test_groups_come_from_the_annotation_file(coco_root: Path) -> None:
    data = build_dataset("train", resolved("--coco_path", coco_root))
    assert aspect_groups(data) == [int(width > height) for width, height in TRAIN_SIZES]


def test_a_file_without_sizes_is_refused(tmp_path: Path, refused: Refused) -> None:
    for split in ("train", "val"):
        images = write_pictures(tmp_path / f"{split}2017", [(64, 64)] * 2, 1)
        for image in images:
            del image["width"], image["height"]
        write_instances(tmp_path, split, images, [], {1: "bolt"})
    flags = ("--coco_path", tmp_path, "--check_data", "off", "--epochs", 1, "--group_by_aspect")
    refused(flags, "--group_by_aspect", "instances_train2017.json", "image 1")
