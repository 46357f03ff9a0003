"""The mask head: attention maps of queries, grown into masks with the backbone's finer maps (paper, 4.4).

Shapes: B images, Q queries, N queries of all images that get a mask, D width, n heads, h w the feature map,
H W the finest feature map, at a quarter of the image's size.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, relu

from .folding import is_plain

GROUPS = 8  # of every GroupNorm


class MHAttentionMap(nn.Module):
    """The attention of queries to an image, as maps: no values are read.

    The softmax runs over the cells of all heads together.

    Args:
        query_dim: D, width of queries and image.
        hidden_dim: width of both after their projections.
        num_heads: n; divides hidden_dim.
        dropout: probability, on the maps. DETR has none.
        bias: of the two projections.
    """

    def __init__(
        self, query_dim: int, hidden_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True
    ):
        super().__init__()
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout = nn.Dropout(dropout)
        self.q_linear = nn.Linear(query_dim, hidden_dim, bias=bias)
        self.k_linear = nn.Linear(query_dim, hidden_dim, bias=bias)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)
        self.scale = (hidden_dim / num_heads) ** -0.5

    def forward(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries [B, Q, D], image [B, D, h, w], padding bool [B, h, w] or None -> [B, Q, n, h, w]."""
        height, width = k.shape[-2:]
        q = (self.q_linear(q) * self.scale).unflatten(-1, [self.num_heads, -1]).transpose(1, 2)
        k = conv2d(k, self.k_linear.weight[:, :, None, None], self.k_linear.bias)  # a linear map of each cell
        k = k.flatten(2).unflatten(1, [self.num_heads, -1])  # [B, n, D / n, h * w]
        scores = (q @ k).transpose(1, 2)  # [B, Q, n, h * w]
        if mask is not None:
            scores = scores.masked_fill(mask.flatten(1)[:, None, None], float("-inf"))
        maps = self.dropout(scores.flatten(2).softmax(-1))  # [B, Q, n * h * w]
        return maps.unflatten(-1, [self.num_heads, height, width])


class MaskHeadSmallConv(nn.Module):
    """Five 3x3 convolutions with GroupNorm, widened threefold by the backbone's maps, and one to the mask.

    What does not depend on the query is computed once an image: the maps of the backbone are adapted once,
    and the first convolution, being linear, is split into the image's share and that of the attention.

    Args:
        dim: channels that enter, D + n.
        fpn_dims: channels of the three backbone maps, coarse to fine.
        context_dim: D.

    Raises:
        ValueError: GroupNorm's 8 groups do not divide every layer's width.
    """

    __constants__ = ["splits"]

    def __init__(self, dim: int, fpn_dims: list[int], context_dim: int):
        super().__init__()
        inner = [context_dim // 2, context_dim // 4, context_dim // 8, context_dim // 16]
        if dim % GROUPS or context_dim % (16 * GROUPS):
            raise ValueError(
                f"the mask head's layers have {dim}, {', '.join(map(str, inner))} channels, and GroupNorm "
                f"divides each by {GROUPS}: hidden_dim ({context_dim}) must be a multiple of {16 * GROUPS}, "
                f"and hidden_dim + nheads ({dim}) of {GROUPS}"
            )
        # The order of registration is the order of parameters in optimizers, those in old checkpoints too.
        self.lay1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.gn1 = nn.GroupNorm(GROUPS, dim)
        self.lay2 = nn.Conv2d(dim, inner[0], 3, padding=1)
        self.gn2 = nn.GroupNorm(GROUPS, inner[0])
        self.lay3 = nn.Conv2d(inner[0], inner[1], 3, padding=1)
        self.gn3 = nn.GroupNorm(GROUPS, inner[1])
        self.lay4 = nn.Conv2d(inner[1], inner[2], 3, padding=1)
        self.gn4 = nn.GroupNorm(GROUPS, inner[2])
        self.lay5 = nn.Conv2d(inner[2], inner[3], 3, padding=1)
        self.gn5 = nn.GroupNorm(GROUPS, inner[3])
        self.out_lay = nn.Conv2d(inner[3], 1, 3, padding=1)
        self.adapter1 = nn.Conv2d(fpn_dims[0], inner[0], 1)
        self.adapter2 = nn.Conv2d(fpn_dims[1], inner[1], 1)
        self.adapter3 = nn.Conv2d(fpn_dims[2], inner[2], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def splits(self) -> bool:
        """Whether the first convolution is plain and may be split. TorchScript asks once."""
        return is_plain(self.lay1)

    def forward(
        self, x: Tensor, bbox_mask: Tensor, fpns: list[Tensor], image: Tensor | None = None
    ) -> Tensor:
        """Grow attention maps into masks.

        Args:
            x: projected features [B, D, h, w].
            bbox_mask: attention maps of all queries, [B, Q, n, h, w], or with `image` of some, [N, n, h, w].
            fpns: the three backbone maps, coarse to fine.
            image: int64 [N], which image each attention map belongs to.

        Returns:
            Mask logits [N, 1, H, W]; N is B * Q, image by image, if no `image` is given.
        """
        if image is None:
            image = torch.arange(x.shape[0], device=x.device).repeat_interleave(bbox_mask.shape[1])
            bbox_mask = bbox_mask.flatten(0, 1)
        x = relu(self.gn1(self._first_layer(x, bbox_mask, image)), inplace=True)
        x = relu(self.gn2(self.lay2(x)), inplace=True)
        x = relu(self.gn3(self.lay3(_widen(x, self.adapter1(fpns[0]), image))), inplace=True)
        x = relu(self.gn4(self.lay4(_widen(x, self.adapter2(fpns[1]), image))), inplace=True)
        x = relu(self.gn5(self.lay5(_widen(x, self.adapter3(fpns[2]), image))), inplace=True)
        return self.out_lay(x)  # [N, 1, H, W]

    def _first_layer(self, x: Tensor, maps: Tensor, image: Tensor) -> Tensor:
        """lay1 of each query's image and attention maps, concatenated -> [N, D + n, h, w]."""
        if not self.splits:
            return self.lay1(torch.cat([x.index_select(0, image), maps], dim=1))
        width = x.shape[1]
        of_images = conv2d(x, self.lay1.weight[:, :width], self.lay1.bias, padding=1)  # [B, D + n, h, w]
        of_queries = conv2d(maps, self.lay1.weight[:, width:], padding=1)  # [N, D + n, h, w]
        return of_queries.add_(of_images.index_select(0, image))


def _widen(x: Tensor, finer: Tensor, image: Tensor) -> Tensor:
    """Enlarge [N, C, h, w] to the size of the images' finer map [B, C, h', w'], and add that."""
    return interpolate(x, size=finer.shape[-2:], mode="nearest").add_(finer.index_select(0, image))
