"""The ResNet that turns images into feature maps, with its norms frozen (paper, section 4).

Shapes: B batch, C channels, H W image, h w feature map.
"""

import argparse
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu
from torch.nn.modules import module as module_hooks
from torchvision.models import resnet
from torchvision.models.feature_extraction import create_feature_extractor

from models.folded_conv import added_to_shortcut, folded_conv2d
from models.position_encoding import build_position_encoding
from util.checkpoint import load_checkpoint, model_state
from util.distributed import is_main_process
from util.errors import UserError
from util.nested_tensor import NestedTensor

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
    the same, also for training: the gradient reaches the weight through the scale.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        affine: tuple[Tensor, Tensor],
        shortcut: Tensor | None = None,
        spare: bool = False,
    ) -> Tensor:
        """[B, C, h, w] -> convolved, scaled and shifted, [B, C', h', w'].

        With a shortcut, relu of both's sum; one that is to spare may be overwritten.
        """
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


class FoldedDownsample(nn.Sequential):
    """The shortcut's convolution (`0`) and frozen norm (`1`)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        return self[0](x, self[1].affine())  # type: ignore[operator]


def _fold(block: resnet.BasicBlock | resnet.Bottleneck) -> None:
    """Replace a torchvision block's convolutions by folded ones; names in the state_dict stay."""
    for name, child in list(block.named_children()):
        if isinstance(child, nn.Conv2d):
            setattr(block, name, FoldedConv2d.like(child))
    if isinstance(block.downsample, nn.Sequential):
        conv, norm = block.downsample
        block.downsample = FoldedDownsample(FoldedConv2d.like(conv), norm)  # type: ignore[arg-type]


class FoldedBasicBlock(resnet.BasicBlock):
    """torchvision's block of ResNet-18 and -34, computed with folded norms."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _fold(self)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']; with `spare` the shortcut may be overwritten."""
        out = relu(self.conv1(x, self.bn1.affine()), inplace=True)
        if self.downsample is not None:
            x = self.downsample(x)
        return self.conv2(out, self.bn2.affine(), x, spare)


class FoldedBottleneck(resnet.Bottleneck):
    """torchvision's block of ResNet-50 and deeper, computed with folded norms."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _fold(self)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']; with `spare` the shortcut may be overwritten."""
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
            or module_hooks._global_forward_hooks
            or module_hooks._global_forward_pre_hooks
            or any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
            or any(type(block) not in FOLDED.values() for block in self)
        )

    @torch.jit.unused
    def _overwriting(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self):  # the first one's shortcut may be the stage's input
            x = block(x, spare=place > 0 or isinstance(block.downsample, FoldedDownsample))
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


class ResNetBody(resnet.ResNet):
    """torchvision's ResNet without pooling and classifier, up to a chosen stage.

    Args:
        depth: which ResNet.
        dilation: replace the last stage's stride by dilation.
        folds: frozen norms, folded into the convolutions; otherwise ordinary batch norm.
        stages: how many of layer1 ... layer4 to keep.
        return_interm_layers: give every stage's features as "0", "1", ..., not the last one's as "0".
    """

    folds: Final[bool]

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
        self.folds = folds
        self.stages = stages
        self.return_interm_layers = return_interm_layers

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


class BackboneBase(nn.Module):
    """Runs a body on a padded batch and brings the mask to the size of each feature map.

    Args:
        backbone: maps images [B, 3, H, W] to a dict of feature maps; or a torchvision ResNet, whose stages
            are taken out.
        train_backbone: let the stages behind the first train; otherwise nothing in it does.
        num_channels: channels of the last feature map.
        return_interm_layers: whether the body gives every stage (the mask head needs them).
        train_everything: train the first stage and the stem too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        train_backbone: bool,
        num_channels: int,
        return_interm_layers: bool,
        train_everything: bool = False,
    ):
        super().__init__()
        if isinstance(backbone, resnet.ResNet) and not isinstance(backbone, ResNetBody):
            stages = range(1, STAGES + 1) if return_interm_layers else [STAGES]
            names = {f"layer{stage}": str(i) for i, stage in enumerate(stages)}
            backbone = create_feature_extractor(backbone, names)
        late = ("layer2", "layer3", "layer4")
        for name, parameter in backbone.named_parameters():
            trains = train_backbone and (train_everything or name.startswith(late))
            parameter.requires_grad_(parameter.requires_grad and trains)
        self.body = backbone
        self.num_channels = num_channels
        self.return_interm_layers = return_interm_layers

    def forward(self, tensor_list: NestedTensor) -> dict[str, NestedTensor]:
        """A batch [B, 3, H, W] -> feature maps by name, each with its mask [B, h, w]."""
        mask = tensor_list.mask
        assert mask is not None
        images = tensor_list.tensors.contiguous(memory_format=torch.channels_last)
        out: dict[str, NestedTensor] = {}
        for name, features in self.body(images).items():
            out[name] = NestedTensor(features, _shrink(mask, features), tensor_list.padded)
        return out


def _shrink(mask: Tensor, features: Tensor) -> Tensor:
    """The mask [B, H, W] at the nearest pixels of features [B, C, h, w] -> [B, h, w]."""
    rows = _nearest(mask.shape[1], features.shape[2], mask.device)
    columns = _nearest(mask.shape[2], features.shape[3], mask.device)
    return mask.index_select(1, rows).index_select(2, columns)


def _nearest(pixels: int, cells: int, device: torch.device) -> Tensor:
    """The pixel that torch's nearest interpolation takes for each cell of an axis, int64 [cells].

    Spelled out, because runtimes of exported models round its division otherwise, at one size in ten.
    """
    return (torch.arange(cells, dtype=torch.float32, device=device) * (pixels / cells)).long()


class Backbone(BackboneBase):
    """A torchvision ResNet with the statistics of its norms frozen.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, or another name in RESNETS.
        train_backbone: let layer2, layer3 and layer4 train.
        return_interm_layers: give every stage's features, for the mask head.
        dilation: DC5, a dilated last stage in place of its stride (paper, section 4.1).
        weights: `imagenet` (torchvision's IMAGENET1K_V1), `none`, or the path of a state_dict.
        norm: `frozen`, or `batch` for ordinary batch norm, with which all of the backbone trains.
        stages: stop behind this many of the four stages (4: stride 32, 3: stride 16).

    Raises:
        UserError: an unknown name, a combination that torchvision cannot build, weights that cannot
            be had.
    """

    def __init__(
        self,
        name: str,
        train_backbone: bool,
        return_interm_layers: bool,
        dilation: bool,
        weights: str = "imagenet",
        norm: str = "frozen",
        stages: int = STAGES,
    ):
        if name not in RESNETS:
            raise UserError(f"--backbone {name}: not one of {', '.join(RESNETS)}, nor timm/NAME")
        if norm not in ("frozen", "batch"):
            raise UserError(f"--backbone_norm {norm}: neither frozen nor batch")
        if not 1 <= stages <= STAGES:
            raise UserError(f"--backbone_stages {stages}: a ResNet has {STAGES} stages")
        depth = RESNETS[name]
        if dilation and depth.block is resnet.BasicBlock:
            raise UserError(f"--dilation: the blocks of {name} cannot be dilated; take resnet50 or deeper")
        if dilation and stages < STAGES:
            raise UserError(
                f"--dilation: it is stage {STAGES} that is dilated; take --backbone_stages {STAGES}"
            )
        body = ResNetBody(depth, dilation, norm == "frozen", stages, return_interm_layers)
        if weights != "none" and is_main_process():  # other ranks are given them when DDP starts
            _load_weights(body, name, weights)
        channels = [64 * 2**i * depth.block.expansion for i in range(stages)]
        super().__init__(
            body.to(memory_format=torch.channels_last),
            train_backbone,
            channels[-1],
            return_interm_layers,
            train_everything=norm == "batch",
        )
        self.channels = channels
        """Channels of each stage's feature map, from stride 4 on."""


def _load_weights(body: ResNetBody, name: str, weights: str) -> None:
    """Fill a body from ImageNet weights (`imagenet`) or from the state_dict in a file."""
    if weights == "imagenet":
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        try:
            state = model_state(load_checkpoint(url))
        except UserError as error:
            raise UserError(
                f"ImageNet weights of {name}: {error}; or pass --backbone_weights PATH with a file of them, "
                "or --backbone_weights none to start from random ones"
            ) from error
    else:
        state = model_state(load_checkpoint(weights))
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    unused = ("fc.", *(f"layer{stage}." for stage in range(body.stages + 1, STAGES + 1)))
    theirs = {key: value for key, value in state.items() if not key.startswith(unused)}
    ours = {k: v for k, v in body.state_dict().items() if not k.endswith("num_batches_tracked")}
    differences = [key for key in ours if key not in theirs or theirs[key].shape != ours[key].shape]
    differences += [key for key in theirs if key not in ours and key not in counters]
    if differences:
        raise UserError(
            f"--backbone_weights {weights}: not the weights of {name}; {len(differences)} tensors are "
            f"missing, unknown or of another shape, first {differences[0]}"
        )
    body.load_state_dict({key: theirs[key] for key in ours}, strict=False)


class Joiner(nn.Sequential):
    """The backbone (`0`) and the position embedding of its feature maps (`1`)."""

    def __init__(self, backbone: nn.Module, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)
        self.num_channels: int = backbone.num_channels  # type: ignore[assignment]

    def forward(self, tensor_list: NestedTensor) -> tuple[list[NestedTensor], list[Tensor]]:
        """A batch [B, 3, H, W] -> feature maps from fine to coarse, and the last one's embedding.

        The embedding, [B, D, h, w], is the only element of its list: nobody reads those of finer maps, which
        cost as much as the mask head and would not fit into learned tables.
        """
        features: list[NestedTensor] = []
        for feature_map in self[0](tensor_list).values():
            features.append(feature_map)
        last = features[-1]
        return features, [self[1](last).to(last.tensors.dtype)]


def build_backbone(args: argparse.Namespace) -> Joiner:
    """The backbone and position embedding that the flags describe: a torchvision ResNet, or `timm/NAME`."""
    build: Callable[..., BackboneBase] = Backbone
    if args.backbone.startswith("timm/"):
        from models.timm_backbone import build_timm_backbone as build
    backbone = build(
        args.backbone,
        train_backbone=args.lr_backbone > 0,
        return_interm_layers=args.masks,
        dilation=args.dilation,
        weights=args.backbone_weights,
        norm=args.backbone_norm,
        stages=args.backbone_stages,
    )
    return Joiner(backbone, build_position_encoding(args))
