"""Pictures of all sorts, decoded to tensors as PIL decodes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import images
from datasets.images import pil_to_tensor, read_pil, read_tensor


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
    ],
)  # fmt: skip
def test_every_format_gives_the_pixels_of_pil(tmp_path, mode, name):
    path = tmp_path / name
    picture(mode).save(path)
    image = read_tensor(path)
    assert image.dtype == torch.uint8 and image.shape == (3, 37, 53)
    expected = np.asarray(Image.open(path).convert("RGB"), dtype=int).transpose(2, 0, 1)
    assert np.abs(image.numpy() - expected).max() <= 1
    assert torch.equal(pil_to_tensor(read_pil(path)), torch.from_numpy(expected).byte())


def test_pil_takes_over_where_torchvision_no_longer_decodes(tmp_path, monkeypatch):
    picture("RGB").save(tmp_path / "a.jpg")
    expected = read_tensor(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "_decode_image", None)
    assert torch.equal(read_tensor(tmp_path / "a.jpg"), expected)


def test_sixteen_bits_go_through_pil(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(path)
    assert torch.equal(read_tensor(path), pil_to_tensor(Image.open(path).convert("RGB")))


def test_pictures_are_not_turned_by_their_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("RGB").save(tmp_path / "a.jpg", exif=exif)
    assert read_tensor(tmp_path / "a.jpg").shape == (3, 37, 53)
    assert read_pil(tmp_path / "a.jpg").size == (53, 37)


@pytest.mark.parametrize("read", [read_pil, read_tensor])
def test_what_cannot_be_read_raises_oserror(tmp_path, read):
    with pytest.raises(OSError):
        read(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(OSError):
        read(tmp_path / "text.jpg")
    picture("RGB", 200, 300).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(OSError):
        read(tmp_path / "half.jpg")
