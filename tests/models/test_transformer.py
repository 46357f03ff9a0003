"""The transformer against torch's layers, against its formulas, and cell by cell."""

import pytest
import torch
from torch import nn

from models.transformer import (
    ACTIVATIONS,
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    _get_activation_fn,
    _get_clones,
    build_transformer,
)
from tests.reference.settings import parse

D, HEADS, INNER = 16, 4, 24
CELLS, QUERIES, BATCH = 6, 5, 2


def filled(module):
    """The module in float64 with all parameters drawn anew, biases and norms too."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def sequences(*lengths):
    torch.manual_seed(1)
    return [torch.randn(n, BATCH, D, dtype=torch.float64) for n in lengths]


def padding():
    mask = torch.zeros(BATCH, CELLS, dtype=torch.bool)
    mask[1, 4:] = True
    return mask


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_without_positions_equal_those_of_torch(norm_first, activation):
    options = {"dim_feedforward": INNER, "dropout": 0.0, "activation": activation}
    src, tgt = sequences(CELLS, QUERIES)

    theirs = filled(nn.TransformerEncoderLayer(D, HEADS, norm_first=norm_first, **options))
    encoder = TransformerEncoderLayer(D, HEADS, normalize_before=norm_first, **options).double()
    encoder.load_state_dict(theirs.state_dict())
    expected = theirs(src, src_key_padding_mask=padding())
    torch.testing.assert_close(encoder(src, src_key_padding_mask=padding()), expected)

    their_decoder = filled(nn.TransformerDecoderLayer(D, HEADS, norm_first=norm_first, **options))
    decoder = TransformerDecoderLayer(D, HEADS, normalize_before=norm_first, **options).double()
    decoder.load_state_dict(their_decoder.state_dict())
    causal = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
    masks = {"tgt_mask": causal, "memory_key_padding_mask": padding()}
    torch.testing.assert_close(decoder(tgt, src, **masks), their_decoder(tgt, src, **masks))


@pytest.mark.parametrize("before", [False, True])
def test_positions_enter_queries_and_keys_and_never_values(before):
    """Both layers written out, with attention by torch (paper, figure 10)."""
    memory, pos, tgt, query_pos = sequences(CELLS, CELLS, QUERIES, QUERIES)
    layer = filled(TransformerEncoderLayer(D, HEADS, INNER, dropout=0.0, normalize_before=before))
    attend = as_torch(layer.self_attn)
    x = layer.norm1(memory) if before else memory
    out = memory + attend(x + pos, x + pos, x)
    if before:
        out = out + feed_forward(layer, layer.norm2(out))
    else:
        out = layer.norm1(out)
        out = layer.norm2(out + feed_forward(layer, out))
    torch.testing.assert_close(layer(memory, pos=pos), out)

    decoder = filled(TransformerDecoderLayer(D, HEADS, INNER, dropout=0.0, normalize_before=before))
    attend, cross = as_torch(decoder.self_attn), as_torch(decoder.multihead_attn)
    norms = [decoder.norm1, decoder.norm2, decoder.norm3]
    front, behind = (norms, [nn.Identity()] * 3) if before else ([nn.Identity()] * 3, norms)
    x = front[0](tgt)
    out = behind[0](tgt + attend(x + query_pos, x + query_pos, x))
    out = behind[1](out + cross(front[1](out) + query_pos, memory + pos, memory))
    out = behind[2](out + feed_forward(decoder, front[2](out)))
    torch.testing.assert_close(decoder(tgt, memory, pos=pos, query_pos=query_pos), out)


def as_torch(attention):
    module = nn.MultiheadAttention(D, HEADS).double()
    module.load_state_dict(attention.state_dict())
    return lambda *arguments: module(*arguments)[0]


def feed_forward(layer, x):
    return layer.linear2(layer.linear1(x).relu())


@pytest.mark.parametrize("before", [False, True])
def test_stacks_run_their_layers_and_norm_a_copy_of_each_output(before):
    src, tgt, pos, query_pos = sequences(CELLS, QUERIES, CELLS, QUERIES)
    norm = nn.LayerNorm(D)
    layer = TransformerEncoderLayer(D, HEADS, INNER, normalize_before=before)
    encoder = filled(TransformerEncoder(layer, 3, norm if before else None)).eval()
    memory = src
    for each in encoder.layers:
        memory = each(memory, pos=pos)
    torch.testing.assert_close(encoder(src, pos=pos), norm(memory) if before else memory)

    decoder_layer = TransformerDecoderLayer(D, HEADS, INNER, normalize_before=before)
    decoder = filled(TransformerDecoder(decoder_layer, 3, norm, return_intermediate=True)).eval()
    expected, x = [], tgt
    for each in decoder.layers:
        x = each(x, memory, pos=pos, query_pos=query_pos)
        expected.append(norm(x))
    hs = decoder(tgt, memory, pos=pos, query_pos=query_pos)
    torch.testing.assert_close(hs, torch.stack(expected))
    decoder.return_intermediate = False
    torch.testing.assert_close(decoder(tgt, memory, pos=pos, query_pos=query_pos), hs[-1:])


def small_transformer(**options):
    options = {"dim_feedforward": INNER, "return_intermediate_dec": True, **options}
    return filled(Transformer(D, HEADS, 2, 3, **options)).eval()


@pytest.mark.parametrize("before", [False, True])
def test_the_whole_decodes_zeros_with_query_embeddings(before):
    model = small_transformer(normalize_before=before)
    src, pos = (x.permute(1, 2, 0).reshape(BATCH, D, 2, 3) for x in sequences(CELLS, CELLS))
    query_embed = sequences(QUERIES)[0][:, 0]
    mask = padding().view(BATCH, 2, 3)
    hs, memory = model(src, mask, query_embed, pos)
    assert hs.shape == (3, BATCH, QUERIES, D) and memory.shape == src.shape

    flat_pos = pos.flatten(2).permute(2, 0, 1)
    encoded = model.encoder(src.flatten(2).permute(2, 0, 1), src_key_padding_mask=padding(), pos=flat_pos)
    torch.testing.assert_close(memory.flatten(2).permute(2, 0, 1), encoded)
    query_pos = query_embed[:, None].repeat(1, BATCH, 1)
    decoded = model.decoder(
        torch.zeros(QUERIES, BATCH, D).double(),
        encoded,
        memory_key_padding_mask=padding(),
        pos=flat_pos,
        query_pos=query_pos,
    )
    torch.testing.assert_close(hs, decoded.transpose(1, 2))
    assert (model.encoder.norm is not None) == before


def test_padded_cells_do_not_matter_and_no_mask_means_none_padded():
    model = small_transformer()
    src, pos = (x.permute(1, 2, 0).reshape(BATCH, D, 2, 3) for x in sequences(CELLS, CELLS))
    query_embed = sequences(QUERIES)[0][:, 0]
    mask = padding().view(BATCH, 2, 3)
    changed = torch.where(mask[:, None], 100.0, src)
    hs, memory = model(src, mask, query_embed, pos)
    hs_changed, memory_changed = model(changed, mask, query_embed, pos)
    torch.testing.assert_close(hs_changed, hs)
    inside = ~mask[:, None].expand_as(memory)
    torch.testing.assert_close(memory_changed[inside], memory[inside])
    unmasked = model(src, None, query_embed, pos)[0]
    torch.testing.assert_close(model(src, torch.zeros_like(mask), query_embed, pos)[0], unmasked)
    assert not torch.allclose(unmasked[:, 1], hs[:, 1])


@pytest.mark.parametrize("before", [False, True])
def test_a_layer_is_computed_by_the_method_of_its_kind(before):
    """Forks override these methods, with their published arguments."""

    class Encoder(TransformerEncoderLayer):
        def forward_post(self, src, src_mask=None, src_key_padding_mask=None, pos=None):
            return "post", src, src_mask, src_key_padding_mask, pos

        def forward_pre(self, src, src_mask=None, src_key_padding_mask=None, pos=None):
            return "pre", src, src_mask, src_key_padding_mask, pos

    class Decoder(TransformerDecoderLayer):
        def forward_post(self, *arguments):
            return "post", *arguments

        def forward_pre(self, *arguments):
            return "pre", *arguments

    kind = "pre" if before else "post"
    encoder, decoder = (layer(D, HEADS, normalize_before=before) for layer in (Encoder, Decoder))
    masks = {"src_mask": "mask", "src_key_padding_mask": "padding"}
    assert encoder("src", pos="pos", **masks) == (kind, "src", "mask", "padding", "pos")
    names = ["tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask", "pos", "query_pos"]
    given = dict(zip(names, names, strict=True))
    assert decoder("tgt", "memory", **given) == (kind, "tgt", "memory", *names)


@pytest.mark.parametrize("kind", [TransformerEncoderLayer, TransformerDecoderLayer])
def test_a_subclass_may_add_positions_its_own_way(kind):
    def with_doubled(self, tensor, pos):
        return tensor + 2 * pos

    src, pos, tgt, query_pos = sequences(CELLS, CELLS, QUERIES, QUERIES)
    plain = filled(kind(D, HEADS, INNER, dropout=0.0))
    doubling = type("Doubling", (kind,), {"with_pos_embed": with_doubled})(
        D, HEADS, INNER, dropout=0.0
    ).double()
    doubling.load_state_dict(plain.state_dict())
    if kind is TransformerEncoderLayer:
        assert torch.equal(doubling(src, pos=pos), plain(src, pos=2 * pos))
    else:
        found = doubling(tgt, src, pos=pos, query_pos=query_pos)
        assert torch.equal(found, plain(tgt, src, pos=2 * pos, query_pos=2 * query_pos))
    assert plain.with_pos_embed(src, None) is src


class WithoutWeights(nn.MultiheadAttention):
    """A user's attention that cannot leave its weights out."""

    def forward(self, query, key, value, key_padding_mask=None, attn_mask=None):  # type: ignore[override]
        return super().forward(query, key, value, key_padding_mask, attn_mask=attn_mask)


@pytest.mark.parametrize("attention", [nn.MultiheadAttention, WithoutWeights])
def test_another_attention_is_called_as_published_and_its_hooks_see_weights(attention):
    src, tgt = sequences(CELLS, QUERIES)
    layer = filled(TransformerDecoderLayer(D, HEADS, INNER, dropout=0.0))
    expected = layer(tgt, src, memory_key_padding_mask=padding())
    seen = []
    for name in ("self_attn", "multihead_attn"):
        module = attention(D, HEADS).double()
        module.load_state_dict(getattr(layer, name).state_dict())
        module.register_forward_hook(lambda module, args, output: seen.append(output[1]))
        setattr(layer, name, module)
    torch.testing.assert_close(layer(tgt, src, memory_key_padding_mask=padding()), expected)
    assert [weights.shape for weights in seen] == [(BATCH, QUERIES, QUERIES), (BATCH, QUERIES, CELLS)]


def test_a_plain_attention_is_asked_for_no_weights(monkeypatch):
    src, tgt = sequences(CELLS, QUERIES)
    encoder = filled(TransformerEncoderLayer(D, HEADS, INNER, dropout=0.0))
    decoder = filled(TransformerDecoderLayer(D, HEADS, INNER, dropout=0.0))
    fused = []
    kernel = nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        fused.append(True)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    expected = encoder(src), decoder(tgt, src)
    assert len(fused) == 3
    seen = []
    for module in (encoder.self_attn, decoder.self_attn, decoder.multihead_attn):
        module.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    torch.testing.assert_close((encoder(src), decoder(tgt, src)), expected)
    assert [weights.shape[1:] for weights in seen] == [(CELLS, CELLS), (QUERIES, QUERIES), (QUERIES, CELLS)]
    assert len(fused) == 3


def test_a_subclass_may_have_other_initial_values():
    class Zeros(Transformer):
        def _reset_parameters(self):
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    assert not any(parameter.any() for parameter in Zeros(D, HEADS, 1, 1).parameters())


def test_layers_start_apart_from_one_another():
    model = Transformer(D, HEADS, 2, 2)
    for stack in (model.encoder, model.decoder):
        first, second = (layer.get_parameter("linear1.weight") for layer in stack.layers)
        assert not torch.equal(first, second)


def test_clones_are_equal_and_apart():
    layer = nn.Linear(2, 2)
    clones = _get_clones(layer, 3)
    assert isinstance(clones, nn.ModuleList) and len(clones) == 3
    weights = [each.get_parameter("weight") for each in (layer, *clones)]
    assert all(torch.equal(weight, layer.weight) for weight in weights)
    assert len({weight.data_ptr() for weight in weights}) == 4


def test_activations_go_by_their_names():
    x = torch.linspace(-1, 1, 4)
    for name in ("relu", "gelu", "glu"):
        assert torch.equal(_get_activation_fn(name)(x), getattr(nn.functional, name)(x))
    assert list(ACTIVATIONS) == ["relu", "gelu", "glu"]


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation 'tanh': not one of relu"):
        TransformerEncoderLayer(D, HEADS, activation="tanh")


def test_flags_describe_the_transformer():
    flags = "--hidden_dim 32 --nheads 2 --enc_layers 1 --dec_layers 2 --dim_feedforward 40 --dropout 0.25"
    model = build_transformer(parse(f"{flags} --pre_norm"))
    assert (model.d_model, model.nhead) == (32, 2)
    assert len(model.encoder.layers) == 1 and len(model.decoder.layers) == 2
    assert model.decoder.return_intermediate and model.encoder.norm is not None
    layer = next(module for module in model.modules() if isinstance(module, TransformerDecoderLayer))
    assert layer.linear1.out_features == 40 and layer.normalize_before
    rates = [module.p for module in layer.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.25] * 4
    assert [layer.self_attn.dropout, layer.multihead_attn.dropout] == [0.25] * 2
