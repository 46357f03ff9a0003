"""Loading by threads and by processes: the batches of one after the other, and the same mistakes named."""

from __future__ import annotations

import gc
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

import datasets.transforms as T
import main
from datasets import build_dataset
from datasets.augmented import AugmentedImages
from datasets.coco import CocoDetection, ConvertCocoPolysToMask, make_coco_transforms
from datasets.geometry import crop, hflip, pad, resize
from datasets.images import LazyImage, read_image, read_tensor
from datasets.loaders import AHEAD, MOST_THREADS, ThreadLoader, make_loader
from datasets.sampler import TrainBatchSampler
from tests.datasets.test_coco import small, write_coco
from util.errors import UserError
from util.nested_tensor import collate_bytes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), count=14)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Any:
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(usual)


def assert_same_batches(ones: list[Any], others: list[Any]) -> None:
    for (samples, targets), (other_samples, other_targets) in zip(ones, others, strict=True):
        assert all(map(torch.equal, samples.images, other_samples.images))
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            assert all(torch.equal(target[name], other[name]) for name in target)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_torchs_own_loader(root: Path, masks: bool, workers: int) -> None:
    dataset = build_dataset("train", small(root, masks=masks), normalize_images=False)
    sampler = TrainBatchSampler(dataset, 2, seed=1)
    assert len(sampler) > AHEAD + 1
    expected = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_bytes)
    loader = make_loader(dataset, sampler, workers)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch, start_batch=epoch)
        assert len(loader) == 7 - epoch
        assert_same_batches(list(loader), list(expected))


def test_the_random_numbers_of_the_caller_stay_as_they_were(root: Path) -> None:
    """Dropout draws from the same generators while batches are loaded ahead."""
    dataset = build_dataset("train", small(root), normalize_images=False)
    dataset.set_epoch(0)
    random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), torch.get_rng_state()
    for _ in make_loader(dataset, [[i] for i in range(14)]):
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])


def test_an_epoch_that_is_left_early_ends_its_threads(root: Path) -> None:
    dataset = build_dataset("val", small(root), normalize_images=False)
    loader = make_loader(dataset, [[i] for i in range(14)])
    batches = iter(loader)
    next(batches)
    assert any(thread.name.startswith("pixels") for thread in threading.enumerate())
    del batches
    assert not any(thread.name.startswith("pixels") for thread in threading.enumerate())


class Slow(AugmentedImages):
    """Counts what was finished."""

    def __init__(self, may_go_on: threading.Event) -> None:
        super().__init__(list(range(40)), seed=0)
        self.may_go_on = may_go_on
        self.finished: list[int] = []

    def begin(self, index: int) -> Any:
        def finish() -> Any:
            self.finished.append(index)
            if index > 0:
                self.may_go_on.wait()
            return torch.zeros(3, 2, 2, dtype=torch.uint8), {}

        return finish


def test_an_epoch_that_is_left_early_finishes_no_more_than_was_at_work() -> None:
    dataset = Slow(threading.Event())
    batches = iter(make_loader(dataset, [[i] for i in range(40)]))
    next(batches)
    threading.Timer(0.5, dataset.may_go_on.set).start()
    del batches  # waits for one picture of each thread
    assert len(dataset.finished) <= 1 + MOST_THREADS


@pytest.mark.parametrize("kept", [0, 2000], ids=["without a header", "cut off"])
def test_a_damaged_picture_is_named_when_its_turn_comes(tmp_path: Path, kept: int) -> None:
    root = write_coco(tmp_path, count=8)
    damaged = root / "val2017" / "30.jpg"
    Image.effect_noise((90, 80), 60).convert("RGB").save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:kept])
    dataset = build_dataset("val", small(root), normalize_images=False)
    seen: list[int] = []
    with pytest.raises(UserError, match=r"30\.jpg \(image id 30\)"):
        for _, targets in make_loader(dataset, [[i] for i in range(8)]):
            seen += targets[0]["image_id"].tolist()
    assert seen == [10, 20]


class Frozen(AugmentedImages):
    """How many objects its process leaves out when it searches for garbage."""

    def __init__(self) -> None:
        super().__init__([1, 2], seed=0)

    def begin(self, index: int) -> Any:
        counted = torch.tensor([gc.get_freeze_count()])
        return lambda: (torch.zeros(3, 2, 2, dtype=torch.uint8), {"frozen": counted})


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


def test_main_uses_it_without_data_workers(root: Path) -> None:
    words = (
        f"--coco_path {root} --num_classes 4 --device cpu --batch_size 2 --eval_batch_size 2 --num_workers"
    )
    for workers, kind in ((0, ThreadLoader), (1, DataLoader)):
        args = main.get_args_parser().parse_args([*words.split(), str(workers)])
        assert [type(loader) for loader in main.build_data_loaders(args)] == [kind, kind]


class Darker(CocoDetection):
    """What a user makes of a data set."""

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image // 2, target


def test_a_data_set_of_a_users_own_is_asked_item_by_item(root: Path) -> None:
    files = (root / "val2017", root / "annotations" / "instances_val2017.json")
    plain, darker = (
        kind(*files, T.ToByteTensor(), False, as_tensors=True) for kind in (CocoDetection, Darker)
    )
    for dataset, expected in ((darker, plain[0][0] // 2), (Subset(plain, [0]), plain[0][0])):
        ((samples, _),) = make_loader(dataset, [[0]])
        assert torch.equal(samples.images[0], expected)


# ---- pictures that are read later


@pytest.mark.parametrize(
    "change",
    [
        partial(crop, region=(5, 7, 30, 40)),
        hflip,
        partial(resize, size=44),
        partial(resize, size=(33, 20)),
        partial(pad, padding=(3, 4)),
        T.Compose([T.RandomHorizontalFlip(1), T.RandomResize([50]), T.CenterCrop((30, 20))]),
    ],
)
def test_geometry_comes_out_the_same_when_it_is_done_later(root: Path, change: Any) -> None:
    path = root / "val2017" / "140.jpg"
    target = {"boxes": torch.tensor([[3.0, 5, 23, 30]])}
    image, expected = change(read_tensor(path), target)
    later, moved = change(read_image(path, 140, as_tensor=True), target)
    assert isinstance(later, LazyImage) and later.shape == image.shape
    assert torch.equal(later.tensor(), image)
    assert all(torch.equal(moved[name], value) for name, value in expected.items())


class Sees(T.RandomHorizontalFlip):
    """A transform of a user's own, though it is one of the project's made anew."""

    def __init__(self) -> None:
        self.seen: list[type] = []

    def __call__(self, image: Any, target: Any = None) -> Any:
        self.seen.append(type(image))
        return image, target


class Prepares(ConvertCocoPolysToMask):
    """A `prepare` of a user's own, which asks PIL for the size."""

    def __call__(self, image: Any, target: Any) -> Any:
        width, height = image.size
        image, target = super().__call__(image, target)
        return image, {**target, "width": torch.tensor(width)}


def test_what_is_a_users_own_gets_pil_images(root: Path) -> None:
    files = (root / "val2017", root / "annotations" / "instances_val2017.json")
    sees = Sees()
    for transforms in (
        sees,
        T.Compose([T.RandomResize([40]), sees]),
        T.RandomSelect(sees, T.ToByteTensor(), 1),
    ):
        CocoDetection(*files, transforms, True, as_tensors=True)[0]
    assert sees.seen == [Image.Image] * 3
    assert isinstance(CocoDetection(*files, None, True, as_tensors=True)[0][0], Image.Image)
    dataset = CocoDetection(*files, T.ToByteTensor(), True, as_tensors=True)
    expected, _ = dataset[0]
    dataset.prepare = Prepares(return_masks=True)
    image, target = dataset[0]
    assert torch.equal(image, expected) and target["width"] == image.shape[2] != image.shape[1]
    assert target["masks"].shape[1:] == image.shape[1:]


@pytest.mark.parametrize("image_set", ["train", "val"])
def test_the_projects_own_need_none(image_set: str) -> None:
    assert T.takes_lazy_images(make_coco_transforms(image_set, normalize_images=False))
    normalising = make_coco_transforms(image_set)
    assert not T.takes_lazy_images(normalising) and T.takes_tensors(normalising)


def test_a_file_that_is_no_picture_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.jpg \(image id 3\)"):
        read_image(tmp_path / "a.jpg", 3, as_tensor=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    image: Any = read_image(tmp_path / "b.jpg", 3, as_tensor=True)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"b\.jpg \(image id 3\)"):
        image.tensor()
