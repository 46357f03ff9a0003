"""The training report of whole runs of main.py."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from tests.helpers import CUSTOM_CATEGORIES, TINY, Prepared, assert_equal, load, read_log, run, torchrun


def flags_of(prepared: Prepared, out: Path, *more: object) -> list[object]:
    start = ["--resume", prepared.start, "--coco_path", prepared.root]
    return [*start, "--batch_size", 2, "--epochs", 2, "--output_dir", out, *more]


@pytest.fixture(scope="module")
def reported(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two epochs with a report, on TensorBoard too."""
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("reported")
    assert run(*flags_of(prepared, out, "--tensorboard")) == 0
    return out


def test_a_run_leaves_a_report(reported: Path) -> None:
    html = (reported / "report.html").read_text(encoding="utf-8")
    line = read_log(reported)[-1]
    assert f"<strong>{line['test_coco_eval_bbox'][0]:.3f}</strong>" in html
    assert "2 of 2 epochs are trained and evaluated; the newest is epoch 1." in html
    assert html.count('class="card picture"') == 4, "as many as there are"
    for name in CUSTOM_CATEGORIES.values():
        assert f">{name}</td>" in html
    assert not re.findall(r'(?:src|href)="(?!#|data:)', html), "nothing is fetched"
    assert not list(reported.glob(".*.part"))


def test_it_changes_nothing_else(reported: Path, prepared: Prepared, tmp_path: Path) -> None:
    assert run(*flags_of(prepared, tmp_path, "--no_report")) == 0
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "log.txt").read_text() == (reported / "log.txt").read_text()
    one, other = (load(folder / "checkpoint.pth") for folder in (tmp_path, reported))
    for key in ("model", "optimizer"):
        assert_equal(one[key], other[key])
    one, other = (checkpoint["ranks"][0]["random"] for checkpoint in (one, other))
    assert one["random"] == other["random"]
    assert_equal([one["numpy"][1:], one["torch"]], [other["numpy"][1:], other["torch"]])


def test_tensorboard_gets_pictures_and_classes(reported: Path) -> None:
    import csv
    import io

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(reported / "tensorboard"))
    events.Reload()
    sheets = events.Images("validation")
    assert [sheet.step for sheet in sheets] == [0, 1]
    with Image.open(io.BytesIO(sheets[1].encoded_image_string)) as image:
        assert (image.format, image.size) == ("JPEG", (sheets[1].width, sheets[1].height))
        assert np.asarray(image.convert("L")).std() > 10
    with open(reported / "eval" / "per_class.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["AP"]]
    assert rows
    for row in rows:
        last = events.Scalars(f"classes_bbox_AP/{row['name']}")[-1]
        assert (last.step, last.value) == (1, pytest.approx(float(row["AP"]), rel=1e-5))


def test_an_evaluation_alone_leaves_eval_html(prepared: Prepared, tmp_path: Path) -> None:
    assert run(*flags_of(prepared, tmp_path, "--eval")) == 0
    html = (tmp_path / "eval.html").read_text(encoding="utf-8")
    assert "evaluation report</h1>" in html
    assert '<section id="curves">' not in html
    assert '<section id="mistakes">' in html
    assert not (tmp_path / "report.html").exists()


def test_masks_are_shown(prepared: Prepared, tmp_path: Path) -> None:
    flags = ["--coco_path", prepared.root, "--masks", "--hidden_dim", 128, "--nheads", 8]
    flags += ["--backbone_stages", 3]
    assert run(*flags, "--batch_size", 2, "--epochs", 1, "--output_dir", tmp_path) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mask AP50</th>" in html
    assert html.count("data:image/png") > 4, "masks of objects and of detections"


def test_panoptic_figures_and_segments(tmp_path: Path) -> None:
    from datasets.shapes import write_shapes

    root = write_shapes(tmp_path / "shapes", train=2, val=3, size=64, workers=1)
    flags = ["--dataset_file", "coco_panoptic", "--coco_path", root, "--coco_panoptic_path", root, "--masks"]
    flags += ["--hidden_dim", 128, "--nheads", 8, "--backbone_stages", 3, "--batch_size", 2, "--epochs", 1]
    assert run(*flags, "--output_dir", tmp_path / "run") == 0
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f">{title}</th>" in html for title in ("PQ", "SQ", "RQ", "AP", "mask AP"))
    assert html.count('class="card picture"') == 3
    assert all(f">{name}</td>" in html for name in ("circle", "sky"))
    assert '<figure class="card"><figcaption><b>Panoptic quality</b>' in html


def test_a_fault_is_a_warning(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("out of paper")

    monkeypatch.setattr("report.page", fail)
    with pytest.warns(UserWarning, match=r"report\.html is not up to date: ValueError: out of paper"):
        assert run(*flags_of(prepared, tmp_path)) == 0
    assert len(read_log(tmp_path)) == 2


def test_resuming_keeps_the_curves(prepared: Prepared, tmp_path: Path) -> None:
    assert run(*flags_of(prepared, tmp_path)) == 0
    again = ["--resume", "auto", "--coco_path", prepared.root, "--batch_size", 2, "--epochs", 3]
    assert run(*again, "--output_dir", tmp_path) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "3 of 3 epochs are trained and evaluated; the newest is epoch 2." in html


@pytest.mark.slow
def test_two_processes_write_one_report(prepared: Prepared, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = [*TINY.split(), *flags_of(prepared, tmp_path, "--tensorboard", "--ema", 0.5)]
    ended = torchrun(2, "main.py", *words)
    assert ended.returncode == 0, ended.stderr
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count('class="card picture"') == 4, "those of the other process too"
    assert html.count("ground truth</span>") == html.count(">found</span>") == 4
    assert "(dashed: weights averaged)" in html
    assert "is not up to date" not in ended.stderr
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_detections_and_ground_truth_are_those_of_the_evaluation(coco_root: Path) -> None:
    import torch

    from datasets import build_dataset, get_coco_api_from_dataset
    from datasets.coco_eval import CocoEvaluator
    from report.source import ReportSource

    data = build_dataset(
        "val", main.get_args_parser().parse_args([*TINY.split(), f"--coco_path={coco_root}"])
    )
    truth = get_coco_api_from_dataset(data)
    evaluator = CocoEvaluator(truth, ["bbox"])
    box = torch.tensor([[8.0, 16.0, 40.0, 48.0], [0.0, 0.0, 96.0, 64.0]])
    found = {"boxes": box, "labels": torch.tensor([2, 3]), "scores": torch.tensor([0.7, 0.9])}
    evaluator.update(dict.fromkeys(truth.getImgIds(), found))
    source = ReportSource(data)

    ids = source.image_ids(3)
    assert ids == truth.getImgIds()[:3]
    for image_id in ids:
        objects = truth.imgToAnns[image_id]
        regions = source.truth(image_id)
        assert [region.label for region in regions] == [one["category_id"] for one in objects]
        for region, one in zip(regions, objects, strict=True):
            x, y, width, height = one["bbox"]
            corners = [x / 96, y / 64, min(1, (x + width) / 96), min(1, (y + height) / 64)]
            assert region.box == pytest.approx(corners, abs=1e-4)
    for regions in source.found(ids, evaluator, 5).values():
        (region,) = regions  # nothing has category 3
        assert (region.label, region.score) == (2, pytest.approx(0.7))
        assert region.box == pytest.approx((8 / 96, 16 / 64, 40 / 96, 48 / 64))

    for most in (4, 2):
        both = source.boxes(evaluator, most)
        assert both is not None
        assert both[0].image_id.tolist() == truth.getImgIds()[:most]
        assert both[0].box.tolist() == [[8, 16, 32, 32]] * most
        expected = [one["bbox"] for i in truth.getImgIds()[:most] for one in truth.imgToAnns[i]]
        assert both[1].box.tolist() == expected
