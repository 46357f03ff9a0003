"""torch.hub's entry points, and what users of the published notebooks do with the models they give."""

import hashlib
import inspect
import sys
import types
from pathlib import Path

import pytest
import torch

import hubconf
from models.postprocess import PostProcess
from tests.file_server import forbid_network
from util.checkpoint_file import load_checkpoint
from util.errors import UserError
from util.hub_models import HUB_MODELS
from util.nested_tensor import NestedTensor

ROOT = Path(hubconf.__file__).resolve().parent
DETECTION = ("detr_resnet50", "detr_resnet50_dc5", "detr_resnet101", "detr_resnet101_dc5")


@pytest.fixture
def small(monkeypatch):
    """The entry points give R18's first stage and one layer each, and note what was asked for."""
    asked = []

    def backbone(name, **options):
        asked.append((name, options))
        return Backbone("resnet18", **{**options, "dilation": False, "stages": 1})

    def transformer(**options):
        return Transformer(**options, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=32)

    Backbone, Transformer = hubconf.Backbone, hubconf.Transformer
    monkeypatch.setattr(hubconf, "Backbone", backbone)
    monkeypatch.setattr(hubconf, "Transformer", transformer)
    return asked


# --- The model at full size, built once ---------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        forbid_network(patch)
        loaded = torch.hub.load(
            str(ROOT), "detr_resnet50", source="local", pretrained=False, pretrained_backbone=False
        )
    return loaded.eval()


def test_the_local_repository_gives_the_published_architecture(model):
    assert sum(p.numel() for p in model.parameters()) == 41_524_768
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368
    assert (model.num_queries, model.class_embed.out_features) == (100, 92)
    assert (len(model.transformer.encoder.layers), len(model.transformer.decoder.layers)) == (6, 6)
    assert model.transformer.decoder.layers[0].linear1.out_features == 2048
    assert model.transformer.nhead == 8 and not model.aux_loss


@torch.no_grad()
def test_hooks_of_the_published_notebooks(model):
    """Attention maps are read off like this; the reshaping at the end is theirs."""
    seen = {}
    places = {
        "features": model.backbone[-2],
        "encoder": model.transformer.encoder.layers[-1].self_attn,
        "decoder": model.transformer.decoder.layers[-1].multihead_attn,
    }
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    plain = model(image)
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
        for name, module in places.items()
    ]
    hooked = model(image)
    for handle in handles:
        handle.remove()
    features = seen["features"]["0"]
    assert isinstance(features, NestedTensor) and features.tensors.shape == (1, 2048, 3, 4)
    height, width = features.tensors.shape[-2:]
    encoder, decoder = seen["encoder"][1], seen["decoder"][1]
    assert encoder.shape == (1, 12, 12) and decoder.shape == (1, 100, 12)
    assert encoder[0].reshape(height, width, height, width).shape == (3, 4, 3, 4)
    for weights in (encoder, decoder):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(hooked[key], plain[key], atol=2e-5, rtol=1e-4)
    seen.clear()
    model(image)
    assert not seen


# --- Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTION)
def test_arguments_and_their_defaults(name):
    parameters = inspect.signature(getattr(hubconf, name)).parameters
    assert {key: p.default for key, p in parameters.items()} == {
        "pretrained": False, "num_classes": 91, "return_postprocessor": False, "pretrained_backbone": True,
    }  # fmt: skip
    assert list(parameters)[:3] == ["pretrained", "num_classes", "return_postprocessor"]
    assert set(hubconf.dependencies) >= {"torch", "torchvision"}


@pytest.mark.parametrize("name", DETECTION)
def test_each_entry_point_asks_for_its_backbone(small, name, no_network):
    getattr(hubconf, name)(pretrained_backbone=False)
    ((backbone, options),) = small
    assert backbone == "resnet101" * ("101" in name) + "resnet50" * ("50" in name)
    assert options["dilation"] == name.endswith("dc5")
    assert options["train_backbone"] is True and options["weights"] == "none"


def test_number_of_classes_and_postprocessor(small, no_network):
    model, postprocessor = hubconf.detr_resnet50(
        num_classes=4, return_postprocessor=True, pretrained_backbone=False
    )
    assert isinstance(postprocessor, PostProcess)
    with torch.no_grad():
        outputs = model.eval()([torch.randn(3, 64, 64)])
    assert outputs["pred_logits"].shape == (1, 100, 5)
    (result,) = postprocessor(outputs, torch.tensor([[480, 640]]))
    assert result["boxes"].shape == (100, 4) and result["labels"].max() < 4


# --- Beside other projects ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models", "util"])
@pytest.mark.parametrize(
    "place, known",
    [
        ("other/NAME/__init__.py", {"__file__": "other/NAME/__init__.py", "__path__": ["other/NAME"]}),
        ("other/NAME.py", {"__file__": "other/NAME.py"}),
        ("other/NAME", {"__file__": None, "__path__": ["other/NAME"]}),  # a folder without __init__.py
        ("a module without a file", {}),
    ],
)
def test_a_package_of_another_project_is_named(monkeypatch, name, place, known):
    """Ours would be searched for in it, or it would be taken for ours."""
    other = types.ModuleType(name)
    for key, value in known.items():
        named = [one.replace("NAME", name) for one in value] if isinstance(value, list) else value
        setattr(other, key, named.replace("NAME", name) if isinstance(named, str) else named)
    monkeypatch.setitem(sys.modules, name, other)
    with pytest.raises(ImportError) as caught:
        torch.hub.load(str(ROOT), "detr_resnet50", source="local", pretrained=False)
    said = str(caught.value)
    assert f"`{name}` cannot be imported" in said and f": {place.replace('NAME', name)}. Load detr" in said
    assert "\n" not in said and sys.modules[name] is other


# --- Weights ------------------------------------------------------------------------------------------


FILES = {
    "detr_resnet50": "detr-r50-e632da11.pth",
    "detr_resnet50_dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "detr_resnet101": "detr-r101-2c7b67e5.pth",
    "detr_resnet101_dc5": "detr-r101-dc5-a2e86def.pth",
    "detr_resnet50_panoptic": "detr-r50-panoptic-00ce5173.pth",
    "detr_resnet50_dc5_panoptic": "detr-r50-dc5-panoptic-da08f1b1.pth",
    "detr_resnet101_panoptic": "detr-r101-panoptic-40021d53.pth",
}


@pytest.mark.parametrize("name", FILES)
def test_each_entry_point_has_its_published_file(monkeypatch, name):
    def load(url):
        raise UserError(f"asked for {url}")

    monkeypatch.setattr(hubconf, "load_checkpoint", load)
    url = f"https://dl.fbaipublicfiles.com/detr/{FILES[name]}"
    with torch.device("meta"), pytest.raises(UserError, match=f"asked for {url}$"):
        getattr(hubconf, name)(pretrained=True)
    assert HUB_MODELS[name].file == FILES[name]


def test_pretrained_weights_come_from_the_cache_and_nothing_else_is_fetched(
    small, hub_cache, monkeypatch, no_network
):
    """The published files cannot be had here: one of our own takes their place, under its own hash."""
    stored = hubconf.detr_resnet50(pretrained_backbone=False)
    path = hub_cache / "stored.pth"
    torch.save({"model": stored.state_dict()}, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path.rename(hub_cache / f"ours-{digits}.pth")
    ours = f"https://host.invalid/ours-{digits}.pth"
    monkeypatch.setattr(hubconf, "load_checkpoint", lambda url: load_checkpoint(ours))
    model = hubconf.detr_resnet50(pretrained=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in stored.state_dict().items())
    assert small[-1][1]["weights"] == "none"
