"""Drawings: what changes, where, and what stays; contact sheets; files."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from inference.picture_text import ELLIPSIS, Rectangle, arrange_plates, fitted, load_font
from inference.visualize import (
    class_colour,
    draw_detections,
    draw_masks,
    enlargement,
    save_picture,
    side_by_side,
)
from util.errors import UserError


def grey(height: int, width: int, value: int = 90) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def pixels_of(picture: torch.Tensor, colour: tuple[int, int, int]) -> torch.Tensor:
    """bool [H, W]: where a picture has exactly this colour."""
    return (picture == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0)


def test_class_colours_are_stable_distinct_and_bright():
    colours = [class_colour(label) for label in range(1, 91)]
    assert colours == [class_colour(label) for label in range(1, 91)]
    assert len(set(colours)) == 90
    for one, other in itertools.pairwise(colours):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 100
    for red, green, blue in colours:
        luminance = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2
        assert (luminance + 0.05) / 0.05 > 4.5  # contrast of black letters, as WCAG asks


@pytest.mark.parametrize("size, factor", [((96, 96), 5), ((480, 640), 1), ((1, 1), 420), ((20, 1500), 1)])
def test_enlargement(size, factor):
    assert enlargement(*size) == factor


def test_box_lies_where_it_belongs():
    image = grey(600, 800)
    picture = draw_detections(image, torch.tensor([[100.0, 200, 300, 500]]), [3], names={3: "cat"})
    assert picture.shape == image.shape and picture.dtype == torch.uint8
    assert (image == 90).all()  # what was passed is as it was
    ys, xs = pixels_of(picture, class_colour(3)).nonzero().T
    below_plate = ys > 200
    assert (xs[below_plate].min(), xs[below_plate].max(), ys.max()) == (100, 299, 499)
    for y, x in ((350, 101), (350, 298), (498, 200), (201, 250)):  # left, right, bottom, top line
        assert tuple(picture[:, y, x].tolist()) == class_colour(3)
    assert (picture[:, 210:490, 110:290] == 90).all()  # nothing hides the object
    assert (picture[:, 510:] == 90).all() and (picture[:, :, 310:] == 90).all()
    plate = picture[:, 150:199, 100:140]
    assert (plate == 0).all(0).sum() > 20  # black letters above the box


def test_small_pictures_are_enlarged_and_their_boxes_with_them():
    picture = draw_detections(grey(96, 120), torch.tensor([[24.0, 40, 72, 80]]), [1])
    factor = enlargement(96, 120)
    assert factor > 1 and picture.shape == (3, 96 * factor, 120 * factor)
    ys, xs = pixels_of(picture, class_colour(1)).nonzero().T
    assert (xs.min(), xs.max(), ys.max()) == (24 * factor, 72 * factor - 1, 80 * factor - 1)


def test_lines_grow_with_the_picture():
    widths = []
    for side in (480, 2400):
        picture = draw_detections(grey(side, side), torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * side, [1])
        widths.append(int(pixels_of(picture, class_colour(1))[side // 2, : side // 2].sum()))
    assert widths[0] >= 2 and widths[1] == pytest.approx(5 * widths[0], rel=0.2)


def test_scores_are_written():
    box = torch.tensor([[100.0, 200, 300, 500]])
    without = draw_detections(grey(600, 800), box, torch.tensor([3]))
    with_score = draw_detections(grey(600, 800), box, torch.tensor([3]), torch.tensor([0.987]))
    changed = (without != with_score).any(0).nonzero()
    assert len(changed) > 50 and changed[:, 0].max() < 200  # the plate above the box became longer


def test_no_boxes_give_a_copy():
    image = grey(500, 500)
    picture = draw_detections(image, torch.zeros(0, 4), [], [])
    assert torch.equal(picture, image) and picture.data_ptr() != image.data_ptr()
    assert draw_detections(grey(50, 50), torch.zeros(0, 4), []).shape == (3, 450, 450)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (40, 3000), (3000, 40), (13, 500)])
def test_any_size_of_picture_and_box(size):
    height, width = size
    boxes = torch.tensor(
        [
            [-50.0, -50, 2 * width, 2 * height],  # larger than the picture
            [width / 2, height / 2, width / 2, height / 2],  # no size
            [width + 10, height + 10, width + 20, height + 20],  # outside
            [0, 0, 1, 1],
        ]
    )
    picture = draw_detections(grey(*size), boxes, [1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6], {1: "a long name " * 9})
    assert picture.shape[1] % height == 0 and picture.shape[2] % width == 0
    assert pixels_of(picture, class_colour(1)).any()


def test_every_detection_of_a_crowd_is_outlined():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(100, 2, generator=generator) * 400
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(100, 2, generator=generator)], 1)
    picture = draw_detections(grey(480, 480), boxes, range(1, 101), torch.linspace(0.5, 1, 100))
    found = set(map(tuple, picture.flatten(1).T.unique(dim=0).tolist()))
    drawn = sum(class_colour(label) in found for label in range(1, 101))
    assert drawn > 90  # but for small ones under a label


def test_plates_stay_inside_and_do_not_hide_each_other():
    random = np.random.default_rng(0)
    width, height = 640, 480
    corners = random.uniform(-20, 460, (60, 2))
    ends = corners + random.uniform(5, 200, (60, 2))
    boxes = [Rectangle(*first, *last) for first, last in zip(corners, ends, strict=True)]
    sizes = [(int(w), 18) for w in random.uniform(30, 90, 60)]
    arranged = arrange_plates(boxes, sizes, (width, height))
    plates = [plate for plate in arranged if plate is not None]
    assert arranged[0] is not None and len(plates) > 25
    for plate in plates:
        assert plate.left >= 0 and plate.top >= 0 and plate.right <= width and plate.bottom <= height
    for one, other in itertools.combinations(plates, 2):
        assert one.hides(other) <= 0.15


@pytest.mark.parametrize(
    "box, expected",
    [
        (Rectangle(100, 100, 200, 200), Rectangle(100, 80, 160, 100)),  # above
        (Rectangle(100, 5, 200, 200), Rectangle(100, 200, 160, 220)),  # no room above: below
        (Rectangle(380, 100, 400, 200), Rectangle(340, 80, 400, 100)),  # at the right edge: shifted inward
        (Rectangle(100, 0, 200, 300), Rectangle(200, 0, 260, 20)),  # neither above nor below: beside
        (Rectangle(0, 0, 400, 300), Rectangle(0, 0, 60, 20)),  # all of the picture: inside
    ],
)
def test_plates_prefer_the_outside_of_their_box(box, expected):
    (plate,) = arrange_plates([box], [(60, 20)], (400, 300))
    assert plate == expected


def test_hides_is_the_share_of_the_other():
    assert Rectangle(0, 0, 10, 10).hides(Rectangle(5, 5, 25, 15)) == 25 / 200
    assert Rectangle(5, 5, 25, 15).hides(Rectangle(0, 0, 10, 10)) == 25 / 100
    assert Rectangle(0, 0, 10, 10).hides(Rectangle(10, 0, 20, 10)) == 0


def test_text_is_cut_to_its_width_and_the_font_knows_other_scripts():
    font = load_font(14)
    assert fitted("short", font, 200) == "short"
    cut = fitted("a very long class name", font, 60)
    assert cut.endswith(ELLIPSIS) and font.getlength(cut) <= 60 < font.getlength(cut[:-1] + "ry" + ELLIPSIS)
    missing = bytes(font.getmask("\U0010ffff"))
    for letter in "äñжλ…":
        assert bytes(font.getmask(letter)) != missing


def test_mistakes_are_refused():
    image = grey(20, 20)
    with pytest.raises(ValueError, match="equally many"):
        draw_detections(image, torch.zeros(2, 4), [1])
    with pytest.raises(ValueError, match="equally many"):
        draw_detections(image, torch.zeros(1, 4), [1], [0.5, 0.5])
    for wrong in (image.float(), image[0], image[:1]):
        with pytest.raises(ValueError, match="uint8"):
            draw_detections(wrong, torch.zeros(1, 4), [1])


def test_masks_tint_their_pixels_and_no_others():
    image = grey(60, 80)
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 10:30, 10:40] = True
    picture = draw_masks(image, masks, [1, 2])
    assert (image == 90).all()
    assert torch.equal((picture != 90).any(0), masks[0])
    half = [round(0.5 * (90 + channel)) for channel in class_colour(1)]
    assert (picture[:, 20, 25] - torch.tensor(half)).abs().max() <= 1
    assert tuple(picture[:, 10, 10].tolist()) == class_colour(1)  # the outline is opaque
    assert torch.equal(draw_masks(image, masks[:0], []), image)


def test_masks_are_enlarged_with_their_picture():
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[0, 40:60, 30:70] = True
    box = torch.tensor([[30.0, 40, 70, 60]])
    difference = (
        draw_detections(grey(96, 96), box, [5], masks=mask) != draw_detections(grey(96, 96), box, [5])
    ).any(0)
    ys, xs = difference.nonzero().T
    assert ys.min() >= 200 and ys.max() < 300 and xs.min() >= 150 and xs.max() < 350
    assert difference[210:290, 160:340].all()


def test_contact_sheet_holds_every_picture():
    colours = [(10, 60, 200), (200, 10, 60), (60, 200, 10)]
    sizes = [(100, 200), (150, 100), (50, 50)]
    left, right, low = (
        torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, *size)
        for colour, size in zip(colours, sizes, strict=True)
    )
    sheet = side_by_side([[left, right], [low]])
    assert sheet.dtype == torch.uint8 and sheet.shape[1] > 200 and sheet.shape[2] > 300
    assert [int(pixels_of(sheet, colour).sum()) for colour in colours] == [20000, 15000, 2500]
    assert tuple(sheet[:, 0, 0].tolist()) == (255, 255, 255)
    written = side_by_side([[left, right], [low]], ["truth", "found"], ["one", "two"])
    assert written.shape[1] > sheet.shape[1] and written.shape[2] == sheet.shape[2]
    assert [int(pixels_of(written, colour).sum()) for colour in colours] == [20000, 15000, 2500]
    letters = (written < 100).all(0).nonzero()  # dark in every channel, as no picture is
    first_row = pixels_of(written, colours[1]).nonzero()[:, 0]
    assert (letters[:, 0] < first_row.min()).sum() > 20  # titles above the first row
    assert ((letters[:, 0] > first_row.max()) & (letters[:, 1] < 100)).sum() > 20  # captions under it


def test_contact_sheet_shrinks_large_pictures_only():
    sheet = side_by_side([[grey(1000, 500, 10), grey(30, 40, 60)]], cell=200)
    assert int(pixels_of(sheet, (10,) * 3).sum()) == 200 * 100
    assert int(pixels_of(sheet, (60,) * 3).sum()) == 30 * 40
    empty: list[list[list[torch.Tensor]]] = [[], [[]], [[grey(5, 5)], []]]
    for rows in empty:
        with pytest.raises(ValueError, match="needs a picture"):
            side_by_side(rows)


def test_overlapping_masks_are_drawn_with_the_smaller_one_on_top():
    masks = torch.zeros(2, 100, 100, dtype=torch.bool)
    masks[0, 20:40, 20:40] = True
    masks[1, 10:90, 10:90] = True
    drawn = draw_masks(grey(100, 100), masks, [1, 2], alpha=0.5)
    for row, column, label in ((30, 30, 1), (60, 60, 2)):
        expected = torch.tensor(class_colour(label)) / 2 + 45
        assert (drawn[:, row, column] - expected).abs().max() <= 1


@pytest.mark.parametrize("suffix, kind", [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("bmp", "BMP")])
def test_pictures_are_saved_in_the_format_of_their_suffix(suffix, kind, tmp_path):
    picture = grey(20, 30)
    picture[:, :, 15:] = torch.tensor(class_colour(3), dtype=torch.uint8)[:, None, None]
    save_picture(picture, tmp_path / "new" / f"a.{suffix}")
    with Image.open(tmp_path / "new" / f"a.{suffix}") as image:
        assert image.format == kind
        saved = np.asarray(image.convert("RGB")).astype(int)
    difference = np.abs(saved.transpose(2, 0, 1) - picture.numpy())
    assert difference.max() == 0 if kind != "JPEG" else difference.mean() < 3


@pytest.mark.parametrize("name", ["a.what", "file/a.png"])
def test_a_file_that_cannot_be_written_is_named(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{name}: cannot be written"):
        save_picture(grey(20, 30), tmp_path / name)
