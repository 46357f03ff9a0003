"""torchvision's ResNets with their norms folded, and the feature maps of a backbone (paper, section 4).

Shapes: B batch, C and C' channels in and out, H W image, h w feature map.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from util.nested_tensor import NestedTensor

from .folding import folded, folds

STAGES = 4  # layer1 ... layer4, at strides 4, 8, 16, 32


class _Folding:
    """What both kinds of block share: whether their norms are folded, and a shortcut that folds its own."""

    __constants__ = ["folds"]
    convolutions: int

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.downsample is not None:  # type: ignore
            self.downsample = Downsample(*self.downsample)  # type: ignore

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def folds(self) -> bool:
        """Whether the norms are folded. TorchScript asks once, and leaves out the other branch."""
        numbers = range(1, self.convolutions + 1)
        return all(folds(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in numbers)


class BasicBlock(_Folding, resnet.BasicBlock):
    """torchvision's block of ResNet-18 and -34."""

    convolutions = 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.folds:
            c = self.conv1
            x = self.relu(folded(x, c.weight, self.bn1.affine(), c.stride, c.padding, c.dilation, c.groups))
            c = self.conv2
            x = folded(x, c.weight, self.bn2.affine(), c.stride, c.padding, c.dilation, c.groups)
        else:
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.bn2(self.conv2(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(_Folding, resnet.Bottleneck):
    """torchvision's block of the deeper ResNets."""

    convolutions = 3

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.folds:
            c = self.conv1
            x = self.relu(folded(x, c.weight, self.bn1.affine(), c.stride, c.padding, c.dilation, c.groups))
            c = self.conv2
            x = self.relu(folded(x, c.weight, self.bn2.affine(), c.stride, c.padding, c.dilation, c.groups))
            c = self.conv3
            x = folded(x, c.weight, self.bn3.affine(), c.stride, c.padding, c.dilation, c.groups)
        else:
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


class Downsample(nn.Sequential):
    """A shortcut that changes the size: convolution (`0`) and norm (`1`)."""

    __constants__ = ["folds"]

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def folds(self) -> bool:
        """As of BasicBlock."""
        return len(self) == 2 and folds(self[0], self[1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        if self.folds:
            c = self[0]
            affine = self[1].affine()  # type: ignore[operator]
            return folded(x, c.weight, affine, c.stride, c.padding, c.dilation, c.groups)  # type: ignore[arg-type]
        for module in self:
            x = module(x)
        return x


class Variant(NamedTuple):
    """What tells one ResNet from another: its blocks, and how many of them in each stage."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


RESNETS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Variant(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Variant(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": Variant(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Variant(Bottleneck, (3, 4, 23, 3), width_per_group=128),
}


def build_resnet(name: str, dilation: bool, norm_layer: type[nn.Module]) -> resnet.ResNet:
    """torchvision's ResNet of a name in RESNETS, of the blocks above; no weights are loaded.

    Args:
        name: in RESNETS.
        dilation: replace the last stage's stride by dilation.
        norm_layer: of every norm; FrozenBatchNorm2d is folded, any other is called.
    """
    depth = RESNETS[name]
    return resnet.ResNet(
        depth.block,
        list(depth.blocks),
        groups=depth.groups,
        width_per_group=depth.width_per_group,
        replace_stride_with_dilation=[False, False, dilation],
        norm_layer=norm_layer,
    )


class Body(nn.ModuleDict):
    """The children of a network, one after the other, up to the last one whose output is wanted.

    Args:
        network: a ResNet, or any network whose children form a chain.
        return_layers: name of a child -> name of its output.

    Raises:
        ValueError: the network has no such child.
    """

    __constants__ = ["folds"]

    def __init__(self, network: nn.Module, return_layers: Mapping[str, str]):
        names = [name for name, _ in network.named_children()]
        missing = [name for name in return_layers if name not in names]
        if missing:
            raise ValueError(f"no {', '.join(missing)} in the network, which has {', '.join(names)}")
        wanted = names[: 1 + max(names.index(name) for name in return_layers)]
        super().__init__({name: network.get_submodule(name) for name in wanted})
        self.return_layers = dict(return_layers)

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def folds(self) -> bool:
        """Whether the stem's norm is folded; of the stages each block knows for itself."""
        return list(self)[:2] == ["conv1", "bn1"] and folds(self["conv1"], self["bn1"])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> feature maps [B, C, h, w] by the names in return_layers."""
        if self.folds:
            c = self.conv1
            affine = self.bn1.affine()  # type: ignore
            x = folded(x, c.weight, affine, c.stride, c.padding, c.dilation, c.groups)  # type: ignore
        out: dict[str, Tensor] = {}
        for name, module in self.items():
            if not (self.folds and (name == "conv1" or name == "bn1")):
                x = module(x)
            if name in self.return_layers:
                out[self.return_layers[name]] = x
        return out


class BackboneBase(nn.Module):
    """Runs a body on a padded batch and brings the mask to the size of each feature map.

    Args:
        backbone: a network with children `layer1` ... `layer4`, whose outputs are taken; or one without, that
            maps images [B, 3, H, W] to a dict of feature maps.
        train_backbone: let the stages after the first train; otherwise nothing in it does.
        num_channels: channels of the last feature map.
        return_interm_layers: give the map of every stage (the mask head needs them), not the last alone.
        train_everything: train the first stage and the stem too.
        stages: stop after this many of the network's stages.
    """

    def __init__(
        self,
        backbone: nn.Module,
        train_backbone: bool,
        num_channels: int,
        return_interm_layers: bool,
        train_everything: bool = False,
        stages: int = STAGES,
    ):
        super().__init__()
        late = ("layer2", "layer3", "layer4")
        for name, parameter in backbone.named_parameters():
            trains = train_backbone and (train_everything or name.startswith(late))
            parameter.requires_grad_(parameter.requires_grad and trains)
        if hasattr(backbone, "layer1"):
            wanted = range(1, stages + 1) if return_interm_layers else [stages]
            backbone = Body(backbone, {f"layer{stage}": str(i) for i, stage in enumerate(wanted)})
        self.body = backbone
        self.num_channels = num_channels
        self.return_interm_layers = return_interm_layers

    def forward(self, tensor_list: NestedTensor) -> dict[str, NestedTensor]:
        """A batch [B, 3, H, W] -> feature maps by name, each with its mask [B, h, w]."""
        mask = tensor_list.mask
        assert mask is not None
        out: dict[str, NestedTensor] = {}
        for name, features in self.body(tensor_list.tensors).items():
            out[name] = NestedTensor(features, mask_at(mask, features))
        return out


def mask_at(mask: Tensor, features: Tensor) -> Tensor:
    """The padding mask [B, H, W] at the size of features [B, C, h, w], nearest neighbour -> [B, h, w]."""
    rows = _nearest(mask.shape[1], features.shape[2], mask.device)
    columns = _nearest(mask.shape[2], features.shape[3], mask.device)
    return mask.index_select(1, rows).index_select(2, columns)


def _nearest(pixels: int, cells: int, device: torch.device) -> Tensor:
    """The pixel that torch's nearest interpolation takes for each cell of an axis, int64 [cells].

    Written out, because the runtimes of exported models round this division differently at one size in ten.
    """
    return (torch.arange(cells, dtype=torch.float32, device=device) * (pixels / cells)).long()
