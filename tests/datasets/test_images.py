"""Pictures of all sorts, read as PIL reads them."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images import image_size, read_image
from util.errors import UserError


def picture(mode, height=37, width=53):
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([rows * 6, columns * 4, (rows + columns) * 2], -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize(
    "mode, name",
    [
        ("RGB", "a.jpg"), ("L", "a.jpg"), ("CMYK", "a.jpg"),
        ("RGB", "a.png"), ("L", "a.png"), ("RGBA", "a.png"), ("LA", "a.png"), ("P", "a.png"), ("1", "a.png"),
        ("RGB", "a.bmp"), ("P", "a.gif"), ("RGB", "a.webp"), ("RGB", "a.tiff"),
        ("RGB", "a.ppm"), ("RGB", "a.tga"),
    ],
)  # fmt: skip
def test_every_format_gives_the_pixels_of_pil(tmp_path, mode, name):
    path = tmp_path / name
    picture(mode).save(path)
    image = read_image(path)
    assert image.mode == "RGB" and image.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_sizes_of_pictures_and_tensors():
    assert image_size(picture("RGB")) == image_size(torch.zeros(3, 37, 53)) == (37, 53)


def test_pictures_are_turned_by_their_orientation_only_where_it_is_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("RGB").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (53, 37)
    assert read_image(tmp_path / "a.jpg", as_shown=True).size == (37, 53)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    picture("RGB", 200, 300).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    for name in ("none", "text", "half"):
        with pytest.raises(UserError, match=rf"{name}\.jpg \(image id 3\): cannot be read \("):
            read_image(tmp_path / f"{name}.jpg", " (image id 3)")
