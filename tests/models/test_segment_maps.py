"""Semantic, instance and panoptic maps of hand-made masks."""

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch.nn.functional import interpolate

from models.segment_maps import coco_rle, instance_maps, panoptic_maps, semantic_maps
from models.selection import confident_queries
from tests.models.mask_outputs import NO_OBJECT, THINGS, enlarged, random_outputs, selected


def test_semantic_map_equals_brute_force() -> None:
    outputs = random_outputs()
    processed, wanted = [(40, 50), (31, 56)], [(81, 99), (20, 33)]
    maps = semantic_maps(outputs, processed, wanted)
    for i, found in enumerate(maps):
        classes = outputs["pred_logits"][i].softmax(-1)[:, :-1]
        votes = torch.einsum("qc,qhw->chw", classes, outputs["pred_masks"][i].sigmoid())
        whole = enlarged(votes, (40, 56), processed[i])
        votes = interpolate(whole[None], size=wanted[i], mode="nearest")[0]
        best = votes.gather(0, found[None])[0]
        torch.testing.assert_close(best, votes.max(0).values)  # the largest, whichever of equal ones
        assert (found == votes.argmax(0)).float().mean() > 0.999
        assert len(found.unique()) > 1
    chosen = [torch.tensor([0, 3]), torch.tensor([5])]
    few = semantic_maps(selected(outputs, chosen), processed, wanted)
    without = outputs["pred_logits"].clone()
    for i, queries in enumerate(chosen):
        others = [q for q in range(8) if q not in queries.tolist()]
        without[i, others, NO_OBJECT] = 1000
    expected = semantic_maps({**outputs, "pred_logits": without}, processed, wanted)
    assert all(torch.equal(a, b) for a, b in zip(few, expected, strict=True))


def test_instance_maps_equal_brute_force() -> None:
    outputs = random_outputs(seed=3)
    processed, wanted = [(40, 50), (31, 56)], [(81, 99), (20, 33)]
    of_selection = selected(outputs, confident_queries(outputs, 0.6))
    results, again = (
        instance_maps(each, processed, wanted, threshold=0.6, mask_threshold=0.4)
        for each in (outputs, of_selection)
    )
    for i, result in enumerate(results):
        scores, labels = outputs["pred_logits"][i].softmax(-1)[:, :-1].max(-1)
        whole = enlarged(outputs["pred_masks"][i], (40, 56), processed[i])
        inside = interpolate(whole[None], size=wanted[i], mode="nearest")[0].sigmoid() > 0.4
        expected = [
            q for q in scores.argsort(descending=True).tolist() if scores[q] > 0.6 and inside[q].any()
        ]
        assert sorted(result["queries"].tolist()) == sorted(expected)
        assert result["scores"].tolist() == sorted(result["scores"].tolist(), reverse=True)
        for place, query in enumerate(result["queries"].tolist()):
            assert result["labels"][place] == labels[query] and result["scores"][place] == scores[query]
            assert torch.equal(result["masks"][place], inside[query])
        for y in range(0, wanted[i][0], 3):
            for x in range(0, wanted[i][1], 3):
                owners = [place for place in range(len(expected)) if result["masks"][place, y, x]]
                assert result["map"][y, x] == min(owners, default=-1)
        assert all(torch.equal(result[key], again[i][key]) for key in result)
    assert any(len(result["scores"]) > 1 for result in results)


def test_instance_map_without_instances() -> None:
    (result,) = instance_maps(random_outputs(images=1), [(40, 56)], threshold=1.0)
    assert result["masks"].shape == (0, 40, 56) and bool((result["map"] == -1).all())
    assert len(result["scores"]) == len(result["labels"]) == 0


def test_coco_rle_round_trip() -> None:
    masks = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(0)) > 0.6
    codes = coco_rle(masks)
    assert all(isinstance(code["counts"], str) and code["size"] == [17, 23] for code in codes)
    decoded = mask_utils.decode([{**code, "counts": code["counts"].encode()} for code in codes])
    assert np.array_equal(decoded.transpose(2, 0, 1).astype(bool), masks.numpy())
    assert coco_rle(masks[:0]) == []


def test_published_merge_gives_pixels_away() -> None:
    """Known and kept, because figures depend on it; `merge_always` is the correction.

    Two queries of one stuff class share the picture; a thing is seen in the lower right corner and comes
    second in the quarter around it.
    """
    masks = torch.full((1, 3, 8, 8), -9.0)
    masks[0, 0, :, :4], masks[0, 1, :, 4:], masks[0, 2, 4:, 4:] = 5, 5, 0
    masks[0, 2, 6:, 6:] = 15
    logits = torch.zeros(1, 3, NO_OBJECT + 1)
    logits[0, range(3), (93, 93, 1)] = 20
    outputs = {"pred_logits": logits, "pred_masks": masks}
    (published,) = panoptic_maps(outputs, THINGS, [(32, 32)])
    assert [s["category_id"] for s in published.segments] == [93, 1]
    assert published.segments[1]["area"] > 200
    (merged,) = panoptic_maps(outputs, THINGS, [(32, 32)], merge_always=True)
    assert [s["category_id"] for s in merged.segments] == [93, 1]
    assert merged.segments[1]["area"] < 110
    assert sum(s["area"] for s in merged.segments) == 32 * 32
    assert merged.ids.unique().tolist() == [s["id"] for s in merged.segments]
