"""The mask head (paper, section 4.4) on every query of every image.

Shapes: B batch, Q queries, D width, n heads, h w the feature map, H W the masks.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from benchmarks.reference.detector import Detector


class AttentionMaps(nn.Module):
    """Where in the image each query looks, a map for each head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """[B, Q, D], [B, D, h, w], bool [B, h, w] -> [B, Q, n, h, w]."""
        height, width = memory.shape[-2:]
        q = self.q_linear(queries).unflatten(-1, (self.heads, -1))  # [B, Q, n, D / n]
        k = self.k_linear(memory.permute(0, 2, 3, 1)).unflatten(-1, (self.heads, -1))  # [B, h, w, n, D / n]
        scores = torch.einsum("bqnd,bhwnd->bqnhw", q / q.shape[-1] ** 0.5, k)
        scores = scores.masked_fill(mask[:, None, None], float("-inf"))
        return scores.flatten(2).softmax(-1).unflatten(-1, (self.heads, height, width))


class MaskHead(nn.Module):
    """Convolutions that grow the maps, over the finer and finer features of the backbone."""

    def __init__(self, width: int, heads: int, channels: list[int]):
        super().__init__()
        wide = [width + heads, width + heads, *(width // 2**i for i in (1, 2, 3, 4))]
        for i in range(1, 6):
            setattr(self, f"lay{i}", nn.Conv2d(wide[i - 1], wide[i], 3, padding=1))
            setattr(self, f"gn{i}", nn.GroupNorm(8, wide[i]))
        self.out_lay = nn.Conv2d(wide[5], 1, 3, padding=1)
        for i, inner in enumerate(wide[2:5], 1):
            setattr(self, f"adapter{i}", nn.Conv2d(channels[3 - i], inner, 1))

    def forward(self, src: Tensor, attention: Tensor, finer: list[Tensor]) -> Tensor:
        """[B, D, h, w], [B, Q, n, h, w], three maps from coarse to fine -> mask logits [B, Q, H, W]."""
        batch, queries = attention.shape[:2]
        x = torch.cat([src.repeat_interleave(queries, 0), attention.flatten(0, 1)], 1)  # [B * Q, D + n, h, w]
        for i in range(1, 6):
            if i > 2:
                adapted = getattr(self, f"adapter{i - 2}")(finer[i - 3]).repeat_interleave(queries, 0)
                x = adapted + interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = relu(getattr(self, f"gn{i}")(getattr(self, f"lay{i}")(x)))
        return self.out_lay(x).unflatten(0, (batch, queries))[:, :, 0]


class Segmenter(nn.Module):
    """DETR with masks; `args` as of Detector, with `masks`."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.detr = Detector(args)
        self.bbox_attention = AttentionMaps(args.hidden_dim, args.nheads)
        self.mask_head = MaskHead(args.hidden_dim, args.nheads, self.detr.backbone[0].channels)  # type: ignore

    def forward(self, pixels: Tensor, mask: Tensor) -> dict:
        """A padded batch and its mask -> what Detector gives, and pred_masks [B, Q, H, W]."""
        outputs, maps, src, hs, memory = self.detr.detect(pixels, mask)
        attention = self.bbox_attention(hs, memory, maps[-1][1])
        masks = self.mask_head(src, attention, [features for features, _ in maps[2::-1]])
        return {**outputs, "pred_masks": masks}
