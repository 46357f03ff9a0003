"""Sheets of attention: bright where it is high, heads in two rows, places marked."""

from __future__ import annotations

import pytest
import torch

from inference.attention_drawing import (
    AttentionRow,
    attention_sheet,
    heat,
    panel,
    panel_size,
    tiled,
    with_point,
)


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 120, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(96, 96), (4000, 3000), (480, 640), (200, 1600)])
def test_panels_have_one_area_and_keep_the_shape(size: tuple[int, int]) -> None:
    height, width = panel_size(*size)
    assert height * width == pytest.approx(420**2, rel=0.02)
    assert height / width == pytest.approx(size[0] / size[1], rel=0.02)
    assert panel(grey(*size)).shape == (3, height, width) and (panel(grey(*size)) == 120).all()


def test_heat_is_brightest_where_attention_is_highest() -> None:
    values = torch.zeros(40, 60)
    values[10, 20], values[30, 50] = 0.02, 0.01
    drawn = heat(grey(40, 60), values)
    light = drawn.float().sum(0)
    assert divmod(int(light.argmax()), 60) == (10, 20)
    assert light[10, 20] > light[30, 50] > light[0, 0]
    assert torch.equal(heat(grey(40, 60), 1000 * values), drawn)  # each to its own highest value
    assert (heat(grey(40, 60), 0 * values) == drawn[:, :1, :1]).all()  # none at all is dark everywhere


def test_the_picture_shows_through() -> None:
    image = grey(10, 10)
    image[:, :, 5:] = 220
    drawn = heat(image, torch.zeros(10, 10)).float().sum(0)
    assert drawn[0, 9] > drawn[0, 0] + 100


def test_a_point_is_ringed_and_seen() -> None:
    image = grey(400, 400)
    marked = with_point(image, 100, 300)
    changed = (marked != image).any(0).nonzero().float()
    assert changed.mean(0).tolist() == pytest.approx([300, 100], abs=1)
    assert (marked[:, 300, 100] == 120).all()


@pytest.mark.parametrize("count, size", [(8, (46, 98)), (1, (20, 20)), (3, (46, 46)), (2, (46, 20))])
def test_heads_stand_in_two_rows(count: int, size: tuple[int, int]) -> None:
    pictures = [torch.full((3, 20, 20), i, dtype=torch.uint8) for i in range(count)]
    sheet = tiled(pictures)
    assert sheet.shape[1:] == size
    for i in range(count):
        assert (sheet == i).all(0).sum() == 400
    if count == 8:
        assert (sheet[:, 0, 0] == 0).all() and (sheet[:, 0, -1] == 3).all() and (sheet[:, -1, 0] == 4).all()


def test_a_sheet_holds_a_row_for_each_and_changes_nothing() -> None:
    image = panel(grey(96, 128))
    maps = torch.rand(8, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    kept = image.clone(), maps.clone()
    one = attention_sheet(image, [AttentionRow(image, maps, "cat 0.90")])
    three = attention_sheet(image, [AttentionRow(image, maps, "cat 0.90")] * 3)
    assert one.shape[2] == three.shape[2] > 3 * image.shape[2]
    row = (three.shape[1] - one.shape[1]) / 2
    assert image.shape[1] < row < 1.2 * image.shape[1]
    assert torch.equal(image, kept[0]) and torch.equal(maps, kept[1])


@pytest.mark.parametrize("size", [(30, 900), (900, 30)])
def test_very_long_pictures_fit(size: tuple[int, int]) -> None:
    image = panel(grey(*size))
    maps = torch.rand(8, *image.shape[1:])
    assert attention_sheet(image, [AttentionRow(image, maps, "")]).shape[0] == 3
