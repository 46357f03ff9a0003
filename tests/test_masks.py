"""Lazy masks against the same steps on tensors."""

import numpy as np
import pycocotools.mask
import pytest
import torch

from datasets.masks import LazyMasks


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
