"""--amp: how far outputs and losses move, what stays in float32, and the scale of fp16."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

import engine
from models.resnet import folded
from models.transformer import Transformer
from run.finite_check import OVERFLOWS_TOLERATED
from tests import mask_model
from tests.helpers import load, read_log, run
from tests.reference.settings import LEARNED, SMALL, SMALL_R50, build
from tests.stand_in import (
    CPU,
    Detector,
    assert_equal_weights,
    make_batch,
    make_criterion,
    make_detector,
    train,
    weights_of,
)
from tests.test_engine import HostReads
from tests.test_engine_failures import Spoilt, SpoiltGradient
from tests.test_engine_failures import _BadGradient as BadGradient
from util.amp import Precision, as_float32
from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

LIMITS = {"bf16": 2e-2, "fp16": 4e-3}


def images() -> NestedTensor:
    return nested_tensor_from_tensor_list(mask_model.images())


def tensors_of(outputs: dict[str, Any]) -> dict[str, Tensor]:
    flat = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
    for i, layer in enumerate(outputs.get("aux_outputs", [])):
        flat |= {f"{name}_{i}": value for name, value in layer.items()}
    return flat


def distance(one: Tensor, other: Tensor) -> float:
    """Relative, of all values together."""
    return float((one - other).norm() / other.norm())


# --- Outputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("flags", [SMALL, SMALL_R50, LEARNED], ids=["r18", "r50", "learned"])
@torch.no_grad()
def test_outputs_differ_by_little(flags: str, kind: str) -> None:
    model = build(flags, seed=0)[0].eval()
    exact = tensors_of(model(images()))
    precision = Precision(kind, CPU)
    with precision.autocast():
        outputs = model(images())
    rounded = tensors_of(precision.outputs(outputs))
    assert rounded.keys() == exact.keys()
    for name, value in rounded.items():
        assert value.dtype == torch.float32
        assert 0 < distance(value, exact[name]) < LIMITS[kind], name


@torch.no_grad()
def test_masks_differ_by_little() -> None:
    model = mask_model.build()[0].eval()
    exact = model(mask_model.images())["pred_masks"]
    precision = Precision("bf16", CPU)
    with precision.autocast():
        masks = precision.outputs(model(mask_model.images()))["pred_masks"]
    assert masks.dtype == torch.float32
    assert 0 < distance(masks, exact) < LIMITS["bf16"]


@torch.no_grad()
def test_boxes_have_all_the_digits_of_float32() -> None:
    """Rounded to bfloat16, a box would be off by up to two pixels in a thousand."""
    model = build(SMALL, seed=0)[0].eval()
    with Precision("bf16", CPU).autocast():
        outputs = model(images())
    for name, value in tensors_of(outputs).items():
        if name.startswith("pred_boxes"):
            assert value.dtype == torch.float32
            assert not torch.equal(value, value.bfloat16().float())


@torch.no_grad()
def test_frozen_norms_are_folded_in_float32_and_rounded_then() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 8, 3, bias=False)
    x, scale, shift = torch.randn(1, 4, 9, 9), torch.rand(8) + 0.5, torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        found = folded(x, conv.weight, (scale, shift), (1, 1), (0, 0), (1, 1), 1)
    weight = (conv.weight * scale[:, None, None, None]).bfloat16()
    assert torch.equal(found, conv2d(x.bfloat16(), weight, shift.bfloat16()))


def test_off_is_nothing_at_all() -> None:
    precision = Precision("off", CPU)
    outputs = {"pred_logits": torch.zeros(1)}
    assert isinstance(precision.autocast(), nullcontext) and precision.scaler is None
    assert precision.outputs(outputs) is outputs and precision.outside(len) is len


def test_as_float32_leaves_whole_numbers_and_the_originals() -> None:
    half, whole = torch.ones(1).half(), torch.ones(1, dtype=torch.int64)
    value = {"a": half, "b": [whole, {"c": half}]}
    found = as_float32(value)
    assert found["a"].dtype == found["b"][1]["c"].dtype == torch.float32
    assert found["b"][0] is whole
    assert value == {"a": half, "b": [whole, {"c": half}]} and half.dtype == torch.float16


# --- What stays in float32 -----------------------------------------------------------------------------


class Types(TorchFunctionMode):
    """The types of floating-point tensors that functions are called with, by the function's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = {a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()}
        self.seen.setdefault(getattr(func, "__name__", ""), set()).update(found)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_matching_and_losses_compute_in_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where masks are wanted, and the matching takes place inside the model."""
    model, criterion, _ = mask_model.build()
    model.eval()
    criterion.eval()
    types = Types()

    def watched(function: Callable) -> Callable:
        def inside(*args: Any, **kwargs: Any) -> Any:
            assert not torch.is_autocast_enabled("cpu")
            with types:
                return function(*args, **kwargs)

        return inside

    monkeypatch.setattr(criterion, "match", watched(criterion.match))
    targets = mask_model.targets(2, 3)
    samples = nested_tensor_from_tensor_list(mask_model.images())
    losses = []
    for each in ("off", kind):
        precision = Precision(each, CPU)
        outputs, known = engine._forward(model, criterion, samples, targets, precision)
        losses.append(watched(criterion)(outputs, targets, **known))
    assert "matches" in known and types.seen["softmax"] == {torch.float32}
    assert set().union(*types.seen.values()) <= {torch.float32, torch.float64}
    for name, value in losses[1].items():
        assert value.item() == pytest.approx(losses[0][name].item(), rel=0.05, abs=1e-3), name


def test_weights_gradients_and_optimizer_stay_in_float32() -> None:
    model = make_detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    train(model, [make_batch(1, 2)], optimizer, precision=Precision("bf16", CPU))
    state = [v for s in optimizer.state.values() for v in s.values()]
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters()), *state]
    assert {tensor.dtype for tensor in tensors if tensor is not None} == {torch.float32}


# --- The scale of fp16 ---------------------------------------------------------------------------------


def scaled(kind: str, scale: float = 256.0) -> Precision:
    """With a scale at which the stand-in's gradients do not overflow; at first it is 65,536."""
    precision = Precision(kind, CPU)
    if precision.scaler is not None:
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return precision


def step_with(kind: str, **options: Any) -> Detector:
    model = make_detector()
    train(model, [make_batch(2, 1)], precision=scaled(kind), **options)
    return model


@pytest.mark.parametrize("max_norm", [0, 0.1])
def test_the_scale_does_not_show_in_the_step(max_norm: float) -> None:
    """Gradients are divided by it before they are clipped; 256 times too large, they would show."""
    start = weights_of(make_detector())
    moves = []
    for kind in ("off", "fp16"):
        moved = weights_of(step_with(kind, max_norm=max_norm))
        moves.append(torch.cat([(moved[name] - start[name]).flatten() for name in start]))
    assert 0 < distance(moves[1], moves[0]) < 1e-2


class Overflowing(Spoilt):
    """Finite losses whose gradients overflow at some of the calls."""

    def __init__(self, calls: set[int]) -> None:
        super().__init__(1.0, 0)
        self.overflows = calls

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().forward(*args, **kwargs)
        if self.calls in self.overflows:
            losses["loss_bbox"] = BadGradient.apply(losses["loss_bbox"])  # type: ignore[no-untyped-call]
        return losses


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_is_left_out_and_the_scale_halved(fused: bool) -> None:
    batches = [make_batch(1, 2, seed=i) for i in range(3)]
    model, other = make_detector(), make_detector()
    precision = scaled("fp16")
    runs = (model, batches, Overflowing({2})), (other, batches[::2], make_criterion())
    for each, some, criterion in runs:
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.05, fused=fused)
        one = precision if each is model else scaled("fp16")
        train(each, some, optimizer, criterion=criterion, precision=one)
    assert precision.scaler is not None and precision.scaler.get_scale() == 128
    assert_equal_weights(weights_of(model), weights_of(other))


def test_overflows_without_an_end_are_a_failure() -> None:
    model = make_detector()
    before = weights_of(model)
    batches = [make_batch(1, seed=i) for i in range(OVERFLOWS_TOLERATED + 2)]
    every = Overflowing(set(range(1, 100)))
    with pytest.raises(UserError, match=rf"overflows fp16 .* step {OVERFLOWS_TOLERATED} .*"):
        train(model, batches, criterion=every, precision=Precision("fp16", CPU))
    assert_equal_weights(weights_of(model), before)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_loss_that_is_not_finite_is_a_failure_all_the_same(kind: str) -> None:
    with pytest.raises(UserError, match=r"the loss or its gradient is not finite .* step 1 "):
        step_with(kind, criterion=Spoilt(math.nan, at=1))


def test_with_bf16_a_gradient_that_is_not_finite_is_a_failure() -> None:
    with pytest.raises(UserError, match=r"the loss or its gradient is not finite .* step 1 "):
        step_with("bf16", criterion=SpoiltGradient())


@pytest.mark.parametrize("kind", ["off", "bf16", "fp16"])
def test_no_step_reads_from_the_device_what_float32_does_not(kind: str) -> None:
    """The scale adapts on the device: reading it would make every step wait."""
    reads = HostReads()
    model = make_detector()

    def watched() -> Any:
        for i in range(10):
            reads.steps.append([])
            yield make_batch(1, 2, seed=i)

    with reads:
        train(model, watched(), precision=Precision(kind, CPU))
    (costs,) = set(map(tuple, reads.steps[1:9]))
    assert len(costs) == 1 and costs[0].startswith("numpy [4, 5, "), "the matcher's one copy"


# --- As a flag -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_run_trains_and_evaluates_in_16_bits(
    kind: str, coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types: list[torch.dtype] = []
    original = Transformer.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        types.append(result[1].dtype)  # the encoder's
        return result

    monkeypatch.setattr("util.amp.INITIAL_SCALE", 256.0)  # else the two steps of this run are left out
    results = {}
    for each in ("off", kind):
        folder = tmp_path / each
        with monkeypatch.context() as patch:
            if each == kind:
                patch.setattr(Transformer, "forward", watched)
            words = ("--coco_path", coco_root, "--output_dir", folder, "--epochs", 1, "--dropout", 0)
            assert run(*words, "--amp", each, "--no_report") == 0
        (results[each],) = read_log(folder)
    assert len(types) > 2, "training and evaluation"
    for name in ("train_loss", "test_loss"):
        assert results[kind][name] == pytest.approx(results["off"][name], rel=0.03)
        assert results[kind][name] != results["off"][name]
    checkpoint = load(tmp_path / kind / "checkpoint.pth")
    assert {value.dtype for value in checkpoint["model"].values()} <= {torch.float32, torch.int64}
    assert ("scaler" in checkpoint) == (kind == "fp16")


def test_a_gpu_that_emulates_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(UserError, match="--amp bf16: .* pass --amp fp16"):
        Precision("bf16", torch.device("cuda"))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="--amp fp8: pass one of off, bf16, fp16"):
        Precision("fp8", CPU)
