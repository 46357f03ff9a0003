"""Lazy masks against the same steps on tensors."""

import numpy as np
import pycocotools.mask
import pytest
import torch

from datasets.coco import ConvertCocoPolysToMask
from datasets.masks import LazyMasks, run_lengths
from datasets.polygons import cannot_be_drawn
from util.errors import UserError


def steps(draw):
    """A random chain of crops, mirrorings, resizes and choices of objects, as functions of masks."""
    for _ in range(int(draw.integers(1, 6))):
        kind = draw.integers(0, 4)
        if kind == 0:
            yield lambda masks: masks.flip(-1)
        elif kind == 1:
            top, left = draw.integers(0, 12, 2).tolist()
            bottom, right = draw.integers(13, 30, 2).tolist()
            yield lambda masks, t=top, b=bottom, le=left, r=right: masks[:, t:b, le:r]
        elif kind == 2:
            keep = torch.from_numpy(draw.random(9) > 0.2)
            yield lambda masks, keep=keep: masks[keep[: len(masks)]]
        else:
            height, width = draw.integers(20, 90, 2).tolist()
            yield lambda masks, h=height, w=width: resized(masks, (h, w))


def resized(masks, size):
    if isinstance(masks, LazyMasks):
        return masks.resize(size)
    return torch.nn.functional.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5


@pytest.mark.parametrize("made_by", ["rows", "runs"])
@pytest.mark.parametrize("seed", range(40))
def test_a_chain_of_steps_equals_the_steps_one_by_one(seed, made_by):
    draw = np.random.default_rng(seed)
    masks = np.zeros((5, 41, 57), np.uint8)
    for k in range(4):  # the last stays empty
        x, y = draw.integers(0, 57), draw.integers(0, 41)
        masks[k, y : y + draw.integers(1, 40), x : x + draw.integers(1, 50)] = 1
        masks[k] &= draw.random((41, 57)) > 0.3
    plain = torch.from_numpy(masks)
    lazy = LazyMasks(plain)
    if made_by == "runs":
        lazy = LazyMasks.from_runs(
            pycocotools.mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))), 41, 57
        )
    for step in steps(draw):
        plain, lazy = step(plain), step(lazy)
        assert lazy.shape == plain.shape and len(lazy) == len(plain)
    assert lazy.tensor().dtype == torch.bool
    assert torch.equal(lazy.tensor(), plain.bool())


def test_no_objects_and_other_axes():
    empty = LazyMasks.from_runs([], 4, 6).resize((8, 9))
    assert empty.tensor().shape == (0, 8, 9)
    with pytest.raises(ValueError, match="last axis"):
        empty.flip(1)


# ---- polygons that would end the process

UNDRAWABLE = {
    "NaN": ([1.0, 2.0, 3.0, float("nan"), 5.0, 6.0], "NaN or infinite"),
    "infinite": ([1.0, 2.0, float("inf"), 4.0, 5.0, 6.0], "NaN or infinite"),
    "both infinities": ([float("inf"), 2.0, float("-inf"), 4.0, 5.0, 6.0], "NaN or infinite"),
    "far right": ([1.0, 2.0, 1e8, 4.0, 5.0, 6.0], r"1e\+08 pixels away, is beyond 10 times"),
    "far up": ([1.0, 2.0, 3.0, -401.0, 5.0, 6.0], "401 pixels away, is beyond 10 times"),
}


@pytest.mark.parametrize("name", UNDRAWABLE)
def test_what_cannot_be_drawn_never_reaches_pycocotools(name, monkeypatch):
    polygon, message = UNDRAWABLE[name]
    monkeypatch.setattr(pycocotools.mask, "frPyObjects", lambda *_: pytest.fail("handed over"))
    good = [1, 1, 9, 1, 9, 9]
    for segmentation in ([polygon], [good, polygon], [good, np.array(polygon)]):
        with pytest.raises(ValueError, match=message):
            run_lengths(segmentation, 30, 40)
    one = {"id": 77, "bbox": [1, 2, 20, 20], "category_id": 1, "area": 9.0, "segmentation": [polygon]}
    with pytest.raises(UserError, match=f"annotation 77 gives no mask of 30 x 40 pixels .*{message}"):
        ConvertCocoPolysToMask(True)(torch.zeros(3, 30, 40), {"image_id": 1, "annotations": [one]})


def test_what_leaves_the_image_a_little_is_drawn():
    polygon = [-400.0, -400.0, 400.0, -400.0, 400.0, 400.0, -400.0, 400.0]
    assert cannot_be_drawn(polygon, 40) == "" and cannot_be_drawn([], 40) == ""
    assert pycocotools.mask.area(run_lengths([polygon], 30, 40)) == 30 * 40
