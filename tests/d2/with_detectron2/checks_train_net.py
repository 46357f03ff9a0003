"""d2/train_net.py as a user runs it: boxes, masks, things and stuff, resumed and evaluated, and mistakes."""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2 import converter, train_net
from d2.detr import DetrPanopticEvaluator
from datasets.shapes import write_shapes
from tests.d2.with_detectron2.tiny import SMALL
from util.errors import UserError, exit_status

CONFIGS = Path(train_net.__file__).parent / "configs"
TRAIN_BOXES = "instances_train2017.json"
FILES = {"boxes": "detr_256", "masks": "detr_segm_256", "panoptic": "detr_panoptic_256"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with boxes, masks and panoptic segments, registered under names of their own."""
    root = write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=4, val=2, size=96, workers=1)
    return root


def registered(root: Path, kind: str) -> list[str]:
    """--register for both splits."""
    flags = []
    for split in ("train", "val"):
        folder = root / f"{split}2017"
        if kind == "panoptic":
            places = f"{root}/annotations/panoptic_{split}2017.json:{folder}:{root}/panoptic_{split}2017"
        else:
            places = f"{root}/annotations/instances_{split}2017.json:{folder}"
        flags += ["--register", f"{split}={places}"]
    return flags


@pytest.fixture(autouse=True)
def nothing_registered():
    yield
    forget()


def forget() -> None:
    """Let the names be registered again."""
    for name in {"train", "val", "mine"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def options(root: Path, kind: str, out: Path) -> list[object]:
    small = list(SMALL)
    name = "panoptic" if kind == "panoptic" else "instances"
    content = json.loads((root / "annotations" / f"{name}_train2017.json").read_text())
    small[small.index("MODEL.DETR.NUM_CLASSES") + 1] = len(content["categories"])
    return [
        *small,
        *("DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('val',)", "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)"),
        *("INPUT.CROP.SIZE", "(64, 90)", "INPUT.DETR_RESIZE", True, "OUTPUT_DIR", out),
    ]


def called(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, words)])
    return exit_status(train_net.run)


def train_or_evaluate(kind: str, shapes: Path, out: Path, *words: str, first: Sequence[str] = ()) -> dict:
    """train_net.main with the small options, those `first` before them and other words after them."""
    config = ["--config-file", str(CONFIGS / f"{FILES[kind]}_6_6_torchvision.yaml")]
    set_to = [str(value) for value in options(shapes, kind, out)]
    command = [*config, *registered(shapes, kind), *first, *set_to, *words]
    try:
        return train_net.main(train_net.get_parser().parse_args(command))
    finally:
        forget()


@pytest.mark.parametrize("kind", FILES)
def test_train_resume_evaluate(kind: str, shapes: Path, tmp_path: Path) -> None:
    main = functools.partial(train_or_evaluate, kind, shapes, tmp_path)
    main()
    final = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert final["iteration"] == 1
    main("SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "(2,)", first=["--resume"])
    continued = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert continued["iteration"] == 2
    optimizer = continued["trainer"]["_trainer"]["optimizer"]
    steps = [state["step"].item() for state in optimizer["state"].values()]
    assert set(steps) == {3.0}
    again = main("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), first=["--eval-only"])
    wanted = {"boxes": {"bbox"}, "masks": {"bbox", "segm"}, "panoptic": {"panoptic_seg"}}[kind]
    assert set(again) == wanted
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    for task in wanted:
        at_the_end = {name: lines[-1][f"{task}/{name}"] for name in again[task]}
        np.testing.assert_equal(dict(again[task]), at_the_end)
    if kind == "panoptic":
        assert 0 <= again["panoptic_seg"]["PQ"] <= 100
    logged = lines[0]
    assert {"class_error", "cardinality_error", "loss_ce", "lr"} <= set(logged)
    losses = sum(value for name, value in logged.items() if name.startswith("loss"))
    assert logged["total_loss"] == pytest.approx(losses, rel=1e-4)


def test_query_groups_train_and_nothing_else_sees_them(shapes: Path, tmp_path: Path) -> None:
    main = functools.partial(train_or_evaluate, "masks", shapes, tmp_path)
    groups = ("MODEL.DETR.QUERY_GROUPS", "4")
    weights = tmp_path / "model_final.pth"
    main(*groups)
    once = torch.load(weights, weights_only=False)["model"]
    name = "other_queries.weight"
    assert once[name].shape == (3 * 6, 128)  # six queries a group
    main(*groups, "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "(2,)", first=["--resume"])
    twice = torch.load(weights, weights_only=False)["model"]
    moved = (twice[name] - once[name]).abs()
    assert 0 < moved.max() < 0.01  # it trains, and went on from where it was
    with pytest.raises(UserError, match="has MODEL.DETR.QUERY_GROUPS 4, not 2"):
        main("MODEL.DETR.QUERY_GROUPS", "2", first=["--resume"])

    evaluated = ("MODEL.WEIGHTS", str(weights))
    with_key, without = (main(*evaluated, *key, first=["--eval-only"]) for key in (groups, ()))
    np.testing.assert_equal(with_key, without)
    paths = ["--source_model", str(weights), "--output_model", str(tmp_path / "detr.pth"), "--to", "detr"]
    assert converter.main(paths) == 0  # having compared both models on an image
    assert not [key for key in torch.load(tmp_path / "detr.pth")["model"] if "other_queries" in key]

    one_group = {key: tensor for key, tensor in twice.items() if key != name}
    torch.save({"model": one_group}, tmp_path / "one.pth")
    main("MODEL.WEIGHTS", str(tmp_path / "one.pth"), "MODEL.DETR.QUERY_GROUPS", "2", "SOLVER.BASE_LR", "0.0")
    first = next(value for key, value in twice.items() if key.endswith("query_embed.weight"))
    copies = torch.load(weights, weights_only=False)["model"][name]
    assert 0.05 * first.std() < (copies - first).std() < 0.2 * first.std()


def test_the_panoptic_evaluator_finds_the_truth_perfect(shapes: Path) -> None:
    for text in registered(shapes, "panoptic")[1::2]:
        train_net.register(text)
    evaluator = DetrPanopticEvaluator("val")
    from detectron2.data import detection_utils

    for record in DatasetCatalog.get("val"):
        colours = detection_utils.read_image(record["pan_seg_file_name"], "RGB").astype(np.int32)
        ids = torch.from_numpy(colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2])
        segments = [{k: one[k] for k in ("id", "category_id", "isthing")} for one in record["segments_info"]]
        evaluator.process([record], [{"panoptic_seg": (ids, segments)}])
    result = evaluator.evaluate()
    assert result is not None
    figures = result["panoptic_seg"]
    assert figures["PQ"] == figures["PQ_th"] == figures["PQ_st"] == 100
    evaluator.reset()
    evaluator.process([record], [{"panoptic_seg": (torch.zeros_like(ids), [])}])
    nothing = evaluator.evaluate()
    assert nothing is not None and nothing["panoptic_seg"]["PQ"] == 0


def test_coco_panoptic_evaluator_of_detectron2_reads_the_same_metadata(shapes: Path) -> None:
    for text in registered(shapes, "panoptic")[1::2]:
        train_net.register(text)
    DatasetCatalog.get("train")
    metadata = MetadataCatalog.get("train")
    both = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    assert sorted(both.values()) == list(range(len(metadata.thing_classes)))


def test_mistakes_are_reported_in_one_line(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config-file", CONFIGS / "detr_256_6_6_torchvision.yaml"]
    boxes = [*config, *registered(shapes, "boxes")]
    small = options(shapes, "boxes", tmp_path)
    mistakes = {
        "write NAME=annotations.json:images": [*config, "--register", "mine=a.json"],
        "there is no file": [*config, "--register", "mine=a.json:b"],
        "there is no folder": [*config, "--register", f"mine={shapes}/annotations/{TRAIN_BOXES}:none"],
        "registered already": [*boxes, "--register", boxes[3]],
        "no such file": ["--config-file", tmp_path / "none.yaml"],
        "both set": [*boxes, *small, "MODEL.WEIGHTS", "a.pth", "MODEL.DETR.FROZEN_WEIGHTS", "b.pth"],
        "neither ADAMW nor SGD": [*boxes, *small, "SOLVER.OPTIMIZER", "LION"],
        "NUM_CLASSES 1: too few, data set train has": [*boxes, *small, "MODEL.DETR.NUM_CLASSES", 1],
    }
    for message, words in mistakes.items():
        forget()
        capsys.readouterr()
        assert called(monkeypatch, *words) == 2, message
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and message in last, last
