"""ResNets whose frozen norms are folded into their convolutions (paper, section 4).

Shapes: B batch, C channels, H W image, h w feature map.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu
from torchvision.models import resnet

from .eager import is_watched
from .folded_conv import added_to_shortcut, folded_conv2d

STAGES = 4  # layer1 ... layer4, at strides 4, 8, 16, 32


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine map are constants: buffers that no optimizer sees.

    Args:
        n: channels.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Checkpoints of an ordinary batch norm carry a counter that has no meaning here.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The norm as y = scale * x + shift: two vectors [C]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]


class FoldedConv2d(nn.Conv2d):
    """A convolution that takes the frozen norm behind it into its weight.

    Scaling the weight at every forward costs next to nothing beside a pass over the activations, and the
    activations between convolution and norm are neither computed nor kept for backward. The function is
    the same, also for training: the gradient reaches the weight through the scale. Called without a norm's
    scale and shift it is a plain convolution.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        affine: tuple[Tensor, Tensor] | None = None,
        shortcut: Tensor | None = None,
        spare: bool = False,
    ) -> Tensor:
        """[B, C, h, w] -> convolved, scaled and shifted, [B, C', h', w'].

        With a shortcut, relu of both's sum; one that is to spare may be overwritten.
        """
        if affine is None:
            return self._conv_forward(x, self.weight, self.bias)
        scale, shift = affine
        if not torch.jit.is_scripting():
            return self._on_little_memory(x, scale, shift, shortcut, spare)
        weight = self.weight * scale[:, None, None, None]
        out = conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)
        return out if shortcut is None else relu(out + shortcut)

    @torch.jit.unused
    def _on_little_memory(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        shortcut: Tensor | None,
        spare: bool,
    ) -> Tensor:
        geometry = (list(self.stride), list(self.padding), list(self.dilation), self.groups)
        folded = self.weight, scale, shift, geometry
        if shortcut is None:
            return folded_conv2d(x, *folded)
        return added_to_shortcut(shortcut, x, *folded, spare)

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "FoldedConv2d":
        """A folded convolution of the same geometry that shares the given one's weight."""
        if conv.bias is not None or not isinstance(conv.padding, tuple):
            raise ValueError("only the plain, bias-free convolutions of torchvision's ResNets are folded")
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        folded = cls(conv.in_channels, conv.out_channels, *geometry, bias=False)  # type: ignore[arg-type]
        folded.weight = conv.weight
        return folded


class _Folding:
    """Of a module whose convolutions take in the norms behind them, as long as all of it is as built.

    Where a user has put another module in a child's place, or a hook on a child, each child computes its own.
    """

    __constants__ = ["folds"]  # TorchScript asks once, and leaves out the other road
    __jit_unused_properties__ = ["folds"]

    @property
    def folds(self) -> bool:
        """Whether the children are as built, and nobody looks at what they give each other."""
        return _are_as_built(list(self.children()))  # type: ignore[attr-defined]


def _are_as_built(modules: list[nn.Module]) -> bool:
    kinds = (FoldedConv2d, FrozenBatchNorm2d, FoldedDownsample, nn.ReLU)
    if any(type(module) not in kinds for module in modules):
        return False
    # A compiled graph does not notice hooks that are set later: there the types alone decide.
    return torch.compiler.is_compiling() or not any(is_watched(module) for module in modules)


class FoldedDownsample(_Folding, nn.Sequential):
    """The shortcut's convolution (`0`) and frozen norm (`1`)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        if not torch.jit.is_scripting() and not self.folds:
            return super().forward(x)
        return self[0](x, self[1].affine())  # type: ignore[operator]


def _fold(block: resnet.BasicBlock | resnet.Bottleneck) -> None:
    """Replace a torchvision block's convolutions by folded ones; names in the state_dict stay."""
    for name, child in list(block.named_children()):
        if isinstance(child, nn.Conv2d):
            setattr(block, name, FoldedConv2d.like(child))
    if isinstance(block.downsample, nn.Sequential):
        conv, norm = block.downsample
        block.downsample = FoldedDownsample(FoldedConv2d.like(conv), norm)  # type: ignore[arg-type]


class FoldedBasicBlock(_Folding, resnet.BasicBlock):
    """torchvision's block of ResNet-18 and -34, computed with folded norms."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _fold(self)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']; with `spare` the shortcut may be overwritten."""
        if not torch.jit.is_scripting() and not self.folds:
            return super().forward(x)
        out = relu(self.conv1(x, self.bn1.affine()), inplace=True)
        if self.downsample is not None:
            x = self.downsample(x)
        return self.conv2(out, self.bn2.affine(), x, spare)


class FoldedBottleneck(_Folding, resnet.Bottleneck):
    """torchvision's block of ResNet-50 and deeper, computed with folded norms."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _fold(self)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']; with `spare` the shortcut may be overwritten."""
        if not torch.jit.is_scripting() and not self.folds:
            return super().forward(x)
        out = relu(self.conv1(x, self.bn1.affine()), inplace=True)
        out = relu(self.conv2(out, self.bn2.affine()), inplace=True)
        if self.downsample is not None:
            x = self.downsample(x)
        return self.conv3(out, self.bn3.affine(), x, spare)


class FoldedStage(nn.Sequential):
    """The folded blocks of a stage; in evaluation each overwrites what only the one before it has made."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        if not torch.jit.is_scripting() and self._is_private():
            return self._overwriting(x)
        for block in self:
            x = block(x)
        return x

    @torch.jit.unused
    def _is_private(self) -> bool:
        """Whether nobody sees what the blocks give each other: no training, no hooks, blocks as built."""
        return not (
            torch.compiler.is_compiling()
            or self.training
            or any(is_watched(module) for module in self.modules())
            or any(type(block) not in FOLDED.values() or not block.folds for block in self)
        )

    @torch.jit.unused
    def _overwriting(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self):  # the first one's shortcut may be the stage's input
            shortcut = block.downsample
            is_fresh = isinstance(shortcut, FoldedDownsample) and shortcut.folds
            x = block(x, spare=place > 0 or is_fresh)
        return x


class Depth(NamedTuple):
    """What tells one ResNet from another: its blocks, and how many of them in each stage."""

    block: type[resnet.BasicBlock] | type[resnet.Bottleneck]
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


RESNETS = {
    "resnet18": Depth(resnet.BasicBlock, (2, 2, 2, 2)),
    "resnet34": Depth(resnet.BasicBlock, (3, 4, 6, 3)),
    "resnet50": Depth(resnet.Bottleneck, (3, 4, 6, 3)),
    "resnet101": Depth(resnet.Bottleneck, (3, 4, 23, 3)),
    "resnet152": Depth(resnet.Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Depth(resnet.Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Depth(resnet.Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": Depth(resnet.Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Depth(resnet.Bottleneck, (3, 4, 23, 3), width_per_group=128),
}
FOLDED = {resnet.BasicBlock: FoldedBasicBlock, resnet.Bottleneck: FoldedBottleneck}


class ResNetBody(_Folding, resnet.ResNet):
    """torchvision's ResNet without pooling and classifier, up to a chosen stage.

    Args:
        depth: which ResNet.
        dilation: replace the last stage's stride by dilation.
        folds: frozen norms, folded into the convolutions; otherwise ordinary batch norm.
        stages: how many of layer1 ... layer4 to keep.
        return_interm_layers: give every stage's features as "0", "1", ..., not the last one's as "0".
    """

    def __init__(self, depth: Depth, dilation: bool, folds: bool, stages: int, return_interm_layers: bool):
        super().__init__(
            FOLDED[depth.block] if folds else depth.block,
            list(depth.blocks),
            groups=depth.groups,
            width_per_group=depth.width_per_group,
            replace_stride_with_dilation=[False, False, dilation],
            norm_layer=FrozenBatchNorm2d if folds else None,
        )
        del self.avgpool, self.fc
        if folds:
            self.conv1: nn.Module = FoldedConv2d.like(self.conv1)  # type: ignore[arg-type]
            for stage in ("layer1", "layer2", "layer3", "layer4"):
                setattr(self, stage, FoldedStage(*getattr(self, stage)))
        for unused in ("layer4", "layer3", "layer2")[: STAGES - stages]:
            setattr(self, unused, nn.Identity())
        self.stages = stages
        self.return_interm_layers = return_interm_layers

    @property
    def folds(self) -> bool:
        """Whether the stem's convolution takes in its norm; of the stages each block knows for itself."""
        return _are_as_built([self.conv1, self.bn1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> feature maps by name, each [B, C, h, w]."""
        if self.folds:  # noqa: SIM108 (TorchScript leaves out the other branch of a statement only)
            x = self.conv1(x, self.bn1.affine())
        else:
            x = self.bn1(self.conv1(x))
        x = self.maxpool(self.relu(x))  # stride 4
        layer1 = self.layer1(x)
        layer2 = self.layer2(layer1)  # stride 8
        layer3 = self.layer3(layer2)  # stride 16
        layer4 = self.layer4(layer3)  # stride 32, or 16 with dilation
        if not self.return_interm_layers:
            return {"0": layer4}
        maps = [layer1, layer2, layer3, layer4]
        return {str(i): maps[i] for i in range(self.stages)}
