"""Multi-head attention (paper, appendix A.1) that computes its weights only where somebody looks at them.

Shapes: L target positions, S source positions, B batch, D width, n heads.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.nn.modules import module as module_hooks

from .dropout import dropout, dropped_product
from .linear import linear


class MultiheadAttention(nn.MultiheadAttention):
    """torch's module with the same parameters, initial values and result, computed by a fused kernel.

    It returns the weights, too, averaged over heads. Where a caller does without them, as DETR's layers do,
    and no forward hook listens (those of the published notebooks do), they never exist in memory, and None
    stands in their place.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        if embed_dim % num_heads:
            raise ValueError(
                f"{num_heads} attention heads (--nheads) do not divide width {embed_dim} (--hidden_dim)"
            )
        super().__init__(embed_dim, num_heads, dropout=dropout)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: [L, B, D].
            key, value: [S, B, D].
            key_padding_mask: bool [B, S], True where no query may look.
            need_weights: return the weights; where a hook listens they are returned anyhow.
            attn_mask: bool (True: may not look) or float (added), [L, S] or [B * n, L, S].
            average_attn_weights: give the weights' mean over heads.

        Returns:
            The attended values [L, B, D], and the weights, [B, L, S] or of each head [B, n, L, S], or None.
        """
        if not torch.jit.is_scripting():
            listeners = len(self._forward_hooks) + len(module_hooks._global_forward_hooks)
            need_weights = need_weights or listeners > 0
        p = self.dropout if self.training else 0.0
        # With dropout, torch's own road on a CPU holds the weights as well, and draws more slowly.
        spelled_out = need_weights or (p > 0.0 and query.device.type == "cpu")
        q, k, v = self._project(query, key, value)  # [B, n, L or S, D / n]
        mask = _additive(key_padding_mask, attn_mask, q)
        averaged: Tensor | None = None
        if spelled_out:
            scores = (q / self.head_dim**0.5) @ k.transpose(-2, -1)  # [B, n, L, S]
            weights = softmax(scores if mask is None else scores + mask, dim=-1)
            if need_weights:
                weights = dropout(weights, p)
                out = weights @ v
                averaged = weights.mean(dim=1) if average_attn_weights else weights
            else:
                out = dropped_product(weights, v, p)
        else:
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        out = out.permute(2, 0, 1, 3).flatten(2)  # [L, B, D]
        return linear(out, self.out_proj.weight, self.out_proj.bias), averaged

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        assert weight is not None and bias is not None
        if query is key:  # self-attention: one product for both
            q, k = linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1)
        else:
            q = linear(query, weight[:width], bias[:width])
            k = linear(key, weight[width : 2 * width], bias[width : 2 * width])
        v = linear(value, weight[2 * width :], bias[2 * width :])
        return self._split_heads(q), self._split_heads(k), self._split_heads(v)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[L, B, D] -> [B, n, L, D / n]."""
        return x.unflatten(-1, [self.num_heads, self.head_dim]).permute(1, 2, 0, 3)


def _additive(key_padding_mask: Tensor | None, attn_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Both masks as one float mask that broadcasts to [B, n, L, S], or None."""
    mask: Tensor | None = None
    if attn_mask is not None:
        mask = _as_float(attn_mask, like)
        if mask.dim() == 3:
            mask = mask.unflatten(0, [like.shape[0], like.shape[1]])
    if key_padding_mask is not None:
        padding = _as_float(key_padding_mask, like)[:, None, None]  # [B, 1, 1, S]
        mask = padding if mask is None else mask + padding
    return mask


def _as_float(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, float("-inf"))
