"""A body that gives feature maps, and the batch's mask brought to their sizes.

Shapes: B batch, C channels, H W image, h w feature map.
"""

import torch
from torch import Tensor, nn

from util.nested_tensor import NestedTensor

from .resnet import STAGES, Body


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
            out[name] = NestedTensor(features, shrunk(mask, features))
        return out


def shrunk(mask: Tensor, features: Tensor) -> Tensor:
    """The mask [B, H, W] at the nearest pixels of features [B, C, h, w] -> [B, h, w]."""
    rows = _nearest(mask.shape[1], features.shape[2], mask.device)
    columns = _nearest(mask.shape[2], features.shape[3], mask.device)
    return mask.index_select(1, rows).index_select(2, columns)


def _nearest(pixels: int, cells: int, device: torch.device) -> Tensor:
    """The pixel that torch's nearest interpolation takes for each cell of an axis, int64 [cells].

    Spelled out, because runtimes of exported models round its division otherwise, at one size in ten.
    """
    return (torch.arange(cells, dtype=torch.float32, device=device) * (pixels / cells)).long()
