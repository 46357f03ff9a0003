"""A user's pictures: found, read in any format, prepared as evaluation does, damaged ones named."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets.coco import make_coco_transforms
from datasets.images import image_ids
from inference.pictures import (
    View,
    find_pictures,
    prepare,
    read_picture,
    read_pictures,
    unique_stems,
)
from util.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)  # 6 high, 9 wide


def as_array(picture: Tensor) -> np.ndarray:
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    return picture.permute(1, 2, 0).numpy()


def write(path: Path, values: np.ndarray = COLOURS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


# --- Found ---------------------------------------------------------------------------------------------


def test_files_folders_and_patterns_in_the_order_given_each_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "in/c.png", "in/deep/d.png"):
        write(tmp_path / name, format="PNG")
    for sources, names in (
        ([""], ["a.JPG", "b.png"]),
        (["b.png", "", "b.png"], ["b.png", "a.JPG"]),
        (["in/*"], ["in/c.png"]),
        (["**/*.png"], ["b.png", "in/c.png", "in/deep/d.png"]),
        (["notes.txt"], ["notes.txt"]),  # named itself, it is tried
    ):
        assert find_pictures([tmp_path / s for s in sources]) == [tmp_path / name for name in names]


def test_a_name_with_brackets_is_no_pattern_where_it_exists(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].png")
    assert find_pictures([path]) == [path]
    assert find_pictures([tmp_path / "a[[]1].*"]) == [path]


@pytest.mark.parametrize(
    "source, message",
    [("nowhere.jpg", "there is no such picture"), ("*.jpg", "no file fits"), ("empty", "no pictures in")],
)
def test_nothing_found_is_reported(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        find_pictures([tmp_path / source])
    assert source in str(caught.value)


def test_names_are_unique_whatever_the_case_and_the_suffix() -> None:
    paths = [Path(p) for p in ("x/a.jpg", "y/A.png", "a-2.jpg", "z/a.jpg", "b.c.jpg")]
    assert list(unique_stems(paths).values()) == ["a", "A-2", "a-2-2", "a-3", "b.c"]


def test_ids_are_the_numbers_of_names_or_counted() -> None:
    coco = [Path("000000000139.jpg"), Path("000000000285.jpg")]
    assert image_ids(coco) == [139, 285]
    assert image_ids([*coco, Path("x.jpg")]) == [1, 2, 3]
    assert image_ids([Path("a/7.jpg"), Path("b/07.jpg")]) == [1, 2]


# --- Read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight(suffix: str, tmp_path: Path) -> None:
    deep = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1236
    found = as_array(read_picture(write(tmp_path / f"a.{suffix}", deep)))
    assert (found == np.round(deep / 257)[..., None]).all() and found.max() == 255


def test_numbers_of_other_types(tmp_path: Path) -> None:
    within_one = np.linspace(0, 1, 54, dtype=np.float32).reshape(6, 9)
    found = as_array(read_picture(write(tmp_path / "a.tif", within_one)))
    assert (found == np.round(255 * within_one)[..., None]).all()
    few_bits = COLOURS[..., 0].astype(np.int32)
    path = write(tmp_path / "b.tif", few_bits)
    assert (as_array(read_picture(path, View(white_level=255))) == few_bits[..., None]).all()
    assert as_array(read_picture(path)).max() <= 1  # by one rule, whatever a picture holds


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, 54).round().astype(np.uint8).reshape(6, 9)
    share = alpha[..., None] / 255
    path = write(tmp_path / "a.png", np.dstack([COLOURS, alpha]))
    assert np.abs(as_array(read_picture(path)) - (share * COLOURS + (1 - share) * 255)).max() <= 1
    path = write(tmp_path / "b.png", np.dstack([COLOURS[..., 0], alpha]))
    grey = share * COLOURS[..., :1] + (1 - share) * 255
    assert np.abs(as_array(read_picture(path)) - grey).max() <= 1


def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    places = np.arange(54, dtype=np.uint8).reshape(6, 9)
    palette = np.random.default_rng(1).integers(0, 255, (256, 3), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png")
    assert (as_array(read_picture(tmp_path / "a.png")) == palette[places]).all()
    image.save(tmp_path / "b.png", transparency=7)
    expected = np.where((places == 7)[..., None], 255, palette[places])
    assert (as_array(read_picture(tmp_path / "b.png")) == expected).all()


def test_cmyk(tmp_path: Path) -> None:
    inks = np.random.default_rng(2).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    found = as_array(read_picture(tmp_path / "a.tif"))
    paper = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    assert np.abs(found - paper).max() <= 1
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "b.jpg", quality=100, subsampling=0)
    found = as_array(read_picture(tmp_path / "b.jpg")).astype(int)
    assert np.abs(found - COLOURS).mean() < 20  # inverted, it would be 85


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_upright(suffix: str, tmp_path: Path) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # the corner at the top left is white
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if suffix == "webp" else {}
        path = write(tmp_path / f"{orientation}.{suffix}", np.ascontiguousarray(pixels), exif=exif, **options)
        found = as_array(read_picture(path)).astype(int)
        assert found.shape == upright.shape
        assert np.abs(found - upright).max() < 60, orientation  # JPEG is not exact


def test_of_several_frames_the_first(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 9), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert (as_array(read_picture(tmp_path / name)) == 10).all()


def spoil(folder: Path) -> dict[str, Path]:
    """One of each kind of file that is no picture."""
    whole = write(
        folder / "whole.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    )
    paths = {name: folder / f"{name}.jpg" for name in ("empty", "text", "cut", "folder", "dangling")}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("hello")
    paths["cut"].write_bytes(whole.read_bytes()[:900])
    paths["folder"].mkdir()
    os.symlink(folder / "gone.jpg", paths["dangling"])
    paths["header"] = folder / "header.png"
    paths["header"].write_bytes(write(folder / "whole.png").read_bytes()[:40])
    paths["tiff"] = folder / "tiff.tif"
    paths["tiff"].write_bytes(write(folder / "whole.tif").read_bytes()[:-30])
    return paths


def test_spoiled_files_are_named(tmp_path: Path) -> None:
    for path in spoil(tmp_path).values():
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_picture(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- Prepared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (200, 90), (300, 20)])
def test_pictures_are_prepared_as_evaluation_does(size: tuple[int, int], tmp_path: Path) -> None:
    height, width = size
    path = write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    transform = make_coco_transforms("val", eval_scale=120, max_size=200)
    expected = transform(Image.open(path), {"orig_size": torch.tensor([height, width])})[0]
    image = prepare(read_picture(path), 120, 200)
    assert image.dtype == torch.uint8 and image.shape[1:] == expected.shape[1:]
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    difference = (image / 255 - mean) / deviation - expected
    assert difference.abs().max() < 0.02  # a grey level is 0.017


def test_a_thin_picture_keeps_a_row() -> None:
    assert prepare(torch.zeros(3, 1, 3000, dtype=torch.uint8), 800, 1333).shape == (3, 1, 3000)
    assert prepare(torch.zeros(3, 2, 3000, dtype=torch.uint8), 800, 160).shape == (3, 1, 1500)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_with_spoiled_ones_in_their_place(workers: int, tmp_path: Path) -> None:
    spoiled = spoil(tmp_path / "spoiled")
    good = [write(tmp_path / f"{i}.png", np.full((6, 9, 3), i, np.uint8)) for i in range(4)]
    paths = [good[0], spoiled["cut"], good[1], spoiled["text"], good[2], good[3]]
    batches = list(read_pictures(paths, 12, 24, 3, workers))
    assert [len(batch) for batch in batches] == [3, 3]
    reads = [read for batch in batches for read in batch]
    assert [read.path for read in reads] == paths
    for read in reads:
        if read.path in good:
            assert read.error == "" and read.picture.shape == (3, 6, 9) and read.image.shape == (3, 12, 18)
            assert (read.picture == good.index(read.path)).all()
        else:
            assert read.picture is None and read.image is None and str(read.path) in read.error
