"""The model as a whole: what goes in, what comes out, scripting, and what build_model makes of flags."""

import pytest
import torch
from torch import nn

from models import build_model
from models.criterion import SetCriterion
from models.detr import DETR, MLP
from models.postprocess import PostProcess
from tests.helpers import TINY_MODEL, needs_scripting
from tests.reference.settings import parse
from util.coco_names import default_num_classes
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

TINY = f"{TINY_MODEL} --dec_layers 3 --num_queries 5 --dropout 0"
SIZES = ((64, 96), (30, 60))


def build(flags=""):
    torch.manual_seed(0)
    return build_model(parse(f"{TINY} {flags}"))


@pytest.fixture(scope="module")
def model():
    """In evaluation, with auxiliary outputs; not to be changed."""
    return build()[0].eval()


def images(*sizes):
    torch.manual_seed(1)
    return [torch.randn(3, *size) for size in sizes]


def assert_same(out, expected):
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(out[key], expected[key])


# --- Input and output ---------------------------------------------------------------------------------


def test_outputs_have_the_published_form(model):
    out = model(images(*SIZES))
    assert set(out) == {"pred_logits", "pred_boxes", "aux_outputs"}
    assert len(out["aux_outputs"]) == 2
    for layer in [out, *out["aux_outputs"]]:
        assert layer["pred_logits"].shape == (2, 5, 92) and layer["pred_boxes"].shape == (2, 5, 4)
        assert layer["pred_boxes"].min() > 0 and layer["pred_boxes"].max() < 1
    assert all(set(layer) == {"pred_logits", "pred_boxes"} for layer in out["aux_outputs"])


def test_heads_read_every_layer_of_the_decoder(model):
    captured = []
    handle = model.transformer.register_forward_hook(lambda module, args, output: captured.append(output[0]))
    out = model(images(*SIZES))
    handle.remove()
    layers = [*out["aux_outputs"], out]
    assert len(captured[0]) == len(layers) == 3
    for hs, layer in zip(captured[0], layers, strict=True):
        torch.testing.assert_close(layer["pred_logits"], model.class_embed(hs))
        torch.testing.assert_close(layer["pred_boxes"], model.bbox_embed(hs).sigmoid())


def test_without_auxiliary_losses_only_the_last_layer_comes_out(model):
    plain = build("--no_aux_loss")[0].eval()
    plain.load_state_dict(model.state_dict())
    out = plain(images(*SIZES))
    assert set(out) == {"pred_logits", "pred_boxes"}
    assert_same(out, model(images(*SIZES)))


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1] * 2])
def test_list_tensor_and_nested_tensor_are_the_same_batch(model, sizes):
    pictures = images(*sizes)
    batch = nested_tensor_from_tensor_list(pictures)
    expected = model(batch)
    assert_same(model(pictures), expected)
    assert_same(model(NestedTensor(*batch.decompose())), expected)
    if sizes[0] == sizes[1]:
        assert_same(model(torch.stack(pictures)), expected)


def test_attention_gets_the_padding_at_its_stride(model):
    seen = []
    handle = model.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    batch = nested_tensor_from_tensor_list(images(*SIZES))
    model(batch)
    model(images(SIZES[0], SIZES[0]))
    handle.remove()
    mask = batch.decompose()[1]
    assert seen[0].tolist() == mask[:, ::32, ::32].tolist() and seen[0].any()
    assert seen[1].shape == (2, 2, 3) and not seen[1].any()


@pytest.mark.parametrize(
    "flags", ["", "--backbone_norm batch --backbone_stages 3", "--position_embedding learned"]
)
def test_everything_that_trains_gets_a_gradient(flags):
    """DistributedDataParallel without find_unused_parameters waits for each of them."""
    model, criterion, _ = build(flags)
    model.train()
    nothing = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    losses = criterion(model(images(*SIZES)), [nothing] * 2)
    torch.stack([losses[name] * factor for name, factor in criterion.weight_dict.items()]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_mlp_is_linear_layers_with_relu_between(layers):
    torch.manual_seed(0)
    mlp = MLP(6, 10, 4, layers)
    widths = [6, *[10] * (layers - 1), 4]
    shapes = [tuple(mlp.get_parameter(f"layers.{i}.weight").shape) for i in range(layers)]
    assert shapes == list(zip(widths[1:], widths, strict=False))
    steps = [step for layer in mlp.layers for step in (nn.ReLU(), layer)][1:]
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(mlp(x), nn.Sequential(*steps)(x))


# --- Scripting ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "flags", ["--no_aux_loss", "--no_aux_loss --backbone_norm batch --backbone_stages 3 --pre_norm"]
)
def test_a_scripted_model_equals_the_model(flags):
    needs_scripting()
    model = build(flags)[0].eval()
    scripted = torch.jit.script(model)
    for sizes in (SIZES, SIZES[:1] * 2, ((70, 40),)):
        batch = nested_tensor_from_tensor_list(images(*sizes))
        assert_same(scripted(batch), model(batch))


# --- build_model --------------------------------------------------------------------------------------


def test_flags_become_model_criterion_and_postprocessors():
    model, criterion, postprocessors = build("--set_cost_bbox 3 --eos_coef 0.3 --num_classes 7")
    assert isinstance(model, DETR) and isinstance(criterion, SetCriterion)
    assert model.num_queries == 5 and model.class_embed.out_features == 8
    assert criterion.num_classes == 7 and criterion.matcher.cost_bbox == 3
    assert criterion.empty_weight.tolist() == pytest.approx([1.0] * 7 + [0.3])
    assert set(criterion.losses) == {"labels", "boxes", "cardinality"}
    assert set(postprocessors) == {"bbox"} and isinstance(postprocessors["bbox"], PostProcess)


@pytest.mark.parametrize(
    "flags, classes",
    [("", 91), ("--dataset_file coco_panoptic", 250), ("--dataset_file coco_panoptic --num_classes 12", 12)],
)
def test_open_number_of_classes(flags, classes):
    assert build(flags)[0].class_embed.out_features == classes + 1
    assert default_num_classes("coco") == 91 and default_num_classes("coco_panoptic") == 250


def test_weights_name_every_loss_of_every_layer():
    criterion = build("--bbox_loss_coef 4 --giou_loss_coef 3")[1]
    weights = {"loss_ce": 1, "loss_bbox": 4, "loss_giou": 3}
    expected = {name + suffix: w for suffix in ("", "_0", "_1") for name, w in weights.items()}
    assert criterion.weight_dict == expected
    assert build("--no_aux_loss --bbox_loss_coef 4 --giou_loss_coef 3")[1].weight_dict == weights
