"""Position embeddings against plain loops over their formulas."""

import math

import pytest
import torch

from models.position_encoding import (
    PositionEmbeddingLearned,
    PositionEmbeddingSine,
    TableTooSmall,
    build_position_encoding,
)
from tests.reference.settings import parse
from util.errors import UserError
from util.nested_tensor import NestedTensor


def batch_of(*unpadded, canvas=(5, 7)):
    """Features of a canvas in which image i has `unpadded[i]` (height, width) cells."""
    mask = torch.ones(len(unpadded), *canvas, dtype=torch.bool)
    for i, (height, width) in enumerate(unpadded):
        mask[i, :height, :width] = False
    return NestedTensor(torch.zeros(len(unpadded), 2, *canvas), mask)


def sine_by_loops(mask, channels, temperature, scale):
    """[B, 2 * channels, h, w]; positions are scaled to `scale` unless it is None."""
    batch, height, width = mask.shape
    out = torch.zeros(batch, 2 * channels, height, width, dtype=torch.float64)
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                y = sum(not mask[b, i, column] for i in range(row + 1))
                x = sum(not mask[b, row, i] for i in range(column + 1))
                if scale is not None:
                    y = scale * y / (sum(not mask[b, i, column] for i in range(height)) + 1e-6)
                    x = scale * x / (sum(not mask[b, row, i] for i in range(width)) + 1e-6)
                for axis, position in enumerate((y, x)):
                    for channel in range(channels):
                        angle = position / temperature ** (2 * (channel // 2) / channels)
                        wave = math.cos(angle) if channel % 2 else math.sin(angle)
                        out[b, axis * channels + channel, row, column] = wave
    return out


@pytest.mark.parametrize(
    "options, temperature, scale",
    [
        ({"normalize": True}, 10000, 2 * math.pi),
        ({"normalize": True, "scale": 3.5, "temperature": 20}, 20, 3.5),
        ({}, 10000, None),
    ],
)
def test_sine_equals_its_formula(options, temperature, scale):
    batch = batch_of((5, 7), (3, 4), (5, 1))
    embedding = PositionEmbeddingSine(6, **options)(batch)
    assert embedding.dtype == torch.float32 and embedding.shape == (3, 12, 5, 7)
    expected = sine_by_loops(batch.mask, 6, temperature, scale)
    inside = ~batch.mask[:, None].expand_as(embedding)
    torch.testing.assert_close(embedding[inside], expected[inside].float(), atol=2e-6, rtol=0)
    # after the last unpadded row and column as well: attention never looks there, but it is finite
    assert embedding.isfinite().all()


def test_sine_has_nothing_to_train_or_to_save():
    module = PositionEmbeddingSine(8, normalize=True)
    assert not list(module.parameters()) and not module.state_dict()


def test_a_scale_without_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalize=True"):
        PositionEmbeddingSine(8, scale=1.0)


@pytest.mark.parametrize("size", [(3, 4), (50, 50)])
def test_learned_looks_up_column_then_row(size):
    torch.manual_seed(0)
    module = PositionEmbeddingLearned(6)
    embedding = module(batch_of((2, 2), (3, 3), canvas=size))
    assert embedding.shape == (2, 12, *size)
    for row in range(size[0]):
        for column in range(size[1]):
            cell = torch.cat([module.col_embed.weight[column], module.row_embed.weight[row]])
            assert torch.equal(embedding[0, :, row, column], cell)
    assert torch.equal(embedding[0], embedding[1])


def test_learned_tables_train_and_start_uniform():
    torch.manual_seed(0)
    module = PositionEmbeddingLearned(256)
    for table in (module.row_embed.weight, module.col_embed.weight):
        assert table.shape == (50, 256)
        assert table.min() >= 0 and table.max() < 1
        assert abs(table.mean() - 0.5) < 0.01 and abs(table.std() - 12**-0.5) < 0.01
    tables = [module.row_embed.weight, module.col_embed.weight]
    out = module(batch_of((2, 2), canvas=(2, 3)))
    rows, columns = (gradient.sum(1).tolist() for gradient in torch.autograd.grad(out.sum(), tables))
    assert rows == [3 * 256] * 2 + [0] * 48 and columns == [2 * 256] * 3 + [0] * 47


@pytest.mark.parametrize("canvas", [(51, 3), (3, 51)])
def test_learned_tables_end_at_50_cells(canvas):
    expected = f"{canvas[0]} x {canvas[1]} cells is larger than .*50 x 50.*--position_embedding sine"
    with pytest.raises(TableTooSmall, match=expected):
        PositionEmbeddingLearned(4)(batch_of((2, 2), canvas=canvas))


def test_flags_choose_the_embedding_and_its_width():
    sine = build_position_encoding(parse("--hidden_dim 64"))
    assert isinstance(sine, PositionEmbeddingSine) and sine.num_pos_feats == 32 and sine.normalize
    learned = build_position_encoding(parse("--hidden_dim 64 --position_embedding learned"))
    assert isinstance(learned, PositionEmbeddingLearned) and learned.row_embed.weight.shape == (50, 32)
    args = parse("")
    args.position_embedding = "cosine"
    with pytest.raises((UserError, ValueError), match="--position_embedding cosine: neither sine nor"):
        build_position_encoding(args)
