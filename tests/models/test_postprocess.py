"""Detections from outputs, query by query."""

import pytest
import torch

from models.postprocess import PostProcess


def test_detections_equal_the_formula():
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, 4, generator=draw)
    boxes = torch.rand(2, 5, 4, generator=draw)
    kept = logits.clone(), boxes.clone()
    sizes = torch.tensor([[480, 640], [333, 100]])  # height, width
    results = PostProcess()({"pred_logits": logits, "pred_boxes": boxes}, sizes)
    assert len(results) == 2
    for i, result in enumerate(results):
        assert set(result) == {"scores", "labels", "boxes"}
        height, width = sizes[i].tolist()
        for q in range(5):
            probabilities = logits[i, q].softmax(0)[:3].tolist()  # without "no object"
            assert result["scores"][q].item() == pytest.approx(max(probabilities))
            assert result["labels"][q].item() == probabilities.index(max(probabilities))
            x, y, w, h = boxes[i, q].tolist()
            expected = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            assert result["boxes"][q].tolist() == pytest.approx(expected, abs=1e-3)
    assert torch.equal(logits, kept[0]) and torch.equal(boxes, kept[1])


def test_half_precision_comes_out_as_float32():
    outputs = {"pred_logits": torch.randn(1, 3, 4).bfloat16(), "pred_boxes": torch.rand(1, 3, 4).bfloat16()}
    (result,) = PostProcess()(outputs, torch.tensor([[480, 640]]))
    assert result["scores"].dtype == result["boxes"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (2,)])
def test_sizes_that_do_not_belong_to_the_images_are_refused(shape):
    outputs = {"pred_logits": torch.zeros(2, 3, 4), "pred_boxes": torch.zeros(2, 3, 4)}
    with pytest.raises(ValueError, match=r"\(height, width\) of 2 images are expected"):
        PostProcess()(outputs, torch.ones(shape))
