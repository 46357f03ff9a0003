"""The mapper: polygons, run lengths, images without objects, panoptic segments, sizes, mistakes."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image

from d2.detr import DetrDatasetMapper
from tests.d2.with_detectron2.tiny import config, picture
from util.errors import UserError

MASKS = ["MODEL.MASK_ON", True]
POLYGON = [[10.0, 10.0, 80.0, 10.0, 80.0, 50.0, 10.0, 50.0]]
PIXELS = np.zeros((60, 90), np.uint8, order="F")
PIXELS[10:50, 10:80] = 1
COMPRESSED = coco_mask.encode(PIXELS)
COUNTS = {"size": [60, 90], "counts": [610, *[40, 20] * 69, 40, 610]}


def given(folder: Path, *segmentations: Any) -> dict[str, Any]:
    boxed = {"bbox": [10, 10, 70, 40], "bbox_mode": 1, "category_id": 1}
    objects = [{**boxed, "segmentation": one} if one is not None else boxed for one in segmentations]
    return {"file_name": picture(folder), "image_id": 1, "annotations": objects}


@pytest.mark.parametrize("segmentation", [POLYGON, COMPRESSED, COUNTS], ids=["polygon", "runs", "counts"])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_every_form_of_a_mask(tmp_path: Path, segmentation: Any, mask_format: str) -> None:
    mapper = DetrDatasetMapper(config(*MASKS, "INPUT.MASK_FORMAT", mask_format))
    np.random.seed(0)
    instances = mapper(given(tmp_path, segmentation))["instances"]
    is_polygon = segmentation is POLYGON and mask_format == "polygon"
    assert isinstance(instances.gt_masks, PolygonMasks if is_polygon else BitMasks)
    if not is_polygon:
        rectangle = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(rectangle, instances.gt_boxes.tensor, atol=1.5, rtol=0)


def test_an_image_may_mix_polygons_and_run_lengths(tmp_path: Path) -> None:
    instances = DetrDatasetMapper(config(*MASKS))(given(tmp_path, POLYGON, COMPRESSED))["instances"]
    first, second = instances.gt_masks.tensor
    assert (first & second).sum() / (first | second).sum() > 0.95


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_an_image_without_objects(tmp_path: Path, mask_format: str) -> None:
    mapped = DetrDatasetMapper(config(*MASKS, "INPUT.MASK_FORMAT", mask_format))(given(tmp_path))
    assert len(mapped["instances"]) == 0 and mapped["instances"].has("gt_masks")


def test_a_record_is_not_changed(tmp_path: Path) -> None:
    record = given(tmp_path, POLYGON)
    DetrDatasetMapper(config())(record)
    assert record == given(tmp_path, POLYGON)


def test_an_object_without_a_mask_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MODEL.MASK_ON is on, and an object has no segmentation"):
        DetrDatasetMapper(config(*MASKS))(given(tmp_path, POLYGON, None))


def test_too_few_classes_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MODEL.DETR.NUM_CLASSES 1: too few"):
        DetrDatasetMapper(config("MODEL.DETR.NUM_CLASSES", 1))(given(tmp_path, POLYGON))


def test_crops_of_polygons_need_shapely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    DetrDatasetMapper(config("INPUT.CROP.ENABLED", True))
    with pytest.raises(UserError, match="pip install shapely"):
        DetrDatasetMapper(config(*MASKS, "INPUT.CROP.ENABLED", True))


@pytest.mark.parametrize("detr_resize", [False, True])
def test_sizes(tmp_path: Path, detr_resize: bool) -> None:
    """480 x 640 becomes 800 x 1066 in DETR, and 800 x 1067 in detectron2; a long side is limited by 1333."""
    options = ["INPUT.MIN_SIZE_TEST", 800, "INPUT.DETR_RESIZE", detr_resize]
    mapper = DetrDatasetMapper(config(*options), is_train=False)
    sizes = [tuple(mapper({"file_name": picture(tmp_path, size)})["image"].shape[1:])
             for size in ((480, 640), (640, 480), (200, 600))]  # fmt: skip
    long = 1066 if detr_resize else 1067
    limited = (444, 1332) if detr_resize else (444, 1333)
    assert sizes == [(800, long), (long, 800), limited]


def test_detrs_crop_uses_its_sizes_too(tmp_path: Path) -> None:
    options = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", (384, 600)]
    mapper = DetrDatasetMapper(config(*options, "INPUT.DETR_RESIZE", True))
    for seed in range(8):
        np.random.seed(seed)
        height, width = mapper(given(tmp_path, POLYGON))["image"].shape[1:]
        assert min(height, width) in (64, 80)


def panoptic(folder: Path) -> dict[str, Any]:
    """The left half is a thing (id 7), the right half stuff (id 260), but for a void row at the top."""
    ids = np.full((60, 90), 7)
    ids[:, 45:] = 260
    ids[0] = 0
    colours = np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "segments.png")
    return {
        "file_name": picture(folder),
        "image_id": 1,
        "pan_seg_file_name": str(folder / "segments.png"),
        "segments_info": [
            {"id": 7, "category_id": 0, "isthing": True},
            {"id": 260, "category_id": 2, "isthing": False},
        ],
    }


def test_panoptic_segments_become_objects(tmp_path: Path) -> None:
    on = ["MODEL.DETR.PANOPTIC_ON", True]
    np.random.seed(1)
    mapped = DetrDatasetMapper(config(*MASKS, *on))(panoptic(tmp_path))
    instances = mapped["instances"]
    assert instances.gt_classes.tolist() == [0, 2]
    rectangles = instances.gt_masks.get_bounding_boxes().tensor
    torch.testing.assert_close(rectangles, instances.gt_boxes.tensor, atol=2.0, rtol=0)
    boxes_alone = DetrDatasetMapper(config(*on))(panoptic(tmp_path))["instances"]
    assert len(boxes_alone) == 2 and not boxes_alone.has("gt_masks")
    with pytest.raises(UserError, match="no panoptic segments"):
        DetrDatasetMapper(config(*MASKS, *on))(given(tmp_path, POLYGON))
