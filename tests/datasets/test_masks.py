"""Segmentations that pycocotools must not be given, for they would end the process."""

import numpy as np
import pycocotools.mask
import pytest
import torch

from datasets.coco import ConvertCocoPolysToMask
from datasets.masks import cannot_be_drawn, run_lengths
from util.errors import UserError

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
