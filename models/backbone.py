"""The backbone that turns images into feature maps: a ResNet with its norms frozen (paper, section 4).

Shapes: B batch, C channels, H W image, h w feature map.
"""

import argparse
from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from util.checkpoint_file import load_checkpoint, model_state
from util.distributed import is_main_process
from util.errors import UserError
from util.flags import completed
from util.nested_tensor import NestedTensor

from .folding import FrozenBatchNorm2d
from .position_encoding import build_position_encoding
from .resnet import RESNETS, STAGES, BackboneBase, BasicBlock, build_resnet

__all__ = ["Backbone", "BackboneBase", "FrozenBatchNorm2d", "Joiner", "build_backbone"]

COUNTER = "num_batches_tracked"  # of ordinary batch norms, without a meaning for frozen ones


class Backbone(BackboneBase):
    """A torchvision ResNet with the statistics of its norms frozen.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, or another name in RESNETS.
        train_backbone: let layer2, layer3 and layer4 train.
        return_interm_layers: give every stage's features, for the mask head.
        dilation: DC5, a dilated last stage in place of its stride (paper, section 4.1).
        weights: `imagenet` (torchvision's IMAGENET1K_V1), `none`, or the path of a state_dict.
        norm: `frozen`, or `batch` for ordinary batch norm, with which all of the backbone trains.
        stages: stop after this many of the four stages (4: stride 32, 3: stride 16).

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
        if dilation and depth.block is BasicBlock:
            raise UserError(f"--dilation: the blocks of {name} cannot be dilated; take resnet50 or deeper")
        if dilation and stages < STAGES:
            raise UserError(
                f"--dilation: it is stage {STAGES} that is dilated; take --backbone_stages {STAGES}"
            )
        network = build_resnet(name, dilation, FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d)
        if weights != "none" and is_main_process():  # other ranks are given them when DDP starts
            _load_weights(network, name, weights, stages)
        channels = [64 * 2**i * depth.block.expansion for i in range(stages)]
        super().__init__(
            network,
            train_backbone,
            channels[-1],
            return_interm_layers,
            train_everything=norm == "batch",
            stages=stages,
        )
        self.channels = channels
        """Channels of each stage's feature map, from stride 4 on."""


def _load_weights(network: nn.Module, name: str, weights: str, stages: int) -> None:
    """Fill a ResNet's first stages from ImageNet weights (`imagenet`) or from the state_dict in a file."""
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
    unused = ("fc.", *(f"layer{stage}." for stage in range(stages + 1, STAGES + 1)))
    theirs = {key: value for key, value in state.items() if not key.startswith(unused)}
    ours = {
        k: v for k, v in network.state_dict().items() if not (k.startswith(unused) or k.endswith(COUNTER))
    }
    differences = [key for key in ours if key not in theirs or theirs[key].shape != ours[key].shape]
    differences += [key for key in theirs if key not in ours and not key.endswith(COUNTER)]
    if differences:
        raise UserError(
            f"--backbone_weights {weights}: not the weights of {name}; {len(differences)} tensors are "
            f"missing, unknown or of another shape, first {differences[0]}"
        )
    network.load_state_dict({key: theirs[key] for key in ours}, strict=False)


class Joiner(nn.Sequential):
    """The backbone (`0`) and the position embedding of its feature maps (`1`)."""

    def __init__(self, backbone: nn.Module, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)
        # A user-defined backbone may be given its width later.
        self.num_channels: int = getattr(backbone, "num_channels", None)  # type: ignore[assignment]

    def forward(self, tensor_list: NestedTensor) -> tuple[list[NestedTensor], list[Tensor]]:
        """A batch [B, 3, H, W] -> feature maps from fine to coarse, and the position embedding of each."""
        features: list[NestedTensor] = []
        positions: list[Tensor] = []
        for feature_map in self[0](tensor_list).values():
            features.append(feature_map)
            positions.append(self[1](feature_map).to(feature_map.tensors.dtype))
        return features, positions


def build_backbone(args: argparse.Namespace) -> Joiner:
    """The backbone and position embedding that the flags describe: a torchvision ResNet, or `timm/NAME`."""
    args = completed(args)
    build: Callable[..., BackboneBase] = Backbone
    if args.backbone.startswith("timm/"):
        from .timm_backbone import build_timm_backbone

        build = build_timm_backbone
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
