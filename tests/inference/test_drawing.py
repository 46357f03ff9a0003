"""Sheets of attention: bright where it is high, heads in two rows, places marked; panoptic segments."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inference.drawing import (
    AttentionRow,
    attention_sheet,
    draw_panoptic,
    heat,
    panel,
    panel_size,
    tiled,
    with_point,
)
from inference.picture_text import load_font
from inference.visualize import class_colour

SIDE = 600  # large enough not to be enlarged
NAMES = {1: "cat", 2: "sky", 3: "grass"}


# --- Attention ------------------------------------------------------------------------------------------


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


# --- Panoptic segments ----------------------------------------------------------------------------------


def scene() -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """A grey picture of a sky above grass, with a thing between and a corner of no segment."""
    ids = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    ids[SIDE // 2 :] = 7
    ids[200:400, 200:400] = 70_000
    ids[:50, :50] = 5
    segments = [
        {"id": 0, "category_id": 2, "isthing": False, "area": 1},
        {"id": 7, "category_id": 3, "isthing": False, "area": 1},
        {"id": 70_000, "category_id": 1, "isthing": True, "area": 1},
    ]
    return torch.full((3, SIDE, SIDE), 100, dtype=torch.uint8), ids, segments


def test_every_segment_has_its_classes_colour() -> None:
    picture, ids, segments = scene()
    drawn = draw_panoptic(picture, ids, segments, NAMES, alpha=0.5)
    assert drawn.shape == picture.shape and (picture == 100).all()
    for row, column, category in ((100, 500, 2), (550, 100, 3), (210, 380, 1)):
        expected = torch.tensor(class_colour(category)) / 2 + 50
        assert (drawn[:, row, column] - expected).abs().max() <= 1
    assert (drawn[:, 20, 20] == 100).all()  # no segment's


def test_borders_between_segments_are_bright_and_those_of_the_picture_are_not() -> None:
    drawn = draw_panoptic(*scene(), NAMES)
    for row, column in ((300, 100), (200, 220), (399, 380), (25, 49)):
        around = drawn[:, row - 2 : row + 3, column - 2 : column + 3].flatten(1)
        assert (around == 255).all(0).any()
    assert not (drawn[:, 0, 100:] == 255).all(0).any()


def plate_rows(drawn: Tensor, category: int, region: Tensor) -> tuple[float, float]:
    """The middle (row, column) of a class's pure colour, which its plate alone has."""
    plate = (drawn == torch.tensor(class_colour(category))[:, None, None]).all(0)
    assert plate.sum() > 100
    assert region[plate].all()
    rows, columns = plate.nonzero().float().T
    return float(rows.min() + rows.max()) / 2, float(columns.min() + columns.max()) / 2


def test_names_stand_in_the_middle_of_their_segments() -> None:
    picture, ids, segments = scene()
    drawn = draw_panoptic(picture, ids, segments, NAMES)
    row, column = plate_rows(drawn, 1, ids == 70_000)
    assert abs(row - 300) < 5 and abs(column - 300) < 5
    plate_rows(drawn, 2, ids == 0)
    plate_rows(drawn, 3, ids == 7)


def test_names_that_would_cover_others_and_those_of_small_stuff_are_left_out() -> None:
    picture, ids, segments = scene()
    small = torch.zeros_like(ids)
    small[300:306, 300:306] = 7
    drawn = draw_panoptic(picture, small, segments, NAMES)
    assert not (drawn == torch.tensor(class_colour(3))[:, None, None]).all(0).any()
    small[small == 7] = 70_000  # a thing is named however small it is
    drawn = draw_panoptic(picture, small, segments, NAMES)
    assert (drawn == torch.tensor(class_colour(1))[:, None, None]).all(0).any()
    apart = torch.zeros_like(ids)
    apart[300:306, 300:306], apart[300:306, 308:314] = 70_000, 70_001
    drawn = draw_panoptic(picture, apart, [*segments, {**segments[2], "id": 70_001}], NAMES)
    plate = (drawn == torch.tensor(class_colour(1))[:, None, None]).all(0)
    height = sum(load_font(round(0.028 * SIDE)).getmetrics())
    assert plate.any(1).sum() < 1.5 * height  # one plate


@pytest.mark.parametrize("names", [{}, None])
def test_without_names_numbers_are_written(names: dict[int, str] | None) -> None:
    picture, ids, segments = scene()
    written = draw_panoptic(picture, ids, segments, {1: "1", 2: "2", 3: "3"})
    assert torch.equal(draw_panoptic(picture, ids, segments, names), written)


def test_small_pictures_are_enlarged() -> None:
    picture, ids, segments = scene()
    drawn = draw_panoptic(picture[:, 180:260, 180:260], ids[180:260, 180:260], segments, NAMES)
    assert drawn.shape == (3, 480, 480)


def test_a_thin_segment_is_named_too() -> None:
    picture, ids, segments = scene()
    thin = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    thin[:, 301] = 70_000
    drawn = draw_panoptic(picture, thin, segments, NAMES)
    assert (drawn == torch.tensor(class_colour(1))[:, None, None]).all(0).any()


def test_no_segments_give_a_copy() -> None:
    picture, ids, _ = scene()
    drawn = draw_panoptic(picture, ids, [])
    assert torch.equal(drawn, picture) and drawn.data_ptr() != picture.data_ptr()
