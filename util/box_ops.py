"""Boxes: conversions, overlap and generalised overlap (paper, appendix A.2), boxes of masks.

Two formats: `xyxy` is (left, top, right, bottom), `cxcywh` is (centre x, centre y, width, height).
N and M count boxes; `...` stands for any leading axes.
"""

import torch
from torch import Tensor

from util.originals import original


def box_cxcywh_to_xyxy(x: Tensor) -> Tensor:
    """Boxes [..., 4] from centre and size to corners."""
    centre, size = x[..., :2], x[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def box_xyxy_to_cxcywh(x: Tensor) -> Tensor:
    """Boxes [..., 4] from corners to centre and size."""
    low, high = x[..., :2], x[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Area of boxes xyxy: [..., 4] -> [...]."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]  # [...]


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of boxes xyxy whose leading axes broadcast: [..., 4], [..., 4] -> [...], [...]."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = box_area(a) + box_area(b) - intersection
    return intersection / union, union


def paired_generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of each box with its partner: xyxy [..., 4] and [..., 4], broadcast, -> [...] in (-1, 1].

    Nothing is checked: boxes of negative size give meaningless values. Boxes without area give NaN
    only where both of a pair have none.
    """
    iou, union = _overlap(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull_area = hull[..., 0] * hull[..., 1]
    return iou - (hull_area - union) / hull_area


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of every pair: xyxy [N, 4], [M, 4] -> [N, M], [N, M]."""
    return _overlap(boxes1[:, None], boxes2[None])


@original  # losses and matching call paired_generalized_box_iou in its place, as long as it is marked
def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU (Rezatofighi et al. 2019) of every pair: xyxy [N, 4], [M, 4] -> [N, M] in (-1, 1].

    Raises:
        AssertionError: a box ends before it begins, which also tells cxcywh boxes handed in by mistake. The
            check waits for a GPU.
    """
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if not bool((boxes[:, 2:] >= boxes[:, :2]).all()):
            raise AssertionError(f"{name}: a box ends before it begins or is not a number; xyxy is expected")
    return paired_generalized_box_iou(boxes1[:, None], boxes2[None])


def masks_to_boxes(masks: Tensor) -> Tensor:
    """The tight box of each mask: [N, H, W] -> xyxy [N, 4] in float32.

    As published, the right and lower edge are the index of the last pixel, not one past it. An empty
    mask has no meaningful box; an empty set of masks gives [0, 4].
    """
    if masks.numel() == 0:
        return torch.zeros((0, 4), device=masks.device)
    filled = masks != 0
    edges = []
    for axis in (1, 2):  # over rows: which columns are touched; over columns: which rows
        touched = filled.any(dim=axis)  # [N, W], then [N, H]
        place = torch.arange(touched.shape[1], dtype=torch.float32, device=masks.device)
        first = torch.where(touched, place, place.new_tensor(1e8)).amin(dim=1)
        last = (touched * place).amax(dim=1)
        edges.append((first, last))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)
