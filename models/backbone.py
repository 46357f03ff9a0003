"""The backbone that turns images into feature maps: a ResNet with its norms frozen (paper, section 4).

Shapes: B batch, C channels, H W image, h w feature map.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.feature_extraction import create_feature_extractor

from util.checkpoint_file import load_checkpoint, model_state
from util.distributed import is_main_process
from util.errors import UserError
from util.flags import completed
from util.nested_tensor import NestedTensor, may_be_padded

from .position_encoding import build_position_encoding
from .resnet import RESNETS, STAGES, FrozenBatchNorm2d, ResNetBody

__all__ = ["Backbone", "BackboneBase", "FrozenBatchNorm2d", "Joiner", "build_backbone"]


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
        padded = tensor_list.padded
        if not torch.jit.is_scripting():
            padded = may_be_padded(tensor_list)
        images = tensor_list.tensors.contiguous(memory_format=torch.channels_last)
        out: dict[str, NestedTensor] = {}
        for name, features in self.body(images).items():
            out[name] = NestedTensor(features, _shrink(mask, features), padded)
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


class Embeddings(Sequence[Tensor]):
    """The position embedding of each feature map, [B, D, h, w], computed whenever it is asked for.

    DETR asks for the last one's alone. Those of finer maps cost as much as the mask head, and would not fit
    into learned tables.
    """

    def __init__(self, embed: nn.Module, features: Sequence[NestedTensor]):
        self.embed = embed
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, place):  # an int, or a slice for a list
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        feature_map = self.features[place]
        return self.embed(feature_map).to(feature_map.tensors.dtype)


class Joiner(nn.Sequential):
    """The backbone (`0`) and the position embedding of its feature maps (`1`)."""

    def __init__(self, backbone: nn.Module, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)
        # A backbone of a user's own may be told its width later.
        self.num_channels: int = getattr(backbone, "num_channels", None)  # type: ignore[assignment]

    def forward(self, tensor_list: NestedTensor) -> tuple[list[NestedTensor], list[Tensor]]:
        """A batch [B, 3, H, W] -> feature maps from fine to coarse, and their Embeddings.

        In TorchScript, which has no such class, the last one's embedding alone, in a list.
        """
        features: list[NestedTensor] = []
        for feature_map in self[0](tensor_list).values():
            features.append(feature_map)
        if not torch.jit.is_scripting():
            return features, Embeddings(self[1], features)  # type: ignore[return-value]
        last = features[-1]
        return features, [self[1](last).to(last.tensors.dtype)]


def build_backbone(args: argparse.Namespace) -> Joiner:
    """The backbone and position embedding that the flags describe: a torchvision ResNet, or `timm/NAME`."""
    args = completed(args)
    build: Callable[..., BackboneBase] = Backbone
    if args.backbone.startswith("timm/"):
        from .timm_backbone import build_timm_backbone as build
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
