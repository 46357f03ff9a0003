"""What several processes agree on, and evaluation's figures on any number of them."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main
from engine import evaluate
from models import build_model
from models.postprocess import PostProcess
from run.data_parallel import broadcast_buffers, data_parallel, settle_buckets
from run.resume import find_checkpoint
from tests.helpers import CUSTOM_CATEGORIES, TINY, annotation, write_instances, write_pictures
from tests.ranks import ranks
from tests.reference.settings import build, parse
from tests.reference.streams import fill_state
from util.distributed import (
    StepVote,
    all_gather,
    get_rank,
    reduce_dict,
)
from util.errors import UserError

GRADIENTS = f"{TINY} --num_classes 5 --dropout 0"
VAL_SIZES = ((96, 64), (64, 96), (64, 64), (120, 70), (80, 64), (64, 88), (100, 64))  # width, height


# --- Votes ----------------------------------------------------------------------------------------------


def votes(wishes: list[list[tuple[int, int]]]) -> list[tuple[int, ...]]:
    vote = StepVote()
    return [vote(*wish) for wish in wishes[get_rank()]]


def test_all_processes_obey_what_one_wanted_a_step_before() -> None:
    first = [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)]
    second = [(0, 0), (15, 0), (15, 0), (15, 0), (15, 0)]
    answers = ranks().run(2, votes, [first, second])
    assert answers[0] == answers[1] == [(0, 0), (0, 0), (15, 0), (15, 1), (15, 0)]


def test_a_single_process_is_answered_at_once() -> None:
    vote = StepVote()
    assert [vote(0, 0), vote(15, 1)] == [(0, 0), (15, 1)]


# --- Collectives ----------------------------------------------------------------------------------------


def collectives() -> dict[str, Any]:
    rank = get_rank()
    model = torch.nn.BatchNorm1d(2)
    model.running_mean.fill_(rank)  # type: ignore[union-attr]
    broadcast_buffers(model)
    values = {"b": torch.tensor(10.0 * rank), "a": torch.tensor(float(rank))}
    names = list(values) if rank else list(reversed(list(values)))
    values = {name: values[name] for name in names}
    return {
        "gathered": all_gather({"rank": rank, "long": "x" * 10 ** (rank + 1)}),
        "mean": {name: float(value) for name, value in reduce_dict(values).items()},
        "sum": {name: float(value) for name, value in reduce_dict(values, average=False).items()},
        "buffer": model.running_mean.tolist(),  # type: ignore[union-attr, operator]
    }


def test_collectives_give_every_process_the_same() -> None:
    answers = ranks().run(3, collectives)
    for answer in answers:
        assert [one["rank"] for one in answer["gathered"]] == [0, 1, 2]
        assert [len(one["long"]) for one in answer["gathered"]] == [10, 100, 1000]
        assert answer["mean"] == {"a": 1.0, "b": 10.0}
        assert answer["sum"] == {"a": 3.0, "b": 30.0}
        assert answer["buffer"] == [0.0, 0.0]


# --- Gradients ------------------------------------------------------------------------------------------


def gradients(flags: str, settled: bool) -> tuple[bool, bool]:
    """Whether two equal steps have equal gradients, and whether settling left the model as it was."""
    model, _, _ = build(flags, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = data_parallel(model, torch.device("cpu"))
    drawn = torch.get_rng_state()
    if settled:
        settle_buckets(trained, torch.device("cpu"))
    untouched = torch.equal(drawn, torch.get_rng_state()) and trained.training
    untouched &= all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    untouched &= all(p.grad is None for p in model.parameters())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(get_rank()))
    steps = []
    for _ in range(2):
        trained.zero_grad()
        out = trained(images)
        layers = [out, *out["aux_outputs"]]
        values = [layer[key] for layer in layers for key in layer if key.startswith("pred_")]
        torch.stack([value.pow(2).sum() for value in values]).sum().backward()
        steps.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    return all(map(torch.equal, *steps)), untouched


@pytest.mark.parametrize("more", ["", " --backbone_norm batch --dropout 0"])
def test_the_first_gradient_of_a_resumed_run_has_the_bits_of_any_later_one(more: str) -> None:
    answers = ranks().run(3, gradients, f"{GRADIENTS}{more}", True)
    assert answers == [(True, True)] * 3
    without = ranks().run(3, gradients, f"{GRADIENTS}{more}", False)
    assert not any(equal for equal, _ in without), "there is something to settle"


# --- Evaluation -----------------------------------------------------------------------------------------


def built(args: argparse.Namespace) -> tuple[torch.nn.Module, Any, Any]:
    args = copy.deepcopy(args)
    args.num_classes = max(CUSTOM_CATEGORIES) + 1
    model, criterion, postprocessors = build_model(args)
    fill_state(model, 0)
    unknown = [i for i in range(max(CUSTOM_CATEGORIES)) if i not in CUSTOM_CATEGORIES]
    model.class_embed.bias.data[unknown] -= 10  # type: ignore[union-attr, index, operator]
    return model, criterion, postprocessors


def figures(root: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """Statistics, figures of each class, and this rank's images."""
    args = parse(TINY, f"--coco_path={root}", "--eval", "--eval_batch_size=2")
    args.num_classes = max(CUSTOM_CATEGORIES) + 1
    model, criterion, postprocessors = built(args)
    _, loader = main.build_data_loaders(args)
    base = main.ground_truth(args, loader.dataset)
    stats, evaluator = evaluate(
        model, criterion, postprocessors, loader, base, torch.device("cpu"), "", max_dets=3
    )
    assert evaluator is not None
    mine = [int(target["image_id"]) for _, targets in loader for target in targets]
    return stats, evaluator.per_class(), mine


@pytest.fixture(scope="module")
def seven_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Objects lie near those that the model sees, so that figures are neither 0 nor 1."""
    root = tmp_path_factory.mktemp("seven")
    images = write_pictures(root / "val2017", VAL_SIZES, 300)
    write_instances(root, "val", images, [], CUSTOM_CATEGORIES)
    args = parse(TINY, f"--coco_path={root}", "--eval")
    args.num_classes, args.eval_batch_size = max(CUSTOM_CATEGORIES) + 1, 1
    model, _, _ = built(args)
    _, loader = main.build_data_loaders(args)
    draw = np.random.default_rng(2)
    objects: list[dict[str, Any]] = []
    with torch.no_grad():
        for samples, (target,) in loader:
            found = PostProcess()(model.eval()(samples.to(torch.device("cpu"))), target["orig_size"][None])[0]
            for i in found["scores"].argsort(descending=True)[: 1 + len(objects) % 4].tolist():
                x0, y0, x1, y1 = found["boxes"][i].tolist()
                moved = [v + float(draw.uniform(-3, 3)) for v in (x0, y0, x1 - x0, y1 - y0)]
                image, label = int(target["image_id"]), int(found["labels"][i])
                objects.append(annotation(len(objects) + 1, image, label, moved))
    write_instances(root, "val", images, objects, CUSTOM_CATEGORIES)
    return str(root)


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_does_not_depend_on_the_number_of_processes(seven_images: str, world_size: int) -> None:
    expected, per_class, every_image = figures(seven_images)
    assert 0 < expected["coco_eval_bbox"][0] < 1, "the comparison has something to compare"
    answers = ranks().run(world_size, figures, seven_images)
    shares = [image for _, _, mine in answers for image in mine]
    assert sorted(shares) == every_image, "each image once"
    for stats, _, _ in answers:
        assert stats.keys() == expected.keys()
        assert stats["coco_eval_bbox"] == expected["coco_eval_bbox"]
        assert stats["max_dets_bbox"] == expected["max_dets_bbox"]
        for name in expected.keys() - {"coco_eval_bbox", "max_dets_bbox"}:
            assert stats[name] == pytest.approx(expected[name], abs=1e-6), name
    assert answers[0][1] == per_class


# --- Resuming -------------------------------------------------------------------------------------------


def position_of(args: argparse.Namespace, folders: list[str]) -> str:
    args.output_dir = folders[get_rank()]
    try:
        source = find_checkpoint(args)
    except UserError as error:
        return str(error)
    return "nothing" if source is None else source.path


def test_hosts_that_see_different_files_do_not_resume(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "one" / "checkpoint.pth")
    args = parse("--resume auto")
    folders = [str(tmp_path / "one"), str(tmp_path / "other")]
    assert all("different files" in answer for answer in ranks().run(2, position_of, args, folders))
    answers = ranks().run(2, position_of, args, folders[:1] * 2)
    assert answers == [str(tmp_path / "one" / "checkpoint.pth")] * 2
