"""The backbone against torchvision's ResNets: folded norms, shapes, what trains, masks of its batches."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import resnet

from models.backbone import Backbone, BackboneBase, FrozenBatchNorm2d, Joiner, build_backbone
from models.position_encoding import PositionEmbeddingSine
from models.resnet import RESNETS, Bottleneck, folded, folds
from tests.helpers import needs_scripting
from tests.reference.settings import parse
from tests.reference.streams import fill_state
from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list


def backbone(name="resnet18", train=True, interm=False, dilation=False, **options):
    options = {"weights": "none", **options}
    return Backbone(name, train, interm, dilation, **options)


def on_meta(*args, **options):
    """A backbone whose shapes are real and whose numbers are not."""
    with torch.device("meta"):
        return backbone(*args, **options)


def image_batch(*sizes):
    torch.manual_seed(0)
    return nested_tensor_from_tensor_list([torch.randn(3, *size) for size in sizes])


def shapes(module, height=64, width=128):
    batch = NestedTensor(
        torch.zeros(1, 3, height, width, device="meta"),
        torch.zeros(1, height, width, dtype=torch.bool, device="meta"),
    )
    return {name: tuple(each.tensors.shape[1:]) for name, each in module(batch).items()}


# --- The folded norms are the ordinary ones -----------------------------------------------------------


def test_a_folded_convolution_equals_convolution_then_norm():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=False).double()
    norm = FrozenBatchNorm2d(8).double()
    fill_state(norm, 0)
    assert folds(conv, norm)
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64, requires_grad=True)
    scale = (norm.weight / (norm.running_var + 1e-5).sqrt())[:, None, None]
    plain = (conv(x) - norm.running_mean[:, None, None]) * scale + norm.bias[:, None, None]
    ours = folded(x, conv.weight, norm.affine(), (2, 2), (2, 2), (2, 2), 2)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(norm(conv(x)), plain)
    weighting = torch.randn_like(plain)
    gradients = [torch.autograd.grad((y * weighting).sum(), (x, conv.weight)) for y in (ours, plain)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("options", [{"bias": True}, {"bias": False, "padding_mode": "reflect"}])
def test_other_convolutions_are_not_folded(options):
    assert not folds(nn.Conv2d(4, 4, 3, padding=1, **options), FrozenBatchNorm2d(4))


def assert_equal_with_gradients(ours, theirs, outputs, names):
    """Equal outputs of two modules, and equal gradients of the parameters of these names."""
    torch.testing.assert_close(*outputs)
    weighting = torch.randn_like(outputs[0])
    for y in outputs:
        (y * weighting).sum().backward()
    for name in names:
        torch.testing.assert_close(ours.get_parameter(name).grad, theirs.get_parameter(name).grad)


def layer4_of(network, images):
    """What a torchvision ResNet's last stage gives."""
    maps = []
    handle = network.layer4.register_forward_hook(lambda module, args, output: maps.append(output))
    network(images)
    handle.remove()
    return maps[0]


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_a_bottleneck_equals_that_of_torchvision(stride, dilation):
    torch.manual_seed(0)

    def block(kind, norm):
        shortcut = nn.Sequential(resnet.conv1x1(16, 32, stride), norm(32))
        options = {"groups": 2, "base_width": 64, "dilation": dilation, "norm_layer": norm}
        return kind(16, 8, stride, shortcut, **options).double()

    ours = block(Bottleneck, FrozenBatchNorm2d)
    theirs = block(resnet.Bottleneck, torchvision.ops.FrozenBatchNorm2d)
    fill_state(ours, 0)
    theirs.load_state_dict(ours.state_dict())
    names = [name for name, _ in ours.named_parameters()]
    assert names == ["conv1.weight", "conv2.weight", "conv3.weight", "downsample.0.weight"]
    x = torch.randn(2, 16, 6, 7).double()
    assert_equal_with_gradients(ours, theirs, [ours(x), theirs(x)], names)


def test_the_whole_body_equals_that_of_torchvision():
    ours, theirs, x = with_torchvisions()
    trained = [name for name, p in ours.named_parameters() if p.requires_grad]
    assert len(trained) == 15
    assert_equal_with_gradients(ours, theirs, [ours(x)["0"], layer4_of(theirs, x)], trained)


def test_a_frozen_norm_reads_an_ordinary_one():
    torch.manual_seed(0)
    ordinary = nn.BatchNorm2d(5).eval()
    fill_state(ordinary, 1)
    frozen = FrozenBatchNorm2d(5)
    state = ordinary.state_dict()
    assert "num_batches_tracked" in state
    frozen.load_state_dict(state)
    assert "num_batches_tracked" in state  # the caller's dict is as it was
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(frozen(x), ordinary(x))
    torch.testing.assert_close(frozen.train()(x), ordinary(x))
    assert not list(frozen.parameters())


# --- Shapes and names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESNETS)
def test_every_name_builds_the_resnet_of_that_name(name):
    ours = on_meta(name, weights="none")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    expected = {k: shape for k, shape in expected.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in ours.body.state_dict().items()} == expected
    assert shapes(ours) == {"0": (ours.num_channels, 2, 4)}
    assert ours.num_channels == theirs.fc.in_features


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilation_halves_the_stride_and_keeps_the_parameters(name):
    dilated, plain = on_meta(name, dilation=True), on_meta(name)
    assert shapes(dilated) == {"0": (2048, 4, 8)}
    assert list(dilated.state_dict()) == list(plain.state_dict())
    first, *others = dilated.body.layer4
    assert (first.conv2.dilation, first.conv2.stride, first.downsample[0].stride) == ((1, 1), (1, 1), (1, 1))
    assert all(block.conv2.dilation == (2, 2) for block in others)


def test_all_stages_come_out_for_the_mask_head():
    module = on_meta("resnet50", interm=True)
    assert shapes(module) == {"0": (256, 16, 32), "1": (512, 8, 16), "2": (1024, 4, 8), "3": (2048, 2, 4)}
    assert module.channels == [256, 512, 1024, 2048] and module.num_channels == 2048


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("stages, channels, stride", [(3, 256, 16), (2, 128, 8), (1, 64, 4)])
def test_a_backbone_can_stop_early(stages, channels, stride, norm):
    module = on_meta(stages=stages, norm=norm)
    assert shapes(module) == {"0": (channels, 64 // stride, 128 // stride)}
    assert module.num_channels == channels and len(module.channels) == stages
    assert not any(key.startswith(f"body.layer{stages + 1}") for key in module.state_dict())
    assert len(shapes(on_meta(stages=stages, norm=norm, interm=True))) == stages


# --- What trains --------------------------------------------------------------------------------------


def trained_stages(module):
    return {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("interm", [True, False])
def test_frozen_norms_train_all_but_stem_and_first_stage(interm):
    assert trained_stages(on_meta(interm=interm)) == {"layer2", "layer3", "layer4"}
    assert trained_stages(on_meta(interm=interm, train=False)) == set()


def test_batch_norm_trains_everything():
    module = on_meta(norm="batch")
    assert trained_stages(module) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert trained_stages(on_meta(norm="batch", train=False)) == set()
    assert sum(isinstance(each, nn.BatchNorm2d) for each in module.modules()) == 20


def test_batch_norm_is_the_ordinary_network():
    torch.manual_seed(0)
    ours = backbone(norm="batch").double()
    theirs = torchvision.models.resnet18().double()
    theirs.load_state_dict(ours.body.state_dict(), strict=False)
    batch = nested_tensor_from_tensor_list(list(torch.randn(2, 3, 64, 96, dtype=torch.float64)))
    torch.testing.assert_close(ours(batch)["0"].tensors, layer4_of(theirs, batch.tensors))
    torch.testing.assert_close(ours.body.bn1.running_mean, theirs.bn1.running_mean)  # statistics moved


@pytest.mark.parametrize("rate, trains", [("1e-5", True), ("0", False)])
def test_a_learning_rate_of_zero_freezes_the_backbone(rate, trains):
    joiner = build_backbone(parse(f"--backbone resnet18 --lr_backbone {rate} --backbone_stages 2"))
    assert bool(trained_stages(joiner[0])) == trains


# --- Batches ------------------------------------------------------------------------------------------


def test_the_mask_follows_the_features():
    module = backbone(interm=True).eval()
    for sizes in (((64, 96), (40, 70)), ((64, 96), (64, 96))):
        batch = image_batch(*sizes)
        for stride, feature_map in zip((4, 8, 16, 32), module(batch).values(), strict=True):
            assert feature_map.mask.dtype == torch.bool
            assert feature_map.mask.tolist() == batch.mask[:, ::stride, ::stride].tolist()


def test_a_batch_may_come_in_either_memory_layout():
    module = backbone(stages=2).eval()
    batch = image_batch((32, 48))
    out = module(batch)["0"].tensors
    assert out.is_contiguous(memory_format=torch.channels_last)  # as batches are made
    other = module(NestedTensor(batch.tensors.contiguous(), batch.mask))["0"].tensors
    torch.testing.assert_close(other, out)
    assert other.is_contiguous()


def test_joiner_embeds_every_map():
    joiner = Joiner(backbone(interm=True, stages=3).eval(), PositionEmbeddingSine(4, normalize=True))
    assert joiner.num_channels == 256
    features, positions = joiner(image_batch((32, 64), (20, 40)))
    assert [tuple(each.tensors.shape[1:]) for each in features] == [(64, 8, 16), (128, 4, 8), (256, 2, 4)]
    for feature_map, position in zip(features, positions, strict=True):
        assert torch.equal(position, joiner[1](feature_map))
    assert type(positions) is list
    half = NestedTensor(torch.zeros(1, 4, 2, 2).bfloat16(), torch.zeros(1, 2, 2, dtype=torch.bool))
    assert Joiner(Constant(half), joiner[1])(half)[1][0].dtype == torch.bfloat16


class Constant(nn.Module):
    def __init__(self, feature_map):
        super().__init__()
        self.num_channels = 4
        self.feature_map = feature_map

    def forward(self, batch):
        return {"0": self.feature_map}


def test_a_body_of_ones_own_is_trained_by_the_same_rule():
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    body = nn.ModuleDict({name: nn.Conv2d(3, 3, 1) for name in stages})
    body.get_parameter("layer3.bias").requires_grad_(False)  # frozen by its owner
    BackboneBase(body, True, 3, False)
    trained = {name for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {"layer2.weight", "layer2.bias", "layer3.weight", "layer4.weight", "layer4.bias"}


# --- What cannot be built -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "resnet19"}, "--backbone resnet19: not one of resnet18, resnet34, resnet50"),
        ({"norm": "layer"}, "--backbone_norm layer: neither frozen nor batch"),
        ({"stages": 0}, "--backbone_stages 0"),
        ({"stages": 5}, "--backbone_stages 5: a ResNet has 4 stages"),
        ({"dilation": True}, "--dilation: the blocks of resnet18 cannot be dilated"),
        ({"name": "resnet34", "dilation": True}, "--dilation: the blocks of resnet34"),
        ({"name": "resnet50", "dilation": True, "stages": 3}, "--dilation"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        on_meta(**options)


def test_base_takes_stages_out_of_a_plain_resnet():
    plain = torchvision.models.resnet18(weights=None).eval()
    batch = image_batch((32, 64))
    expected = layer4_of(plain, batch.tensors)
    base = BackboneBase(plain, True, 512, False).eval()
    out = base(batch)
    assert list(out) == ["0"] and torch.allclose(out["0"].tensors, expected, rtol=1e-4, atol=1e-5)
    assert trained_stages(base) == {"layer2", "layer3", "layer4"}
    assert list(BackboneBase(plain, True, 512, True)(batch)) == ["0", "1", "2", "3"]


# --- Other modules in its place, and hooks ------------------------------------------------------------


def with_torchvisions(name="resnet18"):
    """Our body and torchvision's network with the same weights, both in float64, and two images."""
    ours = backbone(name).body.double()
    fill_state(ours, 0)
    theirs = torchvision.models.get_model(name, norm_layer=torchvision.ops.FrozenBatchNorm2d).double()
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"] and not result.unexpected_keys
    return ours, theirs, torch.randn(2, 3, 64, 64, dtype=torch.float64)


REPLACED = {
    "conv1": lambda: nn.Conv2d(3, 64, 7, 2, 3, bias=False),
    "bn1": lambda: nn.BatchNorm2d(64),
    "relu": nn.SiLU,
    "layer1.0.conv2": lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
    "layer2.0.bn2": lambda: nn.GroupNorm(8, 128),
    "layer2.1.relu": nn.SiLU,
    "layer2.0.downsample.1": lambda: nn.BatchNorm2d(128),
    "layer3.0.downsample": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(128, 256, 1)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_another_module_in_a_childs_place_is_computed(name):
    torch.manual_seed(0)
    ours, theirs, images = with_torchvisions()
    before = copy.deepcopy(ours)
    module = REPLACED[name]().double()
    for network in (ours, theirs):
        network.set_submodule(name, copy.deepcopy(module))
    torch.testing.assert_close(ours(images)["0"], layer4_of(theirs, images))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images)["0"], layer4_of(theirs.eval(), images))
    assert not torch.allclose(ours(images)["0"], before(images)["0"])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_images_may_have_a_fourth_channel():
    needs_scripting()
    module = backbone(stages=2)
    rgb, depth = image_batch((32, 48)).tensors, torch.randn(1, 1, 32, 48)
    expected = module.body(rgb)["0"]
    wider = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    wider.weight.data = torch.cat([module.body.conv1.weight.data, torch.zeros(64, 1, 7, 7)], 1)
    module.body.conv1 = wider
    images = torch.cat([rgb, depth], 1)
    torch.testing.assert_close(module.body(images)["0"], expected)
    torch.testing.assert_close(torch.jit.script(module.body)(images)["0"], expected)
    out = module(NestedTensor(images, torch.zeros(1, 32, 48, dtype=torch.bool)))["0"].tensors
    out.sum().backward()
    assert wider.weight.grad is not None


@pytest.mark.parametrize("replaced", [None, "conv1", "layer1.0.conv1", "layer2.0.downsample.0"])
def test_compiled_to_one_graph_whatever_stands_in_it(replaced):
    torch.manual_seed(0)
    body = backbone(stages=2).body
    if replaced:
        folded = body.get_submodule(replaced)
        channels, side = (folded.in_channels, folded.out_channels), folded.kernel_size
        body.set_submodule(replaced, nn.Conv2d(*channels, side, folded.stride, folded.padding))
    images = image_batch((32, 48)).tensors
    torch._dynamo.reset()
    compiled = torch.compile(body, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images)["0"], body(images)["0"])


def heard(network, kind, classes):
    """A dict that fills with what each module of these classes gave hooks of this kind last."""
    seen = {}

    def hook_of(name):
        def hook(module, *given):
            last = given[-1] if isinstance(given[-1], torch.Tensor) else given[-1][0]
            seen[name] = last.clone()  # relu overwrites what a norm gives

        return hook

    for name, module in network.named_modules():
        if isinstance(module, classes):
            getattr(module, f"register_{kind}_hook")(hook_of(name))
    return seen


NORMS = FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d


@pytest.mark.parametrize("name, modules", [("resnet18", 40), ("resnet50", 106)])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_hook_sees_what_torchvisions_module_takes_and_gives(kind, name, modules):
    ours, theirs, images = with_torchvisions(name)
    plain = ours(images)["0"]
    seen = [heard(network, kind, (nn.Conv2d, *NORMS)) for network in (ours, theirs)]
    torch.testing.assert_close(ours(images)["0"], plain)
    theirs(images)
    assert len(seen[0]) == modules
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("name, modules", [("resnet18", 20), ("resnet50", 53)])
@pytest.mark.parametrize("kind", ["full_backward", "full_backward_pre"])
def test_a_backward_hook_on_a_convolution_sees_torchvisions_gradients(kind, name, modules):
    ours, theirs, images = with_torchvisions(name)
    ours.requires_grad_(True)
    images.requires_grad_(True)
    seen = [heard(network, kind, nn.Conv2d) for network in (ours, theirs)]
    maps = [ours(images)["0"], layer4_of(theirs, images)]
    weighting = torch.randn_like(maps[0])
    for each in maps:
        (each * weighting).sum().backward()
    assert len(seen[0]) == modules
    torch.testing.assert_close(*seen)
