"""Ids and colours, PNGs of them, and runs of equal pixels."""

import numpy as np
import pytest
from PIL import Image

from datasets.panoptic_png import encode_png, ids_to_rgb, read_ids, run_starts


def test_ids_and_colours(tmp_path):
    ids = np.random.default_rng(0).integers(0, 1 << 24, (13, 17))
    ids[0, :3] = 0, 1, (1 << 24) - 1
    colours = ids_to_rgb(ids)
    expected = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
    assert colours.dtype == np.uint8 and np.array_equal(colours, expected)
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(ids))
    assert read_ids(path).dtype == np.int32 and np.array_equal(read_ids(path), ids)
    transparent = np.concatenate([colours, np.full((13, 17, 1), 77, np.uint8)], -1)
    Image.fromarray(transparent).save(path)
    assert np.array_equal(read_ids(path), ids)
    for wrong in (-1, 1 << 24):
        with pytest.raises(ValueError, match="2\\^24"):
            ids_to_rgb(np.array([[wrong]]))


def test_run_starts():
    one = np.array([[1, 1, 2], [2, 2, 2], [3, 3, 3]])
    other = np.array([[0, 0, 0], [0, 0, 0], [0, 9, 9]])
    assert run_starts(one).tolist() == [0, 2, 3, 6]
    assert run_starts(one, other).tolist() == [0, 2, 3, 6, 7]
    assert run_starts(one[:, :1]).tolist() == [0, 1, 2]
