"""What several processes agree on, and evaluation's figures on any number of them."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from engine import evaluate
from models import build_model
from run.data_parallel import broadcast_buffers, data_parallel, settle_buckets
from run.resume import find_checkpoint
from tests.helpers import CUSTOM_CATEGORIES, TINY, Prepared, load
from tests.ranks import ranks
from tests.reference.settings import build, parse
from util.distributed import (
    StepVote,
    all_gather,
    get_rank,
    reduce_dict,
)
from util.errors import UserError

GRADIENTS = f"{TINY} --num_classes 5 --dropout 0"


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


def figures(prepared: Prepared) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """Statistics, figures of each class, and this rank's images."""
    classes = max(CUSTOM_CATEGORIES) + 1
    args = parse(TINY, f"--coco_path={prepared.root}", "--eval_batch_size=1", f"--num_classes={classes}")
    model, criterion, postprocessors = build_model(args)
    model.load_state_dict(load(prepared.start)["model"])
    _, loader = main.build_data_loaders(args)
    base = main.ground_truth(args, loader.dataset)
    stats, evaluator = evaluate(
        model, criterion, postprocessors, loader, base, torch.device("cpu"), "", max_dets=3
    )
    assert evaluator is not None
    mine = [int(target["image_id"]) for _, targets in loader for target in targets]
    return stats, evaluator.per_class(), mine


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_does_not_depend_on_the_number_of_processes(prepared: Prepared, world_size: int) -> None:
    """Four batches of one image, which three processes cannot share evenly."""
    expected, per_class, every_image = figures(prepared)
    assert 0 < expected["coco_eval_bbox"][0] < 1, "the comparison has something to compare"
    answers = ranks().run(world_size, figures, prepared)
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
