"""Batches of the loader: those of one item after the other, for any number of workers, and errors named."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import datasets.transforms as T
import main
from datasets import build_dataset
from datasets.coco import CocoDetection
from datasets.loaders import make_loader
from datasets.sampler import TrainBatchSampler
from tests.datasets.test_coco import small, write_coco
from util.errors import UserError
from util.nested_tensor import ByteBatch, NestedTensor, collate_bytes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), count=14)


def assert_same_batches(ones: list[Any], others: list[Any]) -> None:
    for (samples, targets), (other_samples, other_targets) in zip(ones, others, strict=True):
        assert samples.sizes == other_samples.sizes and torch.equal(samples.tensors, other_samples.tensors)
        assert samples.tensors.is_contiguous(memory_format=torch.channels_last)
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            assert all(torch.equal(target[name], other[name]) for name in target)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_torchs_own_loader(root: Path, masks: bool, workers: int) -> None:
    dataset = build_dataset("train", small(root, masks=masks), normalize_images=False)
    sampler = TrainBatchSampler(dataset, 2, seed=1)
    expected = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_bytes)
    loader = make_loader(dataset, sampler, workers)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch, start_batch=epoch)
        assert len(loader) == 7 - epoch
        assert_same_batches(list(loader), list(expected))


@pytest.mark.slow
def test_spawned_workers_give_the_same(root: Path) -> None:
    """The way of Windows and macOS: a new interpreter, to which all is pickled."""
    dataset = build_dataset("train", small(root, masks=True), normalize_images=False)
    dataset.set_epoch(4)
    batches = [[0, 1], [5, 3]]
    loader = make_loader(dataset, batches, 1)
    loader.multiprocessing_context = "spawn"
    assert_same_batches(list(loader), list(make_loader(dataset, batches)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept", [0, 1200])
def test_a_damaged_picture_is_named(tmp_path: Path, kept: int, workers: int) -> None:
    root = write_coco(tmp_path, count=8)
    damaged = root / "val2017" / "000000000030.jpg"
    Image.effect_noise((90, 80), 60).convert("RGB").save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:kept])
    dataset = build_dataset("val", small(root), normalize_images=False)
    with pytest.raises(UserError, match=r"30\.jpg \(image id 30\): cannot be read"):
        list(make_loader(dataset, [[i] for i in range(8)], workers))


class Frozen(Dataset):
    """How many objects its process leaves out when it searches for garbage."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 2, 2, dtype=torch.uint8), {"frozen": torch.tensor([gc.get_freeze_count()])}


@pytest.mark.parametrize("workers", [0, 2])
def test_data_workers_do_not_search_the_parents_objects(workers: int) -> None:
    """The search would copy every page that they share."""
    before = gc.get_freeze_count()
    for _, targets in make_loader(Frozen(), [[0], [1]], workers):
        frozen = int(targets[0]["frozen"])
        assert frozen > before + 10_000 if workers else frozen == before
    assert gc.get_freeze_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_in_page_locked_memory_where_it_is_asked_for(workers: int) -> None:
    for samples, targets in make_loader(Frozen(), [[0, 1]], workers, pinned=True):
        assert samples.tensors.is_pinned() and targets[1]["frozen"].is_pinned()
        assert samples.tensors.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_shared_memory_is_reported(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tensor) -> None:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)  # forked workers see it
    loader = make_loader(Frozen(), [[0], [1]], workers)
    with pytest.raises(UserError, match=r"/dev/shm.*--num_workers 0.*--shm-size"):
        list(loader)
    assert len(list(make_loader(Frozen(), [[0], [1]]))) == 2


class Darker(CocoDetection):
    """What a user makes of a data set."""

    def __getitem__(self, idx: int) -> Any:
        image, target = super().__getitem__(idx)
        return image // 2, target


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_of_a_users_own(root: Path, workers: int) -> None:
    files = (root / "val2017", root / "annotations" / "instances_val2017.json")
    plain, darker = (kind(*files, T.ToByteTensor(), False) for kind in (CocoDetection, Darker))
    sets: list[tuple[Any, Tensor]] = [(darker, plain[0][0] // 2), (Subset(plain, [0]), plain[0][0])]
    for dataset, expected in sets:
        ((samples, _),) = make_loader(dataset, [[0]], workers)
        assert isinstance(samples, ByteBatch) and torch.equal(samples.tensors[0], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_normalised_images_are_taken_as_well(root: Path, workers: int) -> None:
    dataset = build_dataset("val", small(root))
    ((samples, _),) = make_loader(dataset, [[0, 1]], workers)
    assert isinstance(samples, NestedTensor)
    height, width = dataset[0][0].shape[1:]
    assert torch.equal(samples.tensors[0, :, :height, :width], dataset[0][0])


def test_the_loaders_of_a_run(root: Path) -> None:
    words = "--num_classes 4 --device cpu --batch_size 2 --eval_batch_size 2 --num_workers"
    for workers in (0, 1):
        args = main.get_args_parser().parse_args(["--coco_path", str(root), *words.split(), str(workers)])
        for loader in main.build_data_loaders(args):
            assert loader is not None and loader.num_workers == workers
