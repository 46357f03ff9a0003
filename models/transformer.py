"""The encoder-decoder transformer of DETR (paper, section 3.2 and appendix A.3).

It differs from the original transformer in three ways: position embeddings enter every attention, as
part of queries and keys but never of values; the decoder decodes all queries at once; and the decoder's
last norm is applied to a copy of each layer's output, for the auxiliary losses.

Shapes: B batch, D width, S = h * w cells of the feature map, Q queries, L decoder layers. Inside the
transformer, sequences come first: [S, B, D], [Q, B, D].

Longer than 300 lines: all names of the published file live here, each method with its published arguments,
since forks override them one by one.
"""

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, relu

from .folding import is_plain

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu, "glu": glu}


class Transformer(nn.Module):
    """Encoder and decoder.

    Args:
        d_model: D.
        nhead: heads of every attention; divides D.
        num_encoder_layers, num_decoder_layers: how many of each.
        dim_feedforward: inner width of the feed-forward networks.
        dropout: probability, for training.
        activation: relu, gelu or glu, in the feed-forward networks.
        normalize_before: a norm before each sub-layer, and one after the encoder (pre-norm).
        return_intermediate_dec: give every decoder layer's output, not the last one's alone.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
        return_intermediate_dec: bool = False,
    ):
        super().__init__()
        layer = (d_model, nhead, dim_feedforward, dropout, activation, normalize_before)
        self.encoder = TransformerEncoder(
            TransformerEncoderLayer(*layer),
            num_encoder_layers,
            nn.LayerNorm(d_model) if normalize_before else None,
        )
        self.decoder = TransformerDecoder(
            TransformerDecoderLayer(*layer),
            num_decoder_layers,
            nn.LayerNorm(d_model),
            return_intermediate_dec,
        )
        self.d_model = d_model
        self.nhead = nhead
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Initial values; a subclass may have others."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, src: Tensor, mask: Tensor | None, query_embed: Tensor, pos_embed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode the image and decode the queries.

        Args:
            src: features [B, D, h, w].
            mask: bool [B, h, w], True where padded; None if nothing is.
            query_embed: [Q, D], added in every decoder layer; or [K, Q, D], K groups of queries of which none
                sees another (models/query_groups.py).
            pos_embed: [B, D, h, w].

        Returns:
            Decoder outputs [L, B, Q, D], of K groups [L, K * B, Q, D], the first group's batch first (L is 1
            without return_intermediate_dec), and the encoder's memory [B, D, h, w].
        """
        batch, d_model, h, w = src.shape
        src = src.flatten(2).permute(2, 0, 1)  # [S, B, D]
        pos = pos_embed.flatten(2).permute(2, 0, 1)  # [S, B, D]
        padding = mask.flatten(1) if mask is not None else None  # [B, S]
        if query_embed.dim() == 2:
            query_pos = query_embed[:, None].expand(-1, batch, -1)  # [Q, B, D]
        else:  # [K, Q, D] -> [Q, K * B, D]: to the decoder, K groups are a batch of K * B
            query_pos = query_embed.transpose(0, 1)[:, :, None].expand(-1, -1, batch, -1).flatten(1, 2)

        memory = self.encoder(src, src_key_padding_mask=padding, pos=pos)
        hs = self.decoder(
            torch.zeros_like(query_pos),
            memory,
            memory_key_padding_mask=padding,
            pos=pos,
            query_pos=query_pos,
        )  # [L, Q, B, D]
        return hs.transpose(1, 2), memory.permute(1, 2, 0).reshape(batch, d_model, h, w)


class TransformerEncoder(nn.Module):
    """A stack of copies of one encoder layer, and a norm after it if there is one.

    Attributes:
        grad_checkpoint: recompute the layers' activations in the backward pass instead of storing them.
    """

    def __init__(self, encoder_layer: nn.Module, num_layers: int, norm: nn.Module | None = None):
        super().__init__()
        self.layers = _get_clones(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm
        self.grad_checkpoint = False

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """[S, B, D] -> [S, B, D]; masks as in nn.MultiheadAttention."""
        if self.grad_checkpoint:
            src = self._recomputing(src, mask, src_key_padding_mask, pos)
        else:
            for layer in self.layers:
                src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, pos=pos)
        return src if self.norm is None else self.norm(src)

    @torch.jit.unused
    def _recomputing(
        self, src: Tensor, mask: Tensor | None, padding: Tensor | None, pos: Tensor | None
    ) -> Tensor:
        from .recomputation import recomputed  # of --grad_checkpoint alone

        for layer in self.layers:
            src = recomputed(layer, layer, src, mask, padding, pos)
        return src


class TransformerDecoder(nn.Module):
    """A stack of copies of one decoder layer.

    One norm is applied to every layer's output, but not to what the next layer reads."""

    def __init__(
        self,
        decoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        return_intermediate: bool = False,
    ):
        super().__init__()
        self.layers = _get_clones(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm
        self.return_intermediate = return_intermediate

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Queries [Q, B, D] and memory [S, B, D] -> [L, Q, B, D], L = 1 without return_intermediate."""
        outputs: list[Tensor] = []
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                pos=pos,
                query_pos=query_pos,
            )
            outputs.append(tgt)
        hs = torch.stack(outputs if self.return_intermediate else outputs[-1:])
        return hs if self.norm is None else self.norm(hs)  # of all layers at once


class _Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, a feed-forward network, and the norms' place.

    A layer is computed by `forward_pre`, a norm before each sub-layer, or by `forward_post`, norms after the
    residual sums. A subclass may override either, and how positions are added (`with_pos_embed`).

    A plain attention (see is_plain) is asked for no weights, which lets torch take its fused kernel. Any
    other is called with the published arguments alone: a user-defined module may know no more of them, and
    hooks find the weights.
    """

    __constants__ = ["plain_self_attn"]

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        normalize_before: bool,
        cross_attention: bool,
    ):
        super().__init__()
        if d_model % nhead:
            raise ValueError(
                f"{nhead} attention heads (--nheads) do not divide width {d_model} (--hidden_dim)"
            )
        # The order of registration is the order of parameters in optimizers, those in old checkpoints too.
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        if cross_attention:
            self.multihead_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.activation = _get_activation_fn(activation)
        self.normalize_before = normalize_before

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def plain_self_attn(self) -> bool:
        """Whether self_attn may use torch's fused kernel. TorchScript asks once, for its constant."""
        return is_plain(self.self_attn)

    def with_pos_embed(self, tensor: Tensor, pos: Tensor | None) -> Tensor:
        """The sum; the tensor itself where there is no position embedding."""
        return tensor if pos is None else tensor + pos

    def _attend_to_itself(
        self, x: Tensor, pos: Tensor | None, mask: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        q = k = self.with_pos_embed(x, pos)
        if self.plain_self_attn:
            out = self.self_attn(q, k, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)
        else:
            out = self.self_attn(q, k, value=x, attn_mask=mask, key_padding_mask=padding)
        return out[0]

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward network, each with dropout, residual and norm."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ):
        super().__init__(d_model, nhead, dim_feedforward, dropout, activation, normalize_before, False)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """[S, B, D] -> [S, B, D]."""
        return (
            self.forward_pre(src, src_mask, src_key_padding_mask, pos)
            if self.normalize_before
            else self.forward_post(src, src_mask, src_key_padding_mask, pos)
        )

    def forward_post(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """[S, B, D] -> [S, B, D]."""
        attended = self._attend_to_itself(src, pos, src_mask, src_key_padding_mask)
        src = self.norm1(src + self.dropout1(attended))
        return self.norm2(src + self.dropout2(self._feed_forward(src)))

    def forward_pre(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
    ) -> Tensor:
        """[S, B, D] -> [S, B, D]."""
        attended = self._attend_to_itself(self.norm1(src), pos, src_mask, src_key_padding_mask)
        src = src + self.dropout1(attended)
        return src + self.dropout2(self._feed_forward(self.norm2(src)))


class TransformerDecoderLayer(_Layer):
    """Self-attention of the queries, attention to the memory, and a feed-forward network."""

    __constants__ = ["plain_self_attn", "plain_multihead_attn"]

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ):
        super().__init__(d_model, nhead, dim_feedforward, dropout, activation, normalize_before, True)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Queries [Q, B, D] and memory [S, B, D] -> [Q, B, D]."""
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        return (
            self.forward_pre(tgt, memory, *masks, pos, query_pos)
            if self.normalize_before
            else self.forward_post(tgt, memory, *masks, pos, query_pos)
        )

    def forward_post(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Queries [Q, B, D] and memory [S, B, D] -> [Q, B, D]."""
        attended = self._attend_to_itself(tgt, query_pos, tgt_mask, tgt_key_padding_mask)
        tgt = self.norm1(tgt + self.dropout1(attended))
        attended = self._attend_to_memory(tgt, query_pos, memory, pos, memory_mask, memory_key_padding_mask)
        tgt = self.norm2(tgt + self.dropout2(attended))
        return self.norm3(tgt + self.dropout3(self._feed_forward(tgt)))

    def forward_pre(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Queries [Q, B, D] and memory [S, B, D] -> [Q, B, D]."""
        attended = self._attend_to_itself(self.norm1(tgt), query_pos, tgt_mask, tgt_key_padding_mask)
        tgt = tgt + self.dropout1(attended)
        x = self.norm2(tgt)
        attended = self._attend_to_memory(x, query_pos, memory, pos, memory_mask, memory_key_padding_mask)
        tgt = tgt + self.dropout2(attended)
        return tgt + self.dropout3(self._feed_forward(self.norm3(tgt)))

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def plain_multihead_attn(self) -> bool:
        """As plain_self_attn."""
        return is_plain(self.multihead_attn)

    def _attend_to_memory(
        self,
        x: Tensor,
        query_pos: Tensor | None,
        memory: Tensor,
        pos: Tensor | None,
        mask: Tensor | None,
        padding: Tensor | None,
    ) -> Tensor:
        q, k = self.with_pos_embed(x, query_pos), self.with_pos_embed(memory, pos)
        grouped = q.shape[1] != k.shape[1]
        if grouped:  # all K groups of an image read its one memory, k: [Q, K * B, D] -> [Q * K, B, D]
            assert mask is None
            q = q.reshape(-1, k.shape[1], k.shape[2])
        if self.plain_multihead_attn:
            out = self.multihead_attn(
                q, k, memory, attn_mask=mask, key_padding_mask=padding, need_weights=False
            )
        else:
            out = self.multihead_attn(query=q, key=k, value=memory, attn_mask=mask, key_padding_mask=padding)
        return out[0].reshape(x.shape) if grouped else out[0]


def _get_clones(module: nn.Module, n: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(module) for _ in range(n))


def _get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def build_transformer(args: argparse.Namespace) -> Transformer:
    """The transformer that the flags describe."""
    return Transformer(
        d_model=args.hidden_dim,
        nhead=args.nheads,
        num_encoder_layers=args.enc_layers,
        num_decoder_layers=args.dec_layers,
        dim_feedforward=args.dim_feedforward,
        dropout=args.dropout,
        normalize_before=args.pre_norm,
        return_intermediate_dec=True,
    )
