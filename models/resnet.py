"""torchvision's ResNets with their frozen norms folded into the convolutions (paper, section 4).

norm(conv(x, w)) is conv(x, scale * w) + shift. Scaling the weight at every forward costs next to nothing
beside a pass over the activations, and the activations between convolution and norm are neither computed nor
kept for the gradient, which reaches the weight through the scale.

Shapes: B batch, C and C' channels in and out, H W image, h w feature map.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchvision.models import resnet

from .frozen_norm import FrozenBatchNorm2d
from .plain import is_plain

STAGES = 4  # layer1 ... layer4, at strides 4, 8, 16, 32


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether `folded` may stand for the two: a bias-free convolution and a frozen norm, both plain."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and isinstance(norm, FrozenBatchNorm2d)
        and is_plain(conv)
        and is_plain(norm)
    )


def folded(
    x: Tensor,
    weight: Tensor,
    affine: tuple[Tensor, Tensor],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """A convolution and the frozen norm after it, of which `affine` is scale and shift, as one.

    [B, C, h, w] -> [B, C', h', w'].
    """
    scale, shift = affine
    return conv2d(x, weight * scale[:, None, None, None], shift, stride, padding, dilation, groups)


class BasicBlock(resnet.BasicBlock):
    """torchvision's block of ResNet-18 and -34."""

    __constants__ = ["folds"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.downsample is not None:  # type: ignore[has-type]
            self.downsample = Downsample(*self.downsample)  # type: ignore[has-type]

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def folds(self) -> bool:
        """Whether the norms are folded. TorchScript asks once, and leaves out the other branch."""
        return folds(self.conv1, self.bn1) and folds(self.conv2, self.bn2)

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


class Bottleneck(resnet.Bottleneck):
    """torchvision's block of the deeper ResNets."""

    __constants__ = ["folds"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.downsample is not None:  # type: ignore[has-type]
            self.downsample = Downsample(*self.downsample)  # type: ignore[has-type]

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def folds(self) -> bool:
        """As of BasicBlock."""
        pairs = (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)
        return all(folds(conv, norm) for conv, norm in pairs)

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


class Depth(NamedTuple):
    """What tells one ResNet from another: its blocks, and how many of them in each stage."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


RESNETS = {
    "resnet18": Depth(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Depth(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Depth(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Depth(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Depth(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Depth(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Depth(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": Depth(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Depth(Bottleneck, (3, 4, 23, 3), width_per_group=128),
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
