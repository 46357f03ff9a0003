"""Backbones of the timm library, by name: `--backbone timm/convnext_tiny`.

Any model of timm serves that takes images of every size and has maps at stride 32, for masks also at strides
4, 8 and 16; with fewer stages, at theirs. Which those are, and what trains, is read off one small forward and
backward pass.

Shapes: B batch, C channels, H W image, h w feature map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from util.distributed import is_main_process
from util.errors import UserError
from util.nested_tensor import IMAGENET_MEAN, IMAGENET_STD

from .resnet import BackboneBase
from .timm_weights import PREFIX, create, create_with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

STRIDES = (4, 8, 16, 32)  # a ResNet's
PROBE = (96, 160)  # height and width in pixels: 3 by 5 cells, which no fixed grid or window fits


class TimmBody(nn.Module):
    """A timm model that gives feature maps, of the sizes that a ResNet's have.

    Images are padded below and on the right to a multiple of 32 pixels, which a ResNet's convolutions do
    implicitly, and maps are cut to ceil(H / stride) x ceil(W / stride).

    Args:
        model: has timm's `forward_intermediates`.
        levels: stride -> number of the model's intermediate map; fine to coarse.
        return_interm_layers: give all of these maps as "0", "1", ..., not the last one as "0".
        mean, std: with which the model wants RGB in [0, 1] normalised.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        levels: Mapping[int, int],
        return_interm_layers: bool,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ):
        super().__init__()
        self.indices = list(levels.values())
        if hasattr(model, "prune_intermediate_layers"):
            self.indices = model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)  # type: ignore
        self.model = model
        self.strides = list(levels)
        self.return_interm_layers = return_interm_layers
        # Images come normalised with ImageNet's mean and deviation, and not every model was trained so.
        ours, theirs = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([mean, std])
        self.register_buffer("scale", (ours[1] / theirs[1])[:, None, None], persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1])[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> feature maps by name, fine to coarse, each [B, C, h, w]."""
        maps = self.all_maps(x)
        return {str(i): one for i, one in enumerate(maps if self.return_interm_layers else maps[-1:])}

    def all_maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> the maps of every level, fine to coarse."""
        height, width = x.shape[-2:]
        x = torch.addcmul(self.shift, x, self.scale)
        # No division of negative numbers: ONNX and torch.export round it differently from Python.
        below, right = (_cells(side, STRIDES[-1]) * STRIDES[-1] - side for side in (height, width))
        x = pad(x, (0, right, 0, below))
        maps = self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)  # type: ignore
        return [
            one[..., : _cells(height, stride), : _cells(width, stride)]
            for one, stride in zip(maps, self.strides, strict=True)
        ]

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script calls first."""
        raise UserError("torchscript: models of timm cannot be scripted; export to onnx or torch_export")


def _cells(side: int, stride: int) -> int:
    """How many cells cover a side of so many pixels."""
    return (side + stride - 1) // stride


class TimmBackbone(BackboneBase):
    """A model of timm as DETR's backbone.

    With batch norms it is treated as a ResNet: their statistics and affine maps are frozen, and so is what
    runs down to stride 4. A model without any trains as a whole.

    Args:
        name: timm's name, with or without the tag of its weights: `convnext_tiny`, `resnet50d.a1_in1k`.
        train_backbone: let it train; otherwise nothing in it does.
        return_interm_layers: give the map at every stride, for the mask head, not the last alone.
        weights: `imagenet` (timm's pretrained ones, whatever they were trained on), `none`, or the path of a
            state_dict for the model as timm builds it, by its names or in its order, without a classifier or
            with one, which is left out.
        norm: `frozen`, or `batch` for ordinary batch norm, with which all of it trains.
        stages: stop after this many strides (4: at 32, 3: at 16).

    Raises:
        UserError: timm is missing; an unknown name; a model that does not fit; weights that cannot be had.
    """

    def __init__(
        self,
        name: str,
        train_backbone: bool,
        return_interm_layers: bool,
        weights: str = "imagenet",
        norm: str = "frozen",
        stages: int = len(STRIDES),
    ):
        model = create(name)
        levels = _levels(model, name, STRIDES[:stages], masks=return_interm_layers)
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
        if norm == "batch" and not has_batch_norm:
            raise UserError(f"--backbone_norm batch: {PREFIX}{name} has no batch norm; leave the flag out")
        if weights != "none" and is_main_process():  # other ranks are given them when DDP starts
            model = create_with_weights(name, weights)
        wanted: Any = model.pretrained_cfg
        indices = {stride: index for stride, (index, _) in levels.items()}
        body = TimmBody(model, indices, return_interm_layers, wanted["mean"], wanted["std"])
        if norm == "frozen" and has_batch_norm:
            from timm.layers import freeze_batch_norm_2d  # statistics and affine maps become buffers

            freeze_batch_norm_2d(body)
            if any(isinstance(module, _BatchNorm) for module in body.modules()):
                raise UserError(
                    f"--backbone {PREFIX}{name}: has batch norms over vectors, which cannot be frozen; take "
                    "another model, or --backbone_norm batch"
                )
        channels = [width for _, width in levels.values()]
        super().__init__(body, train_backbone, channels[-1], return_interm_layers, train_everything=True)
        self.channels = channels
        """Channels of each map, fine to coarse."""
        if train_backbone:
            _limit_training(body, freeze_first_stage=has_batch_norm and norm == "frozen")


def build_timm_backbone(
    name: str,
    train_backbone: bool,
    return_interm_layers: bool,
    dilation: bool,
    weights: str,
    norm: str,
    stages: int,
) -> TimmBackbone:
    """The backbone `timm/...`, from what a `Backbone` takes.

    Raises:
        UserError: dilation, which torchvision's ResNets alone have; no such stages; and see TimmBackbone.
    """
    if dilation:
        raise UserError(f"--dilation: only torchvision's ResNets can be dilated, not {name}; leave it out")
    if not 1 <= stages <= len(STRIDES):
        raise UserError(f"--backbone_stages {stages}: there are {len(STRIDES)}, at strides 4 to 32")
    return TimmBackbone(
        name.removeprefix(PREFIX), train_backbone, return_interm_layers, weights, norm, stages
    )


def _levels(model: nn.Module, name: str, strides: tuple[int, ...], masks: bool) -> dict[int, tuple[int, int]]:
    """What the model gives at these strides: stride -> (number of the intermediate map, channels)."""
    height, width = PROBE
    model.eval()
    try:
        with torch.no_grad():
            maps = model.forward_intermediates(torch.zeros(1, 3, height, width), intermediates_only=True)  # type: ignore
    except Exception as error:  # whatever an architecture does about a size that it was not made for
        raise UserError(
            f"--backbone {PREFIX}{name}: takes images of one size only, or gives no feature maps; take "
            "another, as convnext_tiny or swin_tiny_patch4_window7_224"
        ) from error
    model.train()
    found: dict[int, tuple[int, int]] = {}
    for index, one in enumerate(maps):  # of maps at the same stride the last counts, which knows most
        stride = max(1, height // one.shape[-2])
        if one.shape[-2:] == (height // stride, width // stride):
            found[stride] = (index, one.shape[1])
    missing = [stride for stride in (strides if masks else strides[-1:]) if stride not in found]
    if missing:
        every = f"masks need {', '.join(map(str, strides))}"
        raise UserError(
            f"--backbone {PREFIX}{name}: has no feature map at stride {' and '.join(map(str, missing))}, "
            f"only at {', '.join(map(str, found)) or 'none'}; "
            + (every if masks else f"DETR reads the one at {strides[-1]}")
        )
    return {stride: found[stride] for stride in strides if stride in found}


def _limit_training(body: TimmBody, freeze_first_stage: bool) -> None:
    """Exclude from training what the maps do not depend on, such as a norm after the last one.

    DistributedDataParallel waits for the gradient of everything that trains.

    Args:
        freeze_first_stage: exclude also what the map at stride 4 depends on, the stem and the first stage;
            not where that is most of the network, as in those that mix their resolutions.
    """
    parameters = [p for p in body.parameters() if p.requires_grad]
    body.eval()
    with torch.enable_grad():
        maps = body.all_maps(torch.zeros(1, 3, *PROBE))
    body.train()

    def used_by(maps: list[Tensor]) -> list[bool]:
        total = torch.stack([one.sum() for one in maps]).sum()
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        return [gradient is not None for gradient in gradients]

    used = used_by(maps if body.return_interm_layers else maps[-1:])
    early = [False] * len(parameters)
    if freeze_first_stage and body.strides[0] == STRIDES[0]:
        finest = used_by(maps[:1])
        early = finest if 2 * sum(finest) < len(finest) else early
    for parameter, is_used, is_early in zip(parameters, used, early, strict=True):
        parameter.requires_grad_(is_used and not is_early)
