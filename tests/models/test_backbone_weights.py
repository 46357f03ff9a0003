"""Where the backbone's first weights come from: nowhere, a file, torch.hub's cache or the network."""

import hashlib

import pytest
import torch
import torchvision

from models.backbone import Backbone
from models.resnet import RESNETS
from tests.file_server import url_without_server
from util.errors import UserError


def backbone(name="resnet18", **options):
    return Backbone(name, True, False, False, **options)


def assert_holds(body, path):
    stored = torch.load(path, weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in body.state_dict().items())


def test_nothing_is_fetched_where_nothing_is_wanted(no_network):
    backbone(weights="none", stages=1)


@pytest.mark.parametrize("norm, stages", [("frozen", 4), ("batch", 4), ("frozen", 2)])
def test_weights_from_a_file(resnet18_file, norm, stages, no_network):
    module = backbone(weights=str(resnet18_file), norm=norm, stages=stages)
    assert_holds(module.body, resnet18_file)
    assert module.body.conv1.weight.is_contiguous()


def test_weights_of_a_checkpoint_with_a_model_entry(resnet18_file, tmp_path):
    wrapped = tmp_path / "wrapped.pth"
    torch.save({"model": torch.load(resnet18_file, weights_only=True), "epoch": 3}, wrapped)
    assert_holds(backbone(weights=str(wrapped), stages=1).body, resnet18_file)


def test_other_ranks_load_nothing(monkeypatch):
    monkeypatch.setattr("models.backbone.is_main_process", lambda: False)
    backbone(weights="no/such/file.pth", stages=1)


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_weights_of_another_network_are_refused(name, resnet18_file):
    with pytest.raises(UserError, match=f"--backbone_weights .*weights.pth.* {name}"):
        backbone(name, weights=str(resnet18_file))


def test_tensors_of_another_shape_are_refused(tmp_path, resnet18_file):
    path = tmp_path / "four_channels.pth"
    stored = torch.load(resnet18_file, weights_only=True)
    torch.save({**stored, "conv1.weight": torch.zeros(64, 4, 7, 7)}, path)
    with pytest.raises(UserError, match=r"--backbone_weights .*four_channels.pth.*conv1\.weight"):
        backbone(weights=str(path), stages=1)


def test_weights_of_a_deeper_network_are_refused(tmp_path, resnet18_file):
    """Every tensor of the shallow one is there in the right shape, and yet they are another's."""
    path = tmp_path / "resnet34.pth"
    stored = torch.load(resnet18_file, weights_only=True)
    stored |= {name.replace("layer1.1", "layer1.2"): value for name, value in stored.items()}
    torch.save(stored, path)
    with pytest.raises(UserError, match="--backbone_weights .*resnet34.pth.* resnet18"):
        backbone(weights=str(path))


@pytest.mark.parametrize("content", [None, b"", b"no weights\n", {"weights": 3}])
def test_files_without_weights_are_refused(tmp_path, content):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"bad\.pth|holds no weights"):
        backbone(weights=str(path), stages=1)


@pytest.fixture
def imagenet(monkeypatch, hub_cache):
    """Lets torchvision believe that its ResNet-18 weights lie at a URL."""

    def publish(url):
        class Published(torchvision.models.WeightsEnum):
            IMAGENET1K_V1 = torchvision.models.Weights(url=url, transforms=torch.nn.Identity, meta={})

        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Published)

    return publish


def named_by_hash(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"resnet18-{digest[:8]}.pth"


def test_imagenet_weights_lie_where_torchvision_says():
    for name in RESNETS:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        assert weights.url.startswith(f"https://download.pytorch.org/models/{name}-"), name


def test_imagenet_weights_come_from_the_cache(imagenet, resnet18_file, hub_cache, no_network):
    name = named_by_hash(resnet18_file)
    imagenet(f"https://weights.invalid/{name}")
    (hub_cache / name).write_bytes(resnet18_file.read_bytes())
    assert_holds(backbone(weights="imagenet", stages=1).body, resnet18_file)


def test_without_a_network_the_message_says_how_to_go_on(imagenet, resnet18_file):
    imagenet(f"{url_without_server()}/{named_by_hash(resnet18_file)}")
    with pytest.raises(UserError, match="resnet18.*--backbone_weights PATH.*--backbone_weights none"):
        backbone(weights="imagenet", stages=1)
