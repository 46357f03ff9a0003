"""What a training report says of detections: matching against pycocotools, mistakes of a known scene."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from report.mistakes import (
    CONFUSED,
    DOUBLE,
    IGNORED,
    MISPLACED,
    NOTHING,
    RIGHT,
    best_threshold,
    count,
    count_kinds,
    false_positives,
    match,
    misses,
    pairwise_iou,
)
from report.source import Boxes


def boxes_of(rows: list[tuple], scored: bool) -> Boxes:
    """Rows of (image id, label, box, score or crowd)."""
    images, labels, places, last = zip(*rows, strict=True)
    scores = np.array(last, float) if scored else np.full(len(rows), np.nan)
    crowd = np.zeros(len(rows), bool) if scored else np.array(last, bool)
    return Boxes(np.array(images), np.array(labels), np.array(places, float), scores, crowd)


# --- Matching --------------------------------------------------------------------------------------------


IMAGES = 40


def random_boxes(seed: int) -> tuple[Boxes, Boxes]:
    """Crowded images: detections are objects that moved, some of another class, some of no object."""
    draw = np.random.default_rng(seed)
    truth: list[tuple] = []
    found: list[tuple] = []
    for image_id in range(1, IMAGES + 1):
        for _ in range(draw.integers(0, 7)):
            label, box = int(draw.integers(1, 4)), [*draw.uniform(0, 60, 2), *draw.uniform(10, 40, 2)]
            truth.append((image_id, label, box, draw.random() < 0.15))
            for _ in range(draw.integers(0, 4)):
                moved = np.add(box, draw.normal(0, 5, 4)).clip(1)
                found.append((image_id, int(draw.choice([label, label, 1, 2, 3])), moved, draw.random()))
        found.append((image_id, 1, [*draw.uniform(0, 60, 2), 9, 9], draw.random()))
    return boxes_of(found, True), boxes_of(truth, False)


def pycocotools_matches(found: Boxes, truth: Boxes) -> tuple[set[int], set[int], dict[int, float]]:
    """Rows of detections that are right, rows that a crowd excuses, and objects found -> score."""
    gt, dt = COCO(), COCO()
    for coco, boxes in ((gt, truth), (dt, found)):
        coco.dataset = {
            "images": [{"id": int(i)} for i in range(1, IMAGES + 1)],
            "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
            "annotations": [
                {
                    "id": row + 1,
                    "image_id": int(boxes.image_id[row]),
                    "category_id": int(boxes.label[row]),
                    "bbox": boxes.box[row].tolist(),
                    "area": float(boxes.box[row, 2:].prod()),
                    "iscrowd": int(boxes.crowd[row]),
                    "score": float(boxes.score[row]),
                }
                for row in range(len(boxes.label))
            ],
        }
        coco.createIndex()
    evaluation = COCOeval(gt, dt, "bbox")
    evaluation.params.iouThrs, evaluation.params.maxDets = np.array([0.5]), [1000]
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.evaluate()
    right: set[int] = set()
    excused: set[int] = set()
    scores: dict[int, float] = {}
    for one in filter(None, evaluation.evalImgs):
        for row, matched, ignored in zip(one["dtIds"], one["dtMatches"][0], one["dtIgnore"][0], strict=True):
            if matched:
                (excused if ignored else right).add(row - 1)
                if not ignored:
                    scores[int(matched) - 1] = float(found.score[row - 1])
    return right, excused, scores


@pytest.mark.parametrize("seed", range(5))
def test_detections_are_matched_as_pycocotools_does(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = random_boxes(seed)
    matches = match(found, truth)
    right, excused, scores = pycocotools_matches(found, truth)
    assert len(right) > 20
    assert set(np.flatnonzero(matches.kind == RIGHT)) == right
    assert set(np.flatnonzero(matches.kind == IGNORED)) == excused
    assert {i: s for i, s in enumerate(matches.score.tolist()) if s >= 0} == scores


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_gives_the_best_f1(seed: int) -> None:
    found, truth = random_boxes(seed)
    matches = match(found, truth)
    objects = int((~truth.crowd).sum())

    def f1(threshold: float) -> float:
        kinds = matches.kind[found.score >= threshold]
        right, counted = (kinds == RIGHT).sum(), (kinds != IGNORED).sum()
        return float(2 * right / (counted + objects))

    assert f1(matches.threshold) == max(map(f1, found.score))


def test_the_threshold_where_nothing_is_right() -> None:
    assert best_threshold(np.zeros(0), np.zeros(0), 3) == 0.5
    assert best_threshold(np.array([0.9]), np.array([NOTHING]), 3) == 0.5


def test_nothing_found_or_nothing_there() -> None:
    found, truth = random_boxes(0)
    none = Boxes(*(column[:0] for column in truth))
    assert (match(none, truth).score == -1).all()
    assert set(match(found, none).kind) == {NOTHING}


def test_iou_is_torchvisions() -> None:
    torch = pytest.importorskip("torch")
    from torchvision.ops import box_iou

    draw = np.random.default_rng(0)
    one, other = draw.uniform(1, 50, (7, 4)), draw.uniform(1, 50, (9, 4))
    corners = (np.concatenate((b[:, :2], b[:, :2] + b[:, 2:]), 1) for b in (one, other))
    expected = box_iou(*(torch.from_numpy(c) for c in corners)).numpy()
    np.testing.assert_allclose(pairwise_iou(one, other, np.zeros(9)), expected, atol=1e-12)


# --- Mistakes --------------------------------------------------------------------------------------------

NAMES = {1: "cat", 2: "dog", 3: "hen"}


def scene() -> tuple[Boxes, Boxes]:
    """One detection of each kind, and objects that are missed for each reason."""
    truth = [
        (1, 1, [0, 0, 40, 40], False),  # found, and found again
        (1, 2, [100, 100, 40, 40], False),  # taken for a cat
        (2, 1, [0, 0, 60, 60], False),  # a detection that lies half outside it
        (2, 2, [200, 200, 30, 30], False),  # nobody sees it
        (3, 1, [0, 0, 100, 100], True),  # a crowd
        (3, 1, [300, 300, 20, 20], False),  # a score that is too low
    ]
    found = [
        (1, 1, [1, 1, 40, 40], 0.99),
        (1, 1, [3, 3, 40, 40], 0.98),
        (1, 1, [100, 100, 40, 42], 0.97),
        (2, 1, [30, 0, 60, 60], 0.96),
        (2, 3, [400, 400, 20, 20], 0.95),
        (3, 1, [10, 10, 20, 20], 0.94),
        (3, 1, [300, 300, 20, 21], 0.10),
        (1, 3, [110, 110, 60, 60], 0.93),
    ]
    return boxes_of(found, True), boxes_of(truth, False)


def test_each_kind_of_mistake_is_recognised() -> None:
    found, truth = scene()
    matches = match(found, truth)
    assert matches.kind.tolist() == [RIGHT, DOUBLE, CONFUSED, MISPLACED, NOTHING, IGNORED, RIGHT, NOTHING]
    matches = matches._replace(threshold=0.5)
    counts = count(found, truth, matches)
    assert {i: tuple(c) for i, c in counts.items()} == {1: (1, 3, 2), 2: (0, 0, 2), 3: (0, 2, 0)}
    assert (counts[1].precision, counts[1].recall) == (pytest.approx(1 / 4), pytest.approx(1 / 3))
    assert (counts[2].precision, counts[2].recall) == (None, 0)
    assert (counts[3].precision, counts[3].recall) == (0, None)
    kinds = count_kinds(found, matches)
    assert kinds == {"placed badly": 1, "of another class": 1, "found twice": 1, "nothing there": 2}

    wrong = false_positives(found, truth, matches, NAMES, each=2)
    assert [(m.label, m.rank, m.remark) for m in wrong] == [
        (1, 0, "0.98, found twice"),
        (1, 1, "0.97, is dog"),
        (3, 0, "0.95, nothing there"),
        (3, 1, "0.93, nothing there"),
    ]
    missed = misses(found, truth, matches, NAMES, each=3)
    assert [(m.label, m.remark, len(m.others)) for m in missed] == [
        (1, "placed badly, IoU 0.33", 1),
        (1, "scored only 0.10", 0),
        (2, "taken for cat", 1),
        (2, "not seen", 0),
    ]
