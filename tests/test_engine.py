"""Training against a loop written out by hand: steps, averages, learning rates, no reads from the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

import main
from engine import train_one_epoch
from run.state import build_schedules
from tests.reference.settings import quiet
from tests.stand_in import (
    CPU,
    QUERIES,
    WEIGHTS,
    Batch,
    Detector,
    assert_equal_weights,
    make_batch,
    make_criterion,
    make_detector,
    train,
    weights_of,
)
from util.misc import NestedTensor, collate_fn


def written_out(model: nn.Module, batches: list[Batch], max_norm: float) -> list[dict[str, float]]:
    """The published loop, with SGD: the losses of each step, weighted and unscaled."""
    criterion = make_criterion()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rows = []
    for samples, targets in batches:
        losses = criterion(model(samples), list(targets))
        weighted = {name: losses[name] * weight for name, weight in WEIGHTS.items()}
        total = torch.stack(list(weighted.values())).sum()
        optimizer.zero_grad()
        total.backward()
        if max_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        row = {"loss": total, **weighted, "class_error": losses["class_error"]}
        row |= {f"{name}_unscaled": value for name, value in losses.items()}
        rows.append({name: value.item() for name, value in row.items()})
    return rows


# --- Training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.1, 0, 1e9])
def test_training_is_the_published_loop(max_norm: float) -> None:
    """Weights bit for bit, and every average the mean of the steps' values; each batch has two objects."""
    batches = [make_batch(2, seed=i) for i in range(4)]
    ours, theirs = make_detector(), make_detector()
    stats = train(ours, batches, max_norm=max_norm)
    rows = written_out(theirs, batches, max_norm)
    assert_equal_weights(weights_of(ours), weights_of(theirs))
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert stats == pytest.approx({**means, "lr": 0.05}, rel=1e-5)


def test_clipping_makes_a_difference() -> None:
    """Otherwise the test above says nothing about max_norm."""
    results = []
    for max_norm in (0.1, 0):
        model = make_detector()
        train(model, [make_batch(2)], max_norm=max_norm)
        results.append(model.classify.weight.detach().clone())
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_clipping_looks_at_every_parameter_of_the_model() -> None:
    """As published, also where the optimizer holds a part of them."""
    models = [make_detector(), make_detector()]
    samples, targets = make_batch(2)
    train(models[0], [(samples, targets)], torch.optim.SGD(models[0].classify.parameters(), lr=1.0))
    losses = make_criterion()(models[1](samples), list(targets))
    torch.stack([losses[name] * weight for name, weight in WEIGHTS.items()]).sum().backward()
    nn.utils.clip_grad_norm_(models[1].parameters(), 0.1)
    torch.optim.SGD(models[1].classify.parameters(), lr=1.0).step()
    assert_equal_weights(weights_of(models[0]), weights_of(models[1]))


def test_max_norm_is_off_unless_given() -> None:
    models = [make_detector(), make_detector()]
    with quiet():
        optimizer = torch.optim.SGD(models[0].parameters(), lr=0.05)
        train_one_epoch(models[0], make_criterion(), [make_batch(2)], optimizer, CPU, 0)
    train(models[1], [make_batch(2)], max_norm=0)
    assert_equal_weights(weights_of(models[0]), weights_of(models[1]))


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_iterable_of_batches_is_a_loader(kind: Callable) -> None:
    batches = [make_batch(1, 2, seed=i) for i in range(3)]
    model, other = make_detector(), make_detector()
    stats = train(model, kind(batches))
    assert stats == train(other, batches)
    assert_equal_weights(weights_of(model), weights_of(other))


def test_a_data_loader_with_the_published_collate_function() -> None:
    items = [(torch.randn(3, 8, 8), target) for i in range(4) for target in make_batch(1, seed=i)[1]]
    loader: DataLoader = DataLoader(items, batch_size=2, collate_fn=collate_fn)  # type: ignore[arg-type]
    model, other = make_detector(), make_detector()
    assert train(model, loader) == train(other, [collate_fn(items[:2]), collate_fn(items[2:])])


def test_training_sets_the_mode_of_model_and_criterion() -> None:
    model, criterion = make_detector().eval(), make_criterion().eval()
    train(model, [make_batch(1)], criterion=criterion)
    assert model.training and criterion.training


def test_a_batch_may_be_a_plain_tensor() -> None:
    samples, targets = make_batch(2)

    class OfTensors(Detector):
        def forward(self, samples: Any) -> dict[str, Any]:
            return super().forward(NestedTensor(samples, None))

    torch.manual_seed(0)
    model, other = OfTensors(), make_detector()
    assert train(model, [(samples.tensors, targets)]) == train(other, [(samples, targets)])


def test_batches_are_left_as_they_were() -> None:
    batch = make_batch(2, 1)
    copies = [{name: value.clone() for name, value in target.items()} for target in batch[1]]
    pixels = batch[0].tensors.clone()
    train(make_detector(), [batch])
    assert torch.equal(batch[0].tensors, pixels)
    torch.testing.assert_close(list(batch[1]), copies, rtol=0, atol=0)


def test_a_device_may_be_given_by_its_name() -> None:
    """`.to(device)` takes a string, so scripts pass one."""
    with quiet():
        model = make_detector()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        train_one_epoch(model, make_criterion(), [make_batch(1)], optimizer, "cpu", 0)  # type: ignore[arg-type]


# --- What is logged ------------------------------------------------------------------------------------


def class_error_of(model: nn.Module, batch: Batch) -> float:
    return float(make_criterion()(model(batch[0]), list(batch[1]))["class_error"])


def test_class_error_is_weighted_by_matched_objects() -> None:
    """A batch without objects does not count; one with more objects than queries counts its queries."""
    model = make_detector()
    counts = ((1,), (0, 0), (QUERIES + 4, 2), (3, 1))
    batches = [make_batch(*each, seed=i) for i, each in enumerate(counts)]
    errors = [class_error_of(model, batch) for batch in batches]
    matched = [sum(min(QUERIES, n) for n in each) for each in counts]
    assert matched == [1, 0, 7, 4]
    expected = float(np.average(errors, weights=matched))
    assert len({round(expected, 3), round(float(np.mean(errors)), 3)}) == 2, "else nothing is tested"
    stats = train(model, batches, torch.optim.SGD(model.parameters(), lr=0.0))
    assert stats["class_error"] == pytest.approx(expected, rel=1e-5)
    assert stats["class_error_unscaled"] == pytest.approx(expected, rel=1e-5)


def test_other_averages_count_batches_without_objects() -> None:
    model = make_detector()
    batches = [make_batch(2), make_batch(0, seed=1)]
    losses = [make_criterion()(model(samples), list(targets)) for samples, targets in batches]
    stats = train(model, batches, torch.optim.SGD(model.parameters(), lr=0.0))
    for name in ("loss_ce", "loss_bbox", "cardinality_error"):
        mean = np.mean([each[name].item() for each in losses])
        assert stats[f"{name}_unscaled"] == pytest.approx(mean, rel=1e-5)


def test_without_any_object_class_error_is_nan_and_training_goes_on() -> None:
    model = make_detector()
    before = weights_of(model)
    stats = train(model, [make_batch(0, 0)])
    assert math.isnan(stats["class_error"])
    assert stats["loss"] == pytest.approx(stats["loss_ce"] + stats["loss_ce_0"])
    assert stats["loss_bbox"] == stats["loss_giou"] == 0
    assert not torch.equal(before["classify.weight"], model.classify.weight)


def test_lines_are_printed_for_the_first_step_every_tenth_and_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = [make_batch(1, seed=i) for i in range(12)]
    train_one_epoch(model, make_criterion(), batches, optimizer, CPU, 7)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch: [7]  [")]
    assert [line.split("[")[2].split("/")[0].strip() for line in lines] == ["1", "10", "12"]
    assert all(word in line for line in lines for word in ("loss: ", "class_error: ", "lr: ", "eta: "))


class HostReads(TorchFunctionMode):
    """Counts, for each step, what is read from tensors of floating-point numbers (which may be on a GPU)."""

    NAMES = ("item", "tolist", "numpy", "__float__", "__bool__", "__int__", "__index__", "__format__")

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.steps and name in self.NAMES and args[0].is_floating_point():
            self.steps[-1].append(f"{name} {list(args[0].shape)}")
        return func(*args, **(kwargs or {}))


def test_no_step_reads_losses_from_the_device() -> None:
    """The matcher copies its costs to the host once a step; all else is read when a line is printed."""
    model = make_detector()
    batches = [make_batch(1, 2, seed=i) for i in range(10)]
    args = main.get_args_parser().parse_args([])
    optimizer = main.build_optimizer(model, args)
    schedule = build_schedules(optimizer, lr_drop=200, warmup_steps=5)[1]
    reads = HostReads()

    def watched() -> Iterator[Batch]:
        for batch in batches:
            reads.steps.append([])
            yield batch

    with reads:
        train(model, watched(), optimizer, warmup=schedule)
    costs = f"numpy [4, {QUERIES}, 2]"  # [L * B, Q, T]
    assert reads.steps[1:9] == [[costs]] * 8, "steps 2 to 9, between two printed lines"
    assert reads.steps[0] != [costs], "the first step is printed: else nothing is counted"


# --- Learning rate -------------------------------------------------------------------------------------


class Recorder(torch.optim.SGD):
    """Keeps the learning rates with which each step was taken."""

    def __init__(self, model: Detector, lr: float, backbone_lr: float):
        groups: list[dict[str, Any]] = [{"params": model.classify.parameters()}]
        super().__init__([*groups, {"params": model.locate.parameters(), "lr": backbone_lr}], lr=lr)
        self.rates: list[tuple[float, ...]] = []

    def step(self, closure: Any = None) -> Any:
        self.rates.append(tuple(group["lr"] for group in self.param_groups))
        return super().step(closure)


def test_warm_up_raises_the_rates_of_all_groups_step_by_step() -> None:
    model = make_detector()
    optimizer = Recorder(model, lr=0.4, backbone_lr=0.04)
    drops, warmup = build_schedules(optimizer, lr_drop=1, warmup_steps=4)
    stats = train(model, [make_batch(1, seed=i) for i in range(6)], optimizer, warmup=warmup)
    first = [rates[0] for rates in optimizer.rates]
    assert first == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4, 0.4])
    assert [rates[1] for rates in optimizer.rates] == pytest.approx([rate / 10 for rate in first])
    assert stats["lr"] == pytest.approx(np.mean(first))
    drops.step()
    train(model, [make_batch(1)], optimizer, warmup=warmup)
    assert optimizer.rates[-1] == pytest.approx((0.04, 0.004)), "warm-up does not undo a drop"


# --- What forks hand in --------------------------------------------------------------------------------


class Pictures:
    """A batch of a fork's own: it can go to a device, and that is all."""

    def __init__(self, samples: NestedTensor):
        self.samples = samples

    def to(self, device: Any) -> Pictures:
        return Pictures(self.samples.to(device))


class Wrapper(nn.Module):
    """Around a model, with a forward of its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = model

    def forward(self, samples: Any) -> Any:
        return self.module(samples.samples if isinstance(samples, Pictures) else samples)


def test_a_batch_needs_nothing_but_to_device() -> None:
    batches = [make_batch(1, 2, seed=i) for i in range(2)]
    own = [(Pictures(samples), targets) for samples, targets in batches]
    model, other = make_detector(), make_detector()
    assert train(Wrapper(model), own) == train(other, batches)
    assert_equal_weights(weights_of(model), weights_of(other))


class PeopleAndThings(nn.Module):
    """Outputs by other names."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, samples: NestedTensor) -> dict[str, Any]:
        outputs = self.model(samples)
        return {"pred_obj_logits": outputs["pred_logits"], "pred_sub_boxes": outputs["pred_boxes"]}


class OwnCriterion(nn.Module):
    """Losses of other outputs and other targets, weighted by a parameter."""

    def __init__(self, weight: float = 2.0):
        super().__init__()
        self.weight_dict = {"loss_obj": nn.Parameter(torch.tensor(weight)), "loss_unused": 1.0}

    def forward(self, outputs: Any, targets: Any) -> dict[str, Any]:
        objects = sum(len(target["obj_labels"]) for target in targets)
        loss = outputs["pred_obj_logits"].mean() + outputs["pred_sub_boxes"].mean()
        return {"loss_obj": loss, "class_error": torch.tensor(50.0), "objects": objects}


def own_batch(*counts: int, seed: int = 0) -> Any:
    samples, targets = make_batch(*counts, seed=seed)
    return samples, [{"obj_labels": each["labels"], "sub_boxes": each["boxes"]} for each in targets]


def test_outputs_and_targets_may_have_other_names() -> None:
    criterion = OwnCriterion()
    stats = train(PeopleAndThings(make_detector()), [own_batch(1, 2)], criterion=criterion)
    assert stats["class_error"] == 50 and stats["objects_unscaled"] == 3
    assert stats["loss"] == pytest.approx(2 * stats["loss_obj_unscaled"])
    assert criterion.weight_dict["loss_obj"].grad is not None, "a weight may be learned"  # type: ignore


def test_batches_of_a_criterion_without_normalizers_are_averaged() -> None:
    batches = [own_batch(1, 2, seed=i) for i in range(2)]
    models = [make_detector(), make_detector()]
    stats = train(PeopleAndThings(models[0]), batches, criterion=OwnCriterion(), accum_steps=2)
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.05)
    model, criterion = PeopleAndThings(models[1]), OwnCriterion()
    losses = [2 * criterion(model(samples), targets)["loss_obj"] for samples, targets in batches]
    (sum(losses) / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    torch.testing.assert_close(weights_of(models[0]), weights_of(models[1]))
    assert stats["loss"] == pytest.approx(float(sum(losses).detach()) / 2)  # type: ignore[union-attr]


def test_a_wrapped_model_is_called_as_published() -> None:
    """Also with a forward that takes the batch alone, around a model that could draw a few masks only."""

    class Masks(nn.Module):
        def forward(self, samples: Any, select: Any = None) -> Any:
            raise AssertionError("only its wrapper calls it")

    class Around(Wrapper):
        def forward(self, samples: Any) -> Any:
            return self.inner(samples)  # type: ignore[operator]

    model = Around(Masks())
    model.inner = make_detector()
    other = make_detector()
    assert train(model, [make_batch(2)]) == train(other, [make_batch(2)])


def test_names_of_the_published_file() -> None:
    import engine

    names = ("utils", "CocoEvaluator", "PanopticEvaluator", "math", "torch")
    assert all(hasattr(engine, name) for name in names)
