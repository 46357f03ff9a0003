"""detectron2's backbones with a mask of the padding, and DETR's own ResNet as one of them.

Shapes: B batch, C channels, H W padded image, h w feature map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from models.backbone import Backbone as DetrBackbone
from util.nested_tensor import NestedTensor

__all__ = ["DetrResNet", "MaskedBackbone", "build_detr_resnet_backbone"]


class MaskedBackbone(nn.Module):
    """Any backbone of detectron2; each feature map comes with the mask of its padding.

    Args:
        cfg: names the backbone (`MODEL.BACKBONE.NAME`).

    Attributes:
        backbone: what detectron2 built.
        feature_strides, channels: of each feature map, in the backbone's order.
        num_channels: of the last one, which the transformer reads.
    """

    def __init__(self, cfg: Any):
        super().__init__()
        self.backbone = build_backbone(cfg)
        shapes = self.backbone.output_shape()
        self.feature_strides = [shape.stride for shape in shapes.values()]
        self.channels = [shape.channels for shape in shapes.values()]
        self.num_channels = self.channels[-1]

    def forward(self, images: Any) -> dict[str, NestedTensor]:
        """An ImageList of [B, 3, H, W] -> feature maps by name, each with its mask [B, h, w]."""
        features = self.backbone(images.tensor)
        masks = self.mask_out_padding(
            [feature_map.shape for feature_map in features.values()], images.image_sizes, images.tensor.device
        )
        pairs = zip(features.items(), masks, strict=True)
        return {name: NestedTensor(feature_map, mask) for (name, feature_map), mask in pairs}

    def mask_out_padding(
        self,
        feature_shapes: Sequence[Sequence[int]],
        image_sizes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> list[Tensor]:
        """The mask of each feature map, bool [B, h, w], True where padded.

        Args:
            feature_shapes: (B, C, h, w) of each.
            image_sizes: (height, width) of each image without its padding.
            device: where the masks are wanted.
        """
        masks = []
        for stride, (batch, _, height, width) in zip(self.feature_strides, feature_shapes, strict=True):
            mask = torch.ones((batch, height, width), dtype=torch.bool, device=device)
            for i, (image_height, image_width) in enumerate(image_sizes):
                # A cell counts that lies in the image in part.
                mask[i, : -(-image_height // stride), : -(-image_width // stride)] = False
            masks.append(mask)
        return masks


class DetrResNet(Backbone):
    """The ResNet of this project, with its names of parameters, as a backbone of detectron2.

    It differs from detectron2's own in DC5: the first block of the dilated stage is not dilated, as in the
    published models.

    Args:
        depth: 18, 34, 50, 101 or 152.
        dilation: DC5 (paper, section 4.1).
        out_features: which of res2, res3, res4, res5 to give.
        freeze_at: as in detectron2: 0 trains everything, 1 freezes the stem, 2 the stem and res2, ...
        weights: `imagenet`, `none`, or the path of a state_dict.
    """

    STAGES = ("res2", "res3", "res4", "res5")

    def __init__(
        self, depth: int, dilation: bool, out_features: Sequence[str], freeze_at: int, weights: str = "none"
    ):
        super().__init__()
        # It freezes the stem and res2 itself; what trains is decided below.
        resnet = DetrBackbone(f"resnet{depth}", True, True, dilation, weights=weights)
        self.body = resnet.body
        for name, parameter in self.body.named_parameters():
            stage = int(name[len("layer")]) + 1 if name.startswith("layer") else 1
            parameter.requires_grad_(stage > freeze_at)
        widths = [resnet.num_channels // 2 ** (3 - i) for i in range(4)]
        strides = [4, 8, 16, 16 if dilation else 32]
        self.out_features = [name for name in self.STAGES if name in out_features]
        places = {name: self.STAGES.index(name) for name in self.out_features}
        self.shapes = {name: ShapeSpec(channels=widths[i], stride=strides[i]) for name, i in places.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> feature maps by name, each [B, C, h, w]."""
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        return {name: maps[str(self.STAGES.index(name))] for name in self.out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map, by name."""
        return self.shapes


@BACKBONE_REGISTRY.register()
def build_detr_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> DetrResNet:
    """This project's ResNet, for `MODEL.BACKBONE.NAME`.

    Of `MODEL.RESNETS` it reads DEPTH, OUT_FEATURES and RES5_DILATION (2: DC5). A checkpoint in
    `MODEL.WEIGHTS` fills all of the model: only without one are `MODEL.DETR.BACKBONE_WEIGHTS` read.
    """
    return DetrResNet(
        cfg.MODEL.RESNETS.DEPTH,
        dilation=cfg.MODEL.RESNETS.RES5_DILATION == 2,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        weights="none" if cfg.MODEL.WEIGHTS else cfg.MODEL.DETR.BACKBONE_WEIGHTS,
    )
