"""Boxes against torchvision's functions and against plain arithmetic."""

import pytest
import torch
import torchvision

from util.box_ops import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    masks_to_boxes,
    paired_generalized_box_iou,
)


def random_boxes(count, seed):
    """xyxy [count, 4] in float64, with nested, touching, distant and equal ones among them."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw, dtype=torch.float64)
    size = torch.rand(count, 2, generator=draw, dtype=torch.float64) * 0.5 + 0.01
    special = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 1], [0.2, 0.2, 0.4, 0.3], [8, 8, 9, 9]]).double()
    return torch.cat([torch.cat([corner, corner + size], dim=1), special])


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 5, 4), (0, 4)])
def test_conversions_equal_torchvision(shape):
    boxes = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    xyxy = torchvision.ops.box_convert(boxes.view(-1, 4), "cxcywh", "xyxy").view(shape)
    torch.testing.assert_close(box_cxcywh_to_xyxy(boxes), xyxy)
    torch.testing.assert_close(box_xyxy_to_cxcywh(xyxy), boxes)


def test_conversions_leave_their_argument_alone():
    boxes = torch.tensor([[1.0, 2.0, 4.0, 6.0]])
    box_cxcywh_to_xyxy(boxes)
    box_xyxy_to_cxcywh(boxes)
    assert boxes.tolist() == [[1.0, 2.0, 4.0, 6.0]]


def test_overlaps_of_all_pairs_equal_torchvision():
    first, second = random_boxes(20, 1), random_boxes(15, 2)
    iou, union = box_iou(first, second)
    expected = torchvision.ops.box_iou(first, second)
    areas = torchvision.ops.box_area(first)[:, None] + torchvision.ops.box_area(second)
    torch.testing.assert_close(iou, expected)
    torch.testing.assert_close(box_area(first), torchvision.ops.box_area(first))
    torch.testing.assert_close(union * (1 + expected), areas)  # union + intersection
    torch.testing.assert_close(
        generalized_box_iou(first, second), torchvision.ops.generalized_box_iou(first, second)
    )


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_give_no_pairs(counts):
    first, second = (torch.rand(count, 4).cumsum(1) for count in counts)
    assert generalized_box_iou(first, second).shape == counts
    assert box_iou(first, second)[0].shape == counts


def test_paired_generalized_iou_is_the_diagonal_and_broadcasts():
    first, second = random_boxes(12, 3), random_boxes(12, 4)
    matrix = torchvision.ops.generalized_box_iou(first, second)
    torch.testing.assert_close(paired_generalized_box_iou(first, second), matrix.diagonal())
    torch.testing.assert_close(paired_generalized_box_iou(first[:, None], second[None]), matrix)


@pytest.mark.parametrize("wrong", [[0.5, 0.5, 0.2, 0.2], [0.0, 0.0, float("nan"), 1.0]])
@pytest.mark.parametrize("place", [0, 1])
def test_boxes_that_are_not_xyxy_are_refused(wrong, place):
    arguments = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])] * 2
    arguments[place] = torch.tensor([[0.0, 0.0, 1.0, 1.0], wrong])
    with pytest.raises(
        AssertionError, match=f"boxes{place + 1}: a box ends before it begins or is not a number"
    ):
        generalized_box_iou(*arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_boxes_of_masks_equal_torchvision(dtype):
    masks = torch.rand(9, 13, 17, generator=torch.Generator().manual_seed(7)) > 0.98
    masks[0] = False
    masks[0, 4, 5] = True  # one pixel
    masks[1] = True
    masks[2:, 6, 8] = True  # none is empty
    boxes = masks_to_boxes(masks.to(dtype))
    assert boxes.dtype == torch.float32
    assert boxes[:2].tolist() == [[5, 4, 5, 4], [0, 0, 16, 12]]  # the last pixel's index, as published
    assert boxes.tolist() == torchvision.ops.masks_to_boxes(masks).tolist()


def test_boxes_of_no_masks():
    assert masks_to_boxes(torch.zeros(0, 5, 6, dtype=torch.bool)).shape == (0, 4)
