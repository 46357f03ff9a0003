"""Masks on their way to users: resized without stretching, as instances and as panoptic pictures."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad

from models.mask_sampling import Resampler
from models.postprocess import PostProcess
from models.segment_maps import semantic_maps
from models.segmentation import PostProcessPanoptic, PostProcessSegm
from tests.models.mask_outputs import NO_OBJECT, THINGS, enlarged, ids_of, random_outputs, selected

# --- Resizing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canvas", "image", "target"),
    [
        ((40, 56), (40, 56), (40, 56)),
        ((40, 56), (33, 47), (80, 91)),
        ((38, 53), (38, 53), (17, 20)),
        ((64, 64), (5, 60), (5, 60)),
        ((10, 14), (10, 14), (3, 99)),
    ],
)
def test_resampler_equals_whole_resizes(canvas: Any, image: Any, target: Any) -> None:
    masks = torch.randn(3, 10, 14, generator=torch.Generator().manual_seed(0))
    whole = enlarged(masks, canvas, image)
    expected = interpolate(whole[None], size=target, mode="nearest")[0]
    torch.testing.assert_close(Resampler(canvas, image, target)(masks), expected, rtol=1e-5, atol=1e-5)
    # Pillow resizes each mask as a picture of numbers.
    pictures = [Image.fromarray(m.numpy()).resize(target[::-1], Image.Resampling.NEAREST) for m in whole]
    expected = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
    centred = Resampler(canvas, image, target, centred=True)(masks)
    torch.testing.assert_close(centred, expected, rtol=1e-5, atol=1e-5)


def test_resampler_of_no_mask() -> None:
    assert Resampler((40, 56), (40, 56), (20, 30))(torch.zeros(0, 10, 14)).shape == (0, 20, 30)


# --- Instances: PostProcessSegm --------------------------------------------------------------------------


def test_segm_masks_equal_brute_force() -> None:
    outputs = random_outputs()
    processed, original = torch.tensor([[40, 50], [31, 56]]), torch.tensor([[81, 99], [20, 33]])
    boxes = PostProcess()(outputs, original)
    results = PostProcessSegm(threshold=0.3)(boxes, outputs, original, processed)
    for i, result in enumerate(results):
        whole = enlarged(outputs["pred_masks"][i], (40, 56), tuple(processed[i].tolist()))
        inside = (whole.sigmoid() > 0.3).float()
        expected = interpolate(inside[:, None], size=original[i].tolist(), mode="nearest").byte()
        assert result["masks"].dtype == torch.uint8
        assert torch.equal(result["masks"], expected)
        assert 0.01 < expected.float().mean() < 0.9
    assert [set(box) for box in boxes] == [{"scores", "labels", "boxes"}] * 2  # the caller's are as they were


def test_segm_of_a_selection_holds_the_selected_queries() -> None:
    outputs = random_outputs()
    processed, original = torch.tensor([[40, 50], [31, 56]]), torch.tensor([[81, 99], [20, 33]])
    boxes = PostProcess()(outputs, original)
    every = PostProcessSegm()(boxes, outputs, original, processed)
    chosen = [torch.tensor([6, 1]), torch.zeros(0, dtype=torch.int64)]
    some = PostProcessSegm()(boxes, selected(outputs, chosen), original, processed)
    for whole, part, queries in zip(every, some, chosen, strict=True):
        assert part.keys() == whole.keys()
        for key, value in part.items():
            assert torch.equal(value, whole[key][queries]), key


@pytest.mark.parametrize(("threshold", "inside"), [(0.0, True), (1.0, False)])
def test_segm_threshold_at_its_ends(threshold: float, inside: bool) -> None:
    outputs = random_outputs()
    sizes = torch.tensor([[40, 56], [40, 56]])
    results = PostProcessSegm(threshold)(PostProcess()(outputs, sizes), outputs, sizes, sizes)
    assert all(bool(result["masks"].bool().eq(inside).all()) for result in results)


# --- Panoptic --------------------------------------------------------------------------------------------


def slow_merge(outputs: dict, i: int, canvas: Any, image: Any, target: Any) -> tuple[np.ndarray, list]:
    """The published merge, pixel maps and all: ids [H, W] and (id, class, area) of each segment."""
    scores, labels = outputs["pred_logits"][i].softmax(-1).max(-1)
    rows = [q for q in range(len(scores)) if scores[q] > 0.85 and labels[q] != NO_OBJECT]
    masks = {q: enlarged(outputs["pred_masks"][i, q][None], canvas, image)[0].numpy() for q in rows}

    def draw(rows: list[int], merge: bool) -> np.ndarray:
        ids = np.zeros(image, np.int64)
        if rows:
            ids = np.stack([masks[q] for q in rows]).argmax(0)
        for place, q in enumerate(rows):
            same = [p for p, other in enumerate(rows) if labels[other] == labels[q]]
            if merge and not THINGS[int(labels[q])] and same[0] != place:
                ids[ids == place] = same[0]
        picture = Image.fromarray(ids.astype(np.int32)).resize(target[::-1], Image.Resampling.NEAREST)
        return np.array(picture)

    ids = draw(rows, merge=True)
    while any((ids == place).sum() <= 4 for place in range(len(rows))):
        rows = [q for place, q in enumerate(rows) if (ids == place).sum() > 4]
        ids = draw(rows, merge=False)
    return ids, [(place, int(labels[q]), int((ids == place).sum())) for place, q in enumerate(rows)]


@pytest.mark.parametrize("seed", range(6))
def test_panoptic_equals_brute_force(seed: int) -> None:
    outputs = random_outputs(seed=seed)
    processed, original = [(40, 50), (31, 56)], [(81, 99), (20, 33)]
    results = PostProcessPanoptic(THINGS)(outputs, torch.tensor(processed), torch.tensor(original))
    for i, result in enumerate(results):
        ids, segments = slow_merge(outputs, i, (40, 56), processed[i], original[i])
        assert np.array_equal(ids_of(result), ids)
        found = [(s["id"], s["category_id"], s["area"]) for s in result["segments_info"]]
        assert found == segments
        assert all(s["isthing"] is (s["category_id"] <= 90) for s in result["segments_info"])
    assert any(result["segments_info"] for result in results)


def test_panoptic_of_a_selection_is_the_same() -> None:
    outputs = random_outputs()
    post = PostProcessPanoptic(THINGS)
    sizes = torch.tensor([[40, 50], [31, 56]])
    every = post(outputs, sizes)
    assert post(selected(outputs, post.select(outputs)), sizes) == every
    more = [torch.arange(8).flip(0)] * 2  # a selection may hold others, too
    assert post(selected(outputs, more), sizes) == every
    assert [ids_of(result).shape for result in every] == [(40, 50), (31, 56)]


def test_panoptic_without_any_segment() -> None:
    outputs = random_outputs(images=1)
    outputs["pred_logits"][..., NO_OBJECT] = 50
    (result,) = PostProcessPanoptic(THINGS)(outputs, [(40, 56)])
    assert result["segments_info"] == [] and not ids_of(result).any()


def test_panoptic_leaves_out_unknown_classes() -> None:
    """A model of 250 classes, most of which no data set has."""
    outputs = random_outputs(images=1)
    things = {1: True, 93: False}
    (result,) = PostProcessPanoptic(things)(outputs, [(40, 56)])
    assert {s["category_id"] for s in result["segments_info"]} <= {1, 93}
    known = outputs["pred_logits"].argmax(-1)
    assert not set(known.flatten().tolist()) <= {1, 93, NO_OBJECT}


# --- Padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below_and_right", [(0, 6), (5, 0), (3, 7)])
def test_a_larger_canvas_gives_the_same_ids(below_and_right: tuple[int, int]) -> None:
    outputs = random_outputs()
    below, right = below_and_right
    padded = {**outputs, "pred_masks": pad(outputs["pred_masks"], (0, right, 0, below), mode="replicate")}
    sizes, wanted = torch.tensor([[40, 56], [40, 56]]), torch.tensor([[61, 77], [30, 42]])
    panoptic = PostProcessPanoptic(THINGS)
    assert panoptic(padded, sizes, wanted) == panoptic(outputs, sizes, wanted)
    boxes = PostProcess()(outputs, wanted)
    masks = [r["masks"] for r in PostProcessSegm()(boxes, padded, wanted, sizes)]
    expected = [r["masks"] for r in PostProcessSegm()(boxes, outputs, wanted, sizes)]
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))
    semantic = zip(semantic_maps(padded, sizes, wanted), semantic_maps(outputs, sizes, wanted), strict=True)
    assert all(torch.equal(a, b) for a, b in semantic)


def test_canvas_that_is_no_multiple_of_the_masks_stride() -> None:
    """97 pixels have masks of 25 cells, the last of which they do not fill."""
    outputs = random_outputs(images=1, height=25, width=25)
    (result,) = PostProcessPanoptic(THINGS)(outputs, [(97, 97)])
    ids, _ = slow_merge(outputs, 0, (97, 97), (97, 97), (97, 97))
    assert np.array_equal(ids_of(result), ids)


def test_masks_are_stretched_to_a_size_that_is_not_the_processed_one() -> None:
    """As published: a caller may pass the picture's own size."""
    outputs = random_outputs(images=1, height=30, width=42)
    (result,) = PostProcessPanoptic(THINGS)(outputs, [(60, 84)])
    ids, _ = slow_merge(outputs, 0, (60, 84), (60, 84), (60, 84))
    assert np.array_equal(ids_of(result), ids)


# --- Errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processed", "wanted", "message"),
    [
        ([(40, 56)], None, r"processed_sizes: \[\(40, 56\)\] where \(height, width\) of 2 images"),
        (torch.tensor([40, 56]), None, r"processed_sizes: \[40, 56\] where"),
        ([(40, 56)] * 2, [(40, 56, 3)] * 2, "target_sizes: .* are expected"),
    ],
)
def test_sizes_that_do_not_fit(processed: Any, wanted: Any, message: str) -> None:
    outputs = random_outputs()
    with pytest.raises(ValueError, match=message):
        PostProcessPanoptic(THINGS)(outputs, processed, wanted)


def test_a_query_without_mask() -> None:
    outputs = random_outputs()
    post = PostProcessPanoptic(THINGS)
    short = [queries[:-1] for queries in post.select(outputs)]
    with pytest.raises(ValueError, match="masks were computed for the queries"):
        post(selected(outputs, short), [(40, 56)] * 2)
