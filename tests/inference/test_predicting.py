"""What a model finds: the post-processors' results above the threshold, whatever is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.attention_maps import listening
from inference.drawing import MOST_ROWS, draw, draw_attention
from inference.predicting import Found, coco_results, kind_of, panoptic_results, predict, summary
from inference.trained import TrainedModel, load_trained
from models.postprocess import PostProcess
from models.segment_maps import PanopticMap
from models.segmentation import PostProcessPanoptic
from tests.helpers import TINY_MODEL
from tests.inference.panoptic_model import decide
from tests.mask_model import SMALL as SMALL_MASKS
from tests.reference.settings import build
from util.errors import UserError
from util.nested_tensor import ByteBatch

SIZES = ((64, 96), (96, 64))  # as the model sees the pictures
ORIGINAL = [[128, 192], [97, 64]]  # in which the results are wanted


def saved(path: Path, words: str, **more: Any) -> TrainedModel:
    """A model with filled weights, whose queries differ in class and certainty, through a checkpoint."""
    model = build(words, 0)[0].eval()
    decide(model, pictures())
    torch.save({"model": model.state_dict(), **more}, path)
    return load_trained(path, nheads=8 if "--masks" in words else 4)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return saved(tmp_path_factory.mktemp("models") / "boxes.pth", TINY_MODEL)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return saved(tmp_path_factory.mktemp("models") / "masks.pth", SMALL_MASKS)


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    words = f"{SMALL_MASKS} --dataset_file coco_panoptic"
    path = tmp_path_factory.mktemp("models") / "panoptic.pth"
    odd_is_thing = {i: i % 2 == 1 for i in range(1, 250)}
    return saved(path, words, is_thing=odd_is_thing, categories={i: f"class {i}" for i in odd_is_thing})


def pictures() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=draw) for size in SIZES]


@torch.no_grad()
def everything(trained: TrainedModel) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """All outputs, and PostProcess's results."""
    outputs = trained.model(ByteBatch(pictures()).to("cpu"))
    return outputs, PostProcess()(outputs, torch.tensor(ORIGINAL))


def middle(results: list[dict[str, Tensor]]) -> float:
    """A threshold that some of the scores of both pictures exceed."""
    return float(torch.stack([result["scores"].median() for result in results]).mean())


def assert_found(found: Found, result: dict[str, Tensor], threshold: float, things: Any = None) -> list[int]:
    """Scores, labels and boxes are those of the queries above the threshold, sorted -> these queries."""
    scores, labels = result["scores"].tolist(), result["labels"].tolist()
    wanted = [q for q, label in enumerate(labels) if things is None or things.get(label, False)]
    kept = sorted((q for q in wanted if scores[q] > threshold), key=lambda q: -scores[q])
    assert found.queries.tolist() == kept and len(found) == len(kept)
    torch.testing.assert_close(found.scores, result["scores"][kept])
    assert found.labels.tolist() == [labels[q] for q in kept]
    torch.testing.assert_close(found.boxes, result["boxes"][kept], rtol=1e-5, atol=1e-3)
    return kept


def test_boxes_are_those_above_the_threshold(boxes: TrainedModel) -> None:
    _, results = everything(boxes)
    threshold = middle(results)
    found = predict(boxes, pictures(), ORIGINAL, threshold)
    counts = [len(assert_found(*pair, threshold)) for pair in zip(found, results, strict=True)]
    assert min(counts) > 0 and max(counts) < 10
    assert all(one.masks is None and one.panoptic is None for one in found)
    assert all(len(one) == 10 for one in predict(boxes, pictures(), ORIGINAL, 0))
    assert all(len(one) == 0 for one in predict(boxes, pictures(), ORIGINAL, 1))
    expected = [int((result["scores"] > 0.7).sum()) for result in results]
    assert [len(one) for one in predict(boxes, pictures(), ORIGINAL)] == expected


def test_masks_are_those_of_the_whole_model(masks: TrainedModel) -> None:
    outputs, results = everything(masks)
    threshold = middle(results)
    sizes = torch.tensor(ORIGINAL)
    drawn = masks.postprocessors["segm"](results, outputs, sizes, torch.tensor(SIZES))
    found = predict(masks, pictures(), ORIGINAL, threshold)
    for one, result, (height, width) in zip(found, drawn, ORIGINAL, strict=True):
        kept = assert_found(one, result, threshold)
        assert one.masks is not None and one.masks.shape == (len(kept), height, width)
        assert one.masks.dtype == torch.bool
        assert (one.masks != result["masks"][kept, 0].bool()).float().mean() < 1e-4
    (alone,) = predict(masks, pictures()[:1], ORIGINAL[:1], 1)
    assert alone.masks is not None and alone.masks.shape == (0, *ORIGINAL[0])


def test_a_mask_models_boxes_need_no_masks(masks: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _, results = everything(masks)
    threshold = middle(results)
    model: Any = masks.model
    monkeypatch.setattr(model.mask_head, "forward", lambda *args: pytest.fail("a mask was drawn"))
    for pair in zip(predict(masks, pictures(), ORIGINAL, threshold, "boxes"), results, strict=True):
        assert_found(*pair, threshold)


def test_panoptic_segments_are_those_of_the_post_processor(panoptic: TrainedModel) -> None:
    outputs, results = everything(panoptic)
    threshold = middle(results)
    assert panoptic.is_thing is not None
    published = PostProcessPanoptic(panoptic.is_thing, threshold)
    found = predict(panoptic, pictures(), ORIGINAL, threshold)
    answers = published(outputs, torch.tensor(SIZES), torch.tensor(ORIGINAL))
    for one, answer, result in zip(found, answers, results, strict=True):
        assert_found(one, result, threshold, panoptic.is_thing)
        assert one.panoptic is not None and len(one.panoptic.segments) > 1
        assert one.panoptic.segments == answer["segments_info"]


def test_beside_panoptic_segments_only_things_are_objects(panoptic: TrainedModel) -> None:
    _, results = everything(panoptic)
    threshold = middle(results)
    for kind in ("boxes", "masks"):
        found = predict(panoptic, pictures(), ORIGINAL, threshold, kind)
        for one, result in zip(found, results, strict=True):
            kept = assert_found(one, result, threshold, panoptic.is_thing)
            assert one.masks is None or len(one.masks) == len(kept)
    labels = torch.cat([result["labels"] for result in results]).tolist()
    assert {label % 2 for label in labels} == {0, 1}  # there was stuff to be left out


def test_batches_of_one_size_give_what_each_picture_gives_alone(panoptic: TrainedModel) -> None:
    images = [pictures()[0], pictures()[0].flip(2)]
    together = predict(panoptic, images, ORIGINAL[:1] * 2, 0.3)
    for image, one in zip(images, together, strict=True):
        (alone,) = predict(panoptic, [image], ORIGINAL[:1], 0.3)
        assert alone.queries.tolist() == one.queries.tolist()
        torch.testing.assert_close(alone.boxes, one.boxes, rtol=1e-4, atol=1e-2)
        assert alone.panoptic is not None and one.panoptic is not None
        assert (alone.panoptic.ids != one.panoptic.ids).float().mean() < 0.05  # untrained masks are close


def test_the_richest_kind_is_the_default_and_others_are_refused(
    boxes: TrainedModel, masks: TrainedModel, panoptic: TrainedModel
) -> None:
    assert [kind_of(one) for one in (boxes, masks, panoptic)] == ["boxes", "masks", "panoptic"]
    assert [kind_of(panoptic, kind) for kind in ("boxes", "masks")] == ["boxes", "masks"]
    for model, kind, reason in (
        (boxes, "masks", "has no mask head"),
        (boxes, "panoptic", "has no mask head"),
        (masks, "panoptic", "was not trained on panoptic data"),
    ):
        with pytest.raises(UserError, match=f"cannot give {kind}, the model {reason}"):
            kind_of(model, kind)


# --- Written -------------------------------------------------------------------------------------------


def found_two(masks: Tensor | None = None, segments: PanopticMap | None = None) -> Found:
    boxes = torch.tensor([[1.0, 2, 11, 22], [-3, 0, 4, 5.5]])
    return Found(torch.tensor([0.9, 0.8]), torch.tensor([3, 3]), boxes, torch.tensor([5, 1]), masks, segments)


def test_coco_results_are_boxes_with_width_and_height_and_masks_as_run_lengths() -> None:
    from pycocotools import mask as mask_utils

    inside = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    first, second = coco_results(found_two(inside), 42, "a.jpg")
    assert (first["image_id"], first["category_id"], first["file_name"]) == (42, 3, "a.jpg")
    assert first["bbox"] == [1, 2, 10, 20] and second["bbox"] == [-3, 0, 7, 5.5]
    assert first["score"] == pytest.approx(0.9)
    for record, mask in zip((first, second), inside, strict=True):
        assert torch.equal(torch.from_numpy(mask_utils.decode(record["segmentation"])).bool(), mask)
    assert "segmentation" not in coco_results(found_two(), 42, "a.jpg")[0]


def test_panoptic_results_name_pictures_and_categories(panoptic: TrainedModel) -> None:
    entry = {"image_id": 7, "file_name": "a.png", "segments_info": []}
    content = panoptic_results([entry], {7: "photos/a.jpg"}, panoptic)
    assert content["annotations"] == [entry]
    assert content["images"] == [{"id": 7, "file_name": "photos/a.jpg"}]
    assert content["categories"][:2] == [
        {"id": 1, "name": "class 1", "isthing": 1},
        {"id": 2, "name": "class 2", "isthing": 0},
    ]


def test_a_summary_counts_what_was_found() -> None:
    segments = [{"category_id": c} for c in (1, 2, 1)]
    assert summary(found_two(), {3: "cat"}) == "2 cat"
    assert summary(found_two(), {}) == "2 of class 3"
    assert summary(found_two(segments=PanopticMap(torch.zeros(2, 2), segments)), {1: "dog"}) == (
        "2 dog, 1 of class 2"
    )
    nothing = Found(torch.zeros(0), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0))
    assert summary(nothing, {}) == "nothing"


# --- Drawn ---------------------------------------------------------------------------------------------


def test_each_kind_is_drawn_on_a_copy(panoptic: TrainedModel) -> None:
    picture = torch.full((3, *ORIGINAL[0]), 90, dtype=torch.uint8)
    drawings = []
    for kind in ("boxes", "masks", "panoptic"):
        found = predict(panoptic, pictures(), ORIGINAL, 0.2, kind)[0]
        drawings.append(draw(picture, found, panoptic.names))
    assert (picture == 90).all()
    shapes = {tuple(drawn.shape) for drawn in drawings}
    assert len(shapes) == 1
    assert not any(torch.equal(drawings[i], drawings[i - 1]) for i in range(3))


def test_attention_has_a_row_for_each_detection_or_point(boxes: TrainedModel) -> None:
    big = [torch.zeros(3, *size, dtype=torch.uint8) for size in ORIGINAL]
    with listening(boxes.model) as heard:
        found = predict(boxes, pictures(), ORIGINAL, 0)
    sheets = [draw_attention(big[i], found[i], heard, i, boxes.names) for i in range(2)]
    many = found[0]
    one = Found(many.scores[:1], many.labels[:1], many.boxes[:1], many.queries[:1])
    row = draw_attention(big[0], one, heard, 0, boxes.names).shape[1]
    assert len(found[0]) == MOST_ROWS and sheets[0].shape[1] > 0.8 * MOST_ROWS * row
    by_point = draw_attention(big[1], found[1], heard, 1, boxes.names, [(0, 0), (63, 96)])
    assert by_point.shape[1] < sheets[1].shape[1] / 3
    with pytest.raises(ValueError, match="outside"):
        draw_attention(big[1], found[1], heard, 1, boxes.names, [(64, 10)])
