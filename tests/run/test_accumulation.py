"""One step's losses and gradient, however its images are spread over batches and processes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine import train_one_epoch
from models.query_groups import QueryGroups
from tests.helpers import TINY_MODEL
from tests.ranks import ranks
from tests.reference.settings import build
from util.distributed import get_rank, get_world_size, is_dist_avail_and_initialized
from util.nested_tensor import nested_tensor_from_tensor_list

FLAGS = f"{TINY_MODEL} --num_queries 6 --num_classes 5 --dropout 0"
OBJECTS = (1, 4, 0, 2)  # in each image: every way to split them gives parts of other sizes
HEIGHT, WIDTH = 64, 96  # of all images: no batch is padded


def images() -> list[tuple[Tensor, dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(5)
    found = []
    for number, count in enumerate(OBJECTS):
        centres = 0.3 + 0.4 * torch.rand(count, 2, generator=draw)
        target = {
            "labels": torch.randint(1, 5, (count,), generator=draw),
            "boxes": torch.cat([centres, 0.1 + 0.4 * torch.rand(count, 2, generator=draw)], dim=1),
            "masks": torch.rand(count, HEIGHT, WIDTH, generator=draw) > 0.5,
            "image_id": torch.tensor(number),
        }
        found.append((torch.randn(3, HEIGHT, WIDTH, generator=draw), target))
    return found


def step(flags: str, batch: int, accum_steps: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Train one step on this rank's share of the images -> what is logged, and the gradients."""
    model, criterion, _ = build(flags, seed=1)
    mine = images()[get_rank() :: get_world_size()]
    starts = range(0, len(mine), batch)
    assert len(starts) == accum_steps
    batches = []
    for start in starts:
        samples, targets = zip(*mine[start : start + batch], strict=True)
        batches.append((nested_tensor_from_tensor_list(list(samples)), list(targets)))
    trained: nn.Module = QueryGroups(model, 3, seed=0) if "--query_groups 3" in flags else model
    parameters = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
    if is_dist_avail_and_initialized():
        trained = nn.parallel.DistributedDataParallel(
            trained, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    still = torch.optim.SGD([p for _, p in parameters], lr=0.0)
    stats = train_one_epoch(
        trained, criterion, batches, still, torch.device("cpu"), 0, accum_steps=accum_steps
    )
    gradients = {name: p.grad.numpy().copy() for name, p in parameters if p.grad is not None}
    return stats, gradients


@pytest.fixture(scope="module", params=["", " --masks --hidden_dim 128 --nheads 8 --query_groups 3"])
def whole(request: pytest.FixtureRequest) -> tuple[str, dict[str, float], dict[str, np.ndarray]]:
    """One process, one batch of all images."""
    flags = FLAGS + request.param
    return flags, *step(flags, len(OBJECTS), 1)


def assert_same_losses(stats: dict[str, float], expected: dict[str, float], besides: str = "") -> None:
    """Every weighted and unscaled loss, and what is logged with it, to 1e-5."""
    assert stats.keys() == expected.keys()
    for name in expected:
        if besides and (besides in name or name == "loss"):
            continue
        assert stats[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Between two gradients, each parameter's relative to its own size."""
    assert one.keys() == other.keys()
    norms = {name: float(np.linalg.norm(value)) for name, value in other.items()}
    floor = 1e-2 * max(norms.values())  # a gradient that is zero but for rounding has no size of its own
    return max(float(np.linalg.norm(one[name] - other[name])) / max(norms[name], floor) for name in other)


@pytest.mark.parametrize(("batch", "accum_steps"), [(2, 2), (1, 4)])
def test_accumulated_batches_are_one_batch(whole: tuple, batch: int, accum_steps: int) -> None:
    flags, expected, gradients = whole
    stats, found = step(flags, batch, accum_steps)
    assert_same_losses(stats, expected)
    assert largest_difference(found, gradients) < 1e-4


@pytest.mark.parametrize(("batch", "accum_steps"), [(2, 1), (1, 2)])
def test_two_ranks_are_one_process_but_for_the_class_loss(whole: tuple, batch: int, accum_steps: int) -> None:
    flags, expected, gradients = whole
    (stats, found), (others, _) = ranks().run(2, step, flags, batch, accum_steps)
    assert stats == others
    assert_same_losses(stats, expected, besides="loss_ce")
    assert abs(stats["loss_ce"] - expected["loss_ce"]) > 1e-4, "each rank divides by its own, as published"
    assert largest_difference(found, gradients) > 1e-3


@pytest.mark.parametrize(("batch", "accum_steps"), [(2, 1), (1, 2)])
def test_with_sync_ce_two_ranks_are_one_process(whole: tuple, batch: int, accum_steps: int) -> None:
    flags, expected, gradients = whole
    (stats, found), (_, others) = ranks().run(2, step, f"{flags} --sync_ce", batch, accum_steps)
    assert_same_losses(stats, expected)
    assert largest_difference(found, gradients) < 1e-4
    assert largest_difference(found, others) == 0


def test_in_one_process_sync_ce_changes_nothing(whole: tuple) -> None:
    flags, expected, gradients = whole
    stats, found = step(f"{flags} --sync_ce", len(OBJECTS), 1)
    assert stats == expected
    assert largest_difference(found, gradients) == 0


def test_batches_that_do_not_fill_a_step_are_dropped() -> None:
    model, criterion, _ = build(FLAGS, seed=1)
    samples, targets = zip(*images(), strict=True)
    batches: list[Any] = [
        (nested_tensor_from_tensor_list([image]), [target])
        for image, target in zip(samples, targets, strict=True)
    ]
    seen: list[int] = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    count = lambda step, logger: seen.append(logger.meters["loss"].count)  # noqa: E731
    words = (model, criterion, batches[:3], optimizer, torch.device("cpu"), 0)
    train_one_epoch(*words, accum_steps=2, after_step=count)
    assert seen == [2]
