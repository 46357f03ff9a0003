"""What forks and scripts do with the model and its parts, as they do it with the published one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters
from torchvision.models.feature_extraction import create_feature_extractor

import models.detr
from models.backbone import Joiner
from models.detr import DETR
from models.segmentation import DETRsegm
from models.transformer import Transformer, TransformerEncoder, TransformerEncoderLayer
from tests import helpers
from tests.mask_model import images
from tests.reference.settings import build, parse
from util.misc import NestedTensor, nested_tensor_from_tensor_list

TINY = f"{helpers.TINY} --backbone_stages 4"  # whole ResNets, and masks
SIZES = ((64, 96), (80, 50))  # height, width
MASKS = f"{TINY} --hidden_dim 128 --nheads 8 --masks"


@pytest.fixture
def model() -> Any:
    return build(TINY, seed=0)[0].eval()


def flat(outputs: dict[str, Any]) -> list[Tensor]:
    layers = [outputs, *outputs.get("aux_outputs", [])]
    return [layer[name].detach() for layer in layers for name in ("pred_logits", "pred_boxes")]


# --- What the model is made of ------------------------------------------------------------------------


def test_modules_are_torchs_own_and_weights_are_contiguous(model: Any) -> None:
    ours = [type(module) for module in model.modules()]
    for kind in (nn.Conv2d, nn.Linear, nn.Dropout, nn.LayerNorm, nn.MultiheadAttention):
        assert kind in ours
        assert not any(issubclass(each, kind) and each.__module__.startswith("models") for each in ours)
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    before = flat(model(images(SIZES)))
    vector_to_parameters(parameters_to_vector(model.parameters()) * 1.0, model.parameters())
    torch.testing.assert_close(flat(model(images(SIZES))), before)


def test_the_body_is_a_dict_of_named_stages(model: Any) -> None:
    body = model.backbone[0].body
    assert [name for name, _ in body.items()] == [
        *("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    ]
    assert body.return_layers == {"layer4": "0"}


# --- Parts that are replaced --------------------------------------------------------------------------


class OwnTransformer(Transformer):
    """Reads its mask without asking, and gives more than two things."""

    def forward(self, src, mask, query_embed, pos_embed):
        assert mask.flatten(1).shape == (len(src), src[0, 0].numel())
        return *super().forward(src, mask, query_embed, pos_embed), "attention"


class Encoder(TransformerEncoder):
    """Reads its padding without asking whether there is any."""

    def forward(self, src, mask=None, src_key_padding_mask=None, pos=None):
        kept = ~src_key_padding_mask
        return super().forward(src * kept.t()[..., None], mask, src_key_padding_mask, pos)


class Layer(TransformerEncoderLayer):
    def forward(self, src, src_mask=None, src_key_padding_mask=None, pos=None):
        assert src_key_padding_mask.dtype == torch.bool
        return super().forward(src, src_mask, src_key_padding_mask, pos)


def test_a_transformer_and_its_parts_always_get_the_padding(model: Any) -> None:
    batch = torch.randn(1, 3, 64, 64)
    expected = flat(model(batch))
    model.transformer.__class__ = OwnTransformer
    model.transformer.encoder.__class__ = Encoder
    model.transformer.encoder.layers[0].__class__ = Layer
    torch.testing.assert_close(flat(model(batch)), expected)


class Marking(DETR):
    def _set_aux_loss(self, outputs_class, outputs_coord):
        layers = zip(outputs_class[:-1], outputs_coord[:-1], strict=True)
        return [{"pred_logits": a, "pred_boxes": b, "mark": torch.ones(1)} for a, b in layers]


def test_set_aux_loss_may_be_overridden(model: Any) -> None:
    with_masks = build(MASKS, seed=0)[0].eval()
    for detr in (model, with_masks.detr):
        detr.aux_loss = True
        detr.__class__ = Marking
    stacked = torch.zeros(3, 1, 2, 4), torch.zeros(3, 1, 2, 4)
    assert len(model._set_aux_loss(*stacked)) == 2
    for each in (model, with_masks):
        assert all("mark" in layer for layer in each(images(SIZES))["aux_outputs"])


@pytest.mark.parametrize("name", ["build_backbone", "build_transformer", "build_matcher", "PostProcess"])
def test_what_is_replaced_in_models_detr_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = getattr(models.detr, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(models.detr, name, watched)
    models.detr.build(parse(MASKS))
    assert calls == [name]


class Negated(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize("name", ["lay1", "lay3", "adapter1"])
def test_a_layer_of_the_mask_head_may_be_replaced_and_hooked(name: str) -> None:
    model = build(MASKS, seed=0)[0].eval()
    with torch.no_grad():
        expected = model(images(SIZES))["pred_masks"]
        seen: list[Tensor] = []
        handle = getattr(model.mask_head, name).register_forward_hook(lambda *given: seen.append(given[-1]))
        torch.testing.assert_close(model(images(SIZES))["pred_masks"], expected, rtol=1e-4, atol=1e-4)
        handle.remove()
        assert len(seen) == 1
        other = copy.deepcopy(getattr(model.mask_head, name))
        other.__class__ = Negated
        setattr(model.mask_head, name, other)
        assert not torch.allclose(model(images(SIZES))["pred_masks"], expected)


class Pictures:
    """A batch in a user-defined class, as detectron2 has one."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


class Unpacking(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, pictures: Pictures) -> dict[str, NestedTensor]:
        mask = torch.zeros(pictures.tensor[:, 0].shape, dtype=torch.bool)
        return self.backbone(NestedTensor(pictures.tensor, mask))


@pytest.mark.parametrize("flags", [TINY, MASKS])
def test_a_model_takes_what_its_backbone_takes(flags: str) -> None:
    """The width of a backbone of one's own may be set late."""
    model = build(flags, seed=0)[0].eval()
    detector = model.detr if flags == MASKS else model
    batch = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(batch)
        joiner = detector.backbone
        detector.backbone = Joiner(Unpacking(joiner[0]), joiner[1])
        detector.backbone.num_channels = joiner.num_channels
        found = model(Pictures(batch))
    for name, value in expected.items():
        if name != "aux_outputs":
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


# --- Masks and positions ------------------------------------------------------------------------------


def test_positions_are_a_list_and_stay_as_they_were_computed(model: Any) -> None:
    features, positions = model.backbone(nested_tensor_from_tensor_list(images(SIZES)))
    before = positions[-1].clone()
    features[-1].mask = torch.zeros_like(features[-1].mask)
    assert positions[-1] is positions[-1] and torch.equal(positions[-1], before)
    positions.append(before)
    assert len(positions) == 2


# --- What is done with a whole model ------------------------------------------------------------------


def test_features_are_extracted_by_fx(model: Any) -> None:
    body = model.backbone[0].body
    x = torch.randn(1, 3, 64, 64)
    found = create_feature_extractor(body, {"layer3": "a", "layer4": "b"})(x)
    torch.testing.assert_close(found["b"], body(x)["0"])
    assert found["a"].shape == (1, 256, 4, 4)


def test_gradients_by_vmap_over_functional_call(model: Any) -> None:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    batch = torch.randn(2, 3, 64, 64)

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        out = torch.func.functional_call(model, (values, buffers), (NestedTensor(image[None], mask),))
        return out["pred_boxes"].sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, batch)
    name = "backbone.0.body.layer4.1.conv2.weight"
    for i, image in enumerate(batch):
        model.zero_grad()
        loss(parameters, image).backward()
        torch.testing.assert_close(found[name][i], parameters[name].grad, rtol=1e-3, atol=1e-5)


def test_pruned_convolutions_and_attentions_are_used(model: Any) -> None:
    pruned = copy.deepcopy(model)
    places = (
        (pruned.backbone[0].body.layer4[1].conv2, "weight"),
        (pruned.input_proj, "weight"),
        (pruned.transformer.decoder.layers[0].self_attn, "in_proj_weight"),
    )
    for module, name in places:
        prune.l1_unstructured(module, name, 0.5)
    found = flat(pruned(images(SIZES)))
    assert not torch.allclose(found[0], flat(model(images(SIZES)))[0])
    for module, name in places:
        prune.remove(module, name)
    torch.testing.assert_close(flat(pruned(images(SIZES))), found, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_linear_layers_are_quantised(model: Any) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    expected = sum(type(module) is nn.Linear for module in model.modules())
    found = sum("quantized" in type(module).__module__ for module in quantised.modules())
    assert found >= expected > 0
    assert quantised(images(SIZES))["pred_boxes"].isfinite().all()


def test_a_model_in_double_precision_gives_gradients_of_the_image(model: Any) -> None:
    model.double()
    batch = nested_tensor_from_tensor_list([image.double() for image in images(SIZES)])
    batch.tensors.requires_grad_(True)
    model(batch)["pred_logits"].softmax(-1)[..., 3].sum().backward()
    assert batch.tensors.grad is not None and batch.tensors.grad.dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("flags", [f"{TINY} --no_aux_loss", f"{MASKS} --no_aux_loss"])
def test_scripting_leaves_the_model_as_it_was(flags: str) -> None:
    helpers.needs_scripting()

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, pictures: list[Tensor]) -> dict[str, Tensor]:
            return self.inner(nested_tensor_from_tensor_list(pictures))

    wrapped = Wrapped(build(flags, seed=0)[0]).eval()
    kinds = {name: type(module) for name, module in wrapped.named_modules()}
    names = list(wrapped.state_dict())
    before = wrapped(images(SIZES))
    scripted = torch.jit.script(wrapped)
    assert {name: type(module) for name, module in wrapped.named_modules()} == kinds
    assert list(wrapped.state_dict()) == names == list(scripted.state_dict())
    for outputs in (scripted(images(SIZES)), wrapped(images(SIZES))):
        assert all(torch.equal(outputs[name], before[name]) for name in before)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    wrapped.train()(images(SIZES))["pred_boxes"].sum().backward()
    optimizer.step()
    after = wrapped.eval()(images(SIZES))["pred_logits"]
    assert not torch.equal(after, before["pred_logits"])
    torch.testing.assert_close(scripted(images(SIZES))["pred_logits"], after)  # with the same parameters


def test_masks_are_drawn_by_a_detector_of_a_subclass() -> None:
    class Own(DETR):
        def forward(self, samples: Any) -> Any:  # type: ignore[override]
            return {**super().forward(samples), "own": torch.ones(1)}

    model = build(MASKS, seed=0)[0].eval()
    expected = model(images(SIZES))["pred_masks"]
    model.detr.__class__ = Own
    assert isinstance(model, DETRsegm) and "own" in model.detr(images(SIZES))
    torch.testing.assert_close(model(images(SIZES))["pred_masks"], expected)
