"""--grad_checkpoint: the same bits with less kept, whatever trains."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.recomputation import RecomputedStage, enable_grad_checkpoint, recomputed
from tests import helpers
from tests.mask_model import images
from tests.reference.settings import build
from util.errors import UserError

SMALL = f"{helpers.TINY} --backbone_stages 4 --enc_layers 2 --dropout 0.1"
MASKS = SMALL.replace("--hidden_dim 32 --nheads 4", "--hidden_dim 128 --nheads 8") + " --masks"
SETTINGS = {
    "frozen norms": SMALL,
    "trained norms": f"{SMALL} --backbone_norm batch",
    "nothing of the backbone trains": f"{SMALL} --lr_backbone 0",
    "masks": MASKS,
    "masks, trained norms": f"{MASKS} --backbone_norm batch",
    "pre_norm, two stages": f"{SMALL} --pre_norm --backbone_stages 2",
}


def with_and_without(flags: str) -> tuple[nn.Module, nn.Module]:
    model = build(flags, seed=0)[0].train()
    recomputing = copy.deepcopy(model)
    enable_grad_checkpoint(recomputing)
    return model, recomputing


def step(model: nn.Module, kind: str = "off") -> dict[str, Any]:
    """All that a forward and a backward pass leave."""
    torch.manual_seed(1)  # of the dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        out = model(images())
    outputs = {name: value for name, value in out.items() if isinstance(value, Tensor)}
    torch.stack([value.float().pow(2).sum() for value in outputs.values()]).sum().backward()
    return {
        "outputs": {name: value.detach() for name, value in outputs.items()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "statistics": dict(model.named_buffers()),
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS)
def test_outputs_gradients_and_statistics_keep_their_bits(flags: str) -> None:
    plain, recomputing = map(step, with_and_without(flags))
    assert any(gradient is not None for gradient in plain["gradients"].values())
    torch.testing.assert_close(recomputing, plain, rtol=0, atol=0)


def test_the_same_under_autocast() -> None:
    plain, recomputing = (step(model, "bf16") for model in with_and_without(SETTINGS["trained norms"]))
    torch.testing.assert_close(recomputing, plain, rtol=0, atol=0)


def kept(model: nn.Module) -> int:
    """Bytes of activations that a forward pass keeps for the gradient."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(images())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert outputs["pred_boxes"].requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in weights)


@pytest.mark.parametrize("flags", [SETTINGS["trained norms"], SETTINGS["frozen norms"]])
def test_less_is_kept_for_the_gradient(flags: str) -> None:
    plain, recomputing = map(kept, with_and_without(flags))
    assert recomputing < 0.75 * plain


@pytest.mark.parametrize("flags", SETTINGS.values(), ids=SETTINGS)
def test_names_stay(flags: str) -> None:
    plain, recomputing = with_and_without(flags)
    assert list(plain.state_dict()) == list(recomputing.state_dict())
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in recomputing.named_parameters()]


@torch.no_grad()
def test_nothing_is_recomputed_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.recomputation.checkpoint", lambda *_, **__: pytest.fail("recomputes"))
    model = with_and_without(SMALL)[1].eval()
    assert any(isinstance(module, RecomputedStage) for module in model.modules())
    assert model(images())["pred_boxes"].shape == (2, 10, 4)


def test_hooks_on_layers_are_called() -> None:
    """At the second computation too, as torch's checkpoint does it."""
    model = with_and_without(SMALL)[1]
    seen = []
    model.transformer.encoder.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))  # type: ignore
    step(model)
    assert len(seen) == 2


def test_statistics_are_put_back_after_an_error() -> None:
    norm = nn.BatchNorm1d(2).train()
    tables = norm.running_mean
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the second computation")
        return norm(x).exp()

    y = recomputed(norm, function, torch.randn(4, 2, requires_grad=True))
    mean = norm.running_mean.clone()  # type: ignore[union-attr, operator]
    with pytest.raises(RuntimeError, match="second"):
        y.sum().backward()
    assert norm.running_mean is tables is not None
    assert torch.equal(mean, tables)


def test_a_backbone_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    flags = SMALL.replace("resnet18", "timm/resnet10t")
    plain, recomputing = map(step, with_and_without(flags))
    torch.testing.assert_close(recomputing, plain, rtol=0, atol=0)
    with pytest.raises(UserError, match="--grad_checkpoint.*--backbone_norm batch"):
        with_and_without(f"{flags} --backbone_norm batch")
