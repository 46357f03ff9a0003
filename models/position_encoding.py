"""Position embeddings of a feature map: fixed sine waves (paper, section 3.2) or learned tables.

Shapes: B batch, D width of the transformer, h w feature map.
"""

import argparse
import math

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.nested_tensor import NestedTensor


class PositionEmbeddingSine(nn.Module):
    """Sine embedding over two axes: half of the channels tell y, half tell x.

    A position counts the unpadded cells up to and including this one. Channel pairs hold sine and
    cosine at wavelengths that grow geometrically from 1 to `temperature` (times 2 pi).

    Args:
        num_pos_feats: channels for each axis, D / 2.
        temperature: the longest wavelength, in units of 2 pi cells.
        normalize: scale positions so that the last unpadded cell of each row and column is at `scale`.
        scale: 2 pi unless given; needs `normalize`.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ):
        super().__init__()
        if scale is not None and not normalize:
            raise ValueError("scale has a meaning only with normalize=True")
        self.num_pos_feats = num_pos_feats
        self.temperature = float(temperature)
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else float(scale)
        self.eps = 1e-6

    def forward(self, tensor_list: NestedTensor) -> Tensor:
        """Features [B, C, h, w] with their mask -> float32 [B, 2 * num_pos_feats, h, w]."""
        mask = tensor_list.mask
        assert mask is not None
        unpadded = ~mask
        y = unpadded.cumsum(1, dtype=torch.float32)  # [B, h, w]
        x = unpadded.cumsum(2, dtype=torch.float32)
        if self.normalize:
            y = y / (y[:, -1:, :] + self.eps) * self.scale
            x = x / (x[:, :, -1:] + self.eps) * self.scale
        return torch.cat([self._waves(y), self._waves(x)], dim=3).permute(0, 3, 1, 2)

    def _waves(self, position: Tensor) -> Tensor:
        """Positions [B, h, w] -> [B, h, w, num_pos_feats], sine and cosine in turn."""
        channel = torch.arange(self.num_pos_feats, dtype=torch.float32, device=position.device)
        exponent = 2 * torch.div(channel, 2, rounding_mode="floor") / self.num_pos_feats
        angle = position[:, :, :, None] / self.temperature**exponent
        return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=4).flatten(3)


class TableTooSmall(UserError, ValueError):
    """An image is too large for learned positions."""


class PositionEmbeddingLearned(nn.Module):
    """One learned vector for each of the first 50 rows and columns of the feature map.

    Args:
        num_pos_feats: channels for each axis, D / 2.
    """

    def __init__(self, num_pos_feats: int = 256):
        super().__init__()
        self.row_embed = nn.Embedding(50, num_pos_feats)
        self.col_embed = nn.Embedding(50, num_pos_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, tensor_list: NestedTensor) -> Tensor:
        """Features [B, C, h, w] -> [B, 2 * num_pos_feats, h, w], x before y.

        Raises:
            TableTooSmall: the feature map has more rows or columns than the tables.
        """
        batch, height, width = (tensor_list.tensors.shape[i] for i in (0, -2, -1))
        rows, columns = self.row_embed.num_embeddings, self.col_embed.num_embeddings
        if height > rows or width > columns:
            raise TableTooSmall(
                f"a feature map of {height} x {width} cells is larger than the learned position tables "
                f"({rows} x {columns}): pass a smaller --max_size, or --eval_scale in evaluation, or "
                "--position_embedding sine"
            )
        x = self.col_embed.weight[:width]  # [w, D/2]
        y = self.row_embed.weight[:height]  # [h, D/2]
        grid = torch.cat([x[None].expand(height, -1, -1), y[:, None].expand(-1, width, -1)], dim=2)
        return grid.permute(2, 0, 1)[None].expand(batch, -1, -1, -1)


def build_position_encoding(args: argparse.Namespace) -> nn.Module:
    """The embedding that `--position_embedding` names, of width `--hidden_dim`.

    Raises:
        ValueError: an unknown name, or a width that does not divide.
    """
    channels_per_axis = args.hidden_dim // 2
    if args.hidden_dim % 2:
        raise ValueError(f"--hidden_dim {args.hidden_dim}: two axes need an even number")
    if args.position_embedding in ("sine", "v2"):
        if args.hidden_dim % 4:
            raise ValueError(
                f"--hidden_dim {args.hidden_dim}: two axes of sine and cosine need a multiple of 4"
            )
        return PositionEmbeddingSine(channels_per_axis, normalize=True)
    if args.position_embedding in ("learned", "v3"):
        return PositionEmbeddingLearned(channels_per_axis)
    raise ValueError(f"--position_embedding {args.position_embedding}: neither sine nor learned")
