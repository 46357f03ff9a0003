"""Backbone, transformer and heads (paper, sections 3.2 and 4), one plain operation behind the other.

Shapes: B batch, D width, Q queries, L decoder layers, C classes, H W the padded batch, h w a feature map,
S = h * w cells. Sequences come first inside the transformer: [S, B, D].
"""

from __future__ import annotations

import argparse
import math

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from torchvision.models.feature_extraction import create_feature_extractor

Maps = list[tuple[Tensor, Tensor]]
"""Feature maps [B, c, h, w], fine to coarse, each with its padding mask, bool [B, h, w]."""


def pad_batch(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images [3, h, w] -> one tensor [B, 3, H, W], zero where padded, and the padding's mask [B, H, W]."""
    height, width = max(x.shape[1] for x in images), max(x.shape[2] for x in images)
    pixels = torch.stack(
        [nn.functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]
    )
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for row, image in zip(mask, images, strict=True):
        row[: image.shape[1], : image.shape[2]] = False
    return pixels, mask.to(pixels.device)


class Backbone(nn.Module):
    """torchvision's ResNet with frozen norms as modules.

    Args:
        name: of the ResNet.
        all_stages: give every stage's map, for the mask head.
        dilation: of the last stage, in place of its stride.
    """

    def __init__(self, name: str, all_stages: bool, dilation: bool):
        super().__init__()
        resnet = torchvision.models.get_model(
            name,
            weights=None,
            replace_stride_with_dilation=[False, False, dilation],
            norm_layer=torchvision.ops.FrozenBatchNorm2d,
        )
        self.channels = [resnet.fc.in_features // 2**i for i in (3, 2, 1, 0)]
        stages = ("layer1", "layer2", "layer3", "layer4") if all_stages else ("layer4",)
        self.body = create_feature_extractor(resnet, list(stages))
        for key, parameter in self.body.named_parameters():
            parameter.requires_grad_(key.startswith(("layer2", "layer3", "layer4")))

    def forward(self, pixels: Tensor, mask: Tensor) -> Maps:
        """A padded batch [B, 3, H, W] and its mask [B, H, W] -> feature maps."""
        maps = []
        for features in self.body(pixels).values():
            smaller = interpolate(mask[None].float(), size=features.shape[-2:])[0].bool()
            maps.append((features, smaller))
        return maps


class PositionEmbedding(nn.Module):
    """Sine and cosine of each cell's place among the unpadded ones, half of the width for y, half for x."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, mask: Tensor) -> Tensor:
        """Padding [B, h, w] -> [B, D, h, w]."""
        halves = []
        for axis in (1, 2):
            place = (~mask).float().cumsum(axis)
            last = place.narrow(axis, place.shape[axis] - 1, 1)
            place = place / (last + 1e-6) * 2 * math.pi
            pair = torch.arange(self.width // 2, device=mask.device) // 2
            angle = place[..., None] / 10000 ** (4 * pair / self.width)  # [B, h, w, D / 2]
            waves = torch.empty_like(angle)
            waves[..., 0::2] = angle[..., 0::2].sin()
            waves[..., 1::2] = angle[..., 1::2].cos()
            halves.append(waves)
        return torch.cat(halves, dim=-1).permute(0, 3, 1, 2)


class Layer(nn.Module):
    """A post-norm layer of the encoder, or with `decodes` of the decoder."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, decodes: bool):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        if decodes:
            self.multihead_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
            self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[S, B, D] -> [S, B, D], before the residual sum."""
        return self.drop(self.linear2(self.drop(relu(self.linear1(x)))))

    def encode(self, x: Tensor, padding: Tensor, pos: Tensor) -> Tensor:
        """Cells [S, B, D], padding [B, S], embedding [S, B, D] -> [S, B, D]."""
        attended, _ = self.self_attn(x + pos, x + pos, x, key_padding_mask=padding)
        x = self.norm1(x + self.drop(attended))
        return self.norm2(x + self.feed_forward(x))

    def decode(self, x: Tensor, memory: Tensor, padding: Tensor, pos: Tensor, query_pos: Tensor) -> Tensor:
        """Queries [Q, B, D] over the memory [S, B, D] -> [Q, B, D]."""
        attended, _ = self.self_attn(x + query_pos, x + query_pos, x)
        x = self.norm1(x + self.drop(attended))
        attended, _ = self.multihead_attn(x + query_pos, memory + pos, memory, key_padding_mask=padding)
        x = self.norm2(x + self.drop(attended))
        return self.norm3(x + self.feed_forward(x))


class Transformer(nn.Module):
    """The stacks of encoder and decoder layers."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        sizes = (args.hidden_dim, args.nheads, args.dim_feedforward, args.dropout)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(Layer(*sizes, False) for _ in range(args.enc_layers))}
        )
        layers = nn.ModuleList(Layer(*sizes, decodes=True) for _ in range(args.dec_layers))
        self.decoder = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(args.hidden_dim)})
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, src: Tensor, mask: Tensor, queries: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Features, padding, query embedding [Q, D], positions -> hs [L, B, Q, D], memory [B, D, h, w]."""
        shape = src.shape
        memory, pos = (x.flatten(2).permute(2, 0, 1) for x in (src, pos))
        padding = mask.flatten(1)
        query_pos = queries[:, None].repeat(1, shape[0], 1)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            memory = layer.encode(memory, padding, pos)
        x, outputs = torch.zeros_like(query_pos), []
        for layer in self.decoder["layers"]:  # type: ignore[attr-defined]
            x = layer.decode(x, memory, padding, pos, query_pos)
            outputs.append(self.decoder["norm"](x))
        hs = torch.stack(outputs).transpose(1, 2)
        return hs, memory.permute(1, 2, 0).reshape(shape)


class BoxHead(nn.Module):
    """Three linear layers, from a query to a box."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)])

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., 4] in [0, 1]."""
        for layer in self.layers[:2]:
            x = relu(layer(x))
        return self.layers[2](x).sigmoid()


class Detector(nn.Module):
    """DETR.

    Args:
        args: flags as main.py's parser gives them; `num_classes` may not be left open.
    """

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        width = args.hidden_dim
        backbone = Backbone(args.backbone, args.masks, args.dilation)
        self.backbone = nn.Sequential(backbone, PositionEmbedding(width))
        self.transformer = Transformer(args)
        self.class_embed = nn.Linear(width, args.num_classes + 1)
        self.bbox_embed = BoxHead(width)
        self.query_embed = nn.Embedding(args.num_queries, width)
        self.input_proj = nn.Conv2d(backbone.channels[-1], width, kernel_size=1)

    def forward(self, pixels: Tensor, mask: Tensor) -> dict:
        """A padded batch [B, 3, H, W] and its mask -> pred_logits, pred_boxes and aux_outputs, as DETR's."""
        return self.detect(pixels, mask)[0]

    def detect(self, pixels: Tensor, mask: Tensor) -> tuple[dict, Maps, Tensor, Tensor, Tensor]:
        """The same with feature maps, the projected one, the last decoder output and the memory."""
        maps = self.backbone[0](pixels, mask)
        positions = [self.backbone[1](padding) for _, padding in maps]
        src = self.input_proj(maps[-1][0])
        hs, memory = self.transformer(src, maps[-1][1], self.query_embed.weight, positions[-1])
        layers = [
            {"pred_logits": logits, "pred_boxes": boxes}
            for logits, boxes in zip(self.class_embed(hs), self.bbox_embed(hs), strict=True)
        ]
        return {**layers[-1], "aux_outputs": layers[:-1]}, maps, src, hs[-1], memory
