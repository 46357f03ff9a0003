"""Panoptic quality of files: the command, what it refuses, and the evaluator, in one process and in two."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.panoptic_eval import PanopticEvaluator, main
from datasets.panoptic_files import evaluate_files, panoptic_quality
from datasets.panoptic_png import encode_png
from tests.datasets.panoptic_scenes import (
    CATEGORIES,
    CLASSES,
    assert_same_figures,
    random_scene,
    record,
    straightforward_figures,
)
from tests.helpers import python
from tests.ranks import ranks
from util.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "panoptic"


class Files(NamedTuple):
    gt_json: Path
    gt_folder: Path
    pred_json: Path
    pred_folder: Path


def write_files(root: Path, count: int = 9) -> tuple[Files, list[tuple]]:
    """Random scenes as files, predictions in another order; the paths, and the scenes."""
    scenes = [random_scene(number) for number in range(count)]
    content = {side: {"annotations": [], "categories": CATEGORIES} for side in ("gt", "pred")}
    for number, scene in enumerate(scenes):
        for side, ids, records in (("gt", scene[0], scene[2]), ("pred", scene[1], scene[3])):
            (root / side).mkdir(parents=True, exist_ok=True)
            (root / side / f"{side}{number}.png").write_bytes(encode_png(ids))
            entry = {"image_id": 70 + number, "file_name": f"{side}{number}.png", "segments_info": records}
            content[side]["annotations"].insert(0 if side == "pred" else number, entry)
    for side in ("gt", "pred"):
        (root / f"{side}.json").write_text(json.dumps(content[side]))
    return Files(root / "gt.json", root / "gt", root / "pred.json", root / "pred"), scenes


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_files_for_any_number_of_processes(tmp_path):
    files, scenes = write_files(tmp_path, 80)
    expected = straightforward_figures(scenes)
    assert expected["All"]["n"] == 5 and expected["per_class"][7]["pq"] == 0
    results = [panoptic_quality(*files, workers=workers) for workers in (1, 2, None)]
    assert_same_figures(results[0], expected)
    assert all(result == results[0] for result in results)


def test_the_last_prediction_of_an_image_counts_and_others_are_not_looked_at(tmp_path):
    files, scenes = write_files(tmp_path)

    def change(content):
        first = content["annotations"][-1]
        content["annotations"].insert(0, {**first, "file_name": "none.png"})
        content["annotations"].append({**first, "image_id": 5, "file_name": "none.png"})

    edit(files.pred_json, change)
    assert_same_figures(panoptic_quality(*files), straightforward_figures(scenes))


def arguments(files, *more):
    names = ("--gt_json", "--gt_folder", "--pred_json", "--pred_folder")
    return [word for pair in zip(names, map(str, files), strict=True) for word in pair] + list(map(str, more))


def test_the_command(tmp_path, capsys):
    files, scenes = write_files(tmp_path)
    expected = straightforward_figures(scenes)
    assert main(arguments(files, "--json", tmp_path / "out.json")) == 0
    assert_same_figures(json.loads((tmp_path / "out.json").read_text()), expected)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[1][:2] == ["All", f"{100 * expected['All']['pq']:.1f}"]
    assert [row[:3] for row in table if "bus" in row] == [["7", "bus", "thing"]]
    short = ["--gt_json", str(files.gt_json), "--pred_json", str(files.pred_json)]
    assert main(short) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == table
    assert main(arguments(files, "--json", tmp_path / "none" / "out.json")) == 2
    assert "out.json: cannot be written" in capsys.readouterr().err


def test_the_command_does_not_load_torch():
    code = "import sys, datasets.panoptic_eval; sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_panopticapi_counts_the_same(tmp_path):
    official = pytest.importorskip("panopticapi.evaluation", reason="make install-dev installs panopticapi")
    files, _ = write_files(tmp_path, 30)
    assert main(arguments(files, "--json", tmp_path / "out.json")) == 0
    paths = map(str, (files.gt_json, files.pred_json, files.gt_folder, files.pred_folder))
    expected = official.pq_compute(*paths)
    expected["per_class"] = {str(key): value for key, value in expected["per_class"].items()}  # in JSON
    assert_same_figures(json.loads((tmp_path / "out.json").read_text()), expected, 1e-9)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_what_panopticapi_says(tmp_path):
    files = Files(SHARED / "gt.json", SHARED / "gt", SHARED / "pred.json", SHARED / "pred")
    assert main(arguments(files, "--json", tmp_path / "out.json")) == 0
    found, expected = (json.loads(p.read_text()) for p in (tmp_path / "out.json", SHARED / "expected.json"))
    assert_same_figures(found, expected, 1e-9)


# ---- errors


def set_in_prediction(**more):
    def change(root):
        edit(root / "pred.json", lambda content: content["annotations"][-1].update(more))

    return change


def edit_segments(side, change):
    """Change the records of the first image's segments."""
    place = 0 if side == "gt" else -1
    return lambda root: edit(
        root / f"{side}.json", lambda c: change(c["annotations"][place]["segments_info"])
    )


def replace_png(side, content):
    return lambda root: (root / side / f"{side}0.png").write_bytes(content)


def grey_png():
    buffer = io.BytesIO()
    Image.new("L", (4, 5)).save(buffer, "PNG")
    return buffer.getvalue()


FAULTS = {
    "unknown in the JSON": (edit_segments("pred", lambda segments: segments.__delitem__(0)),
        "image 70 .*pred0.png.*: predicted segment 8 is in the PNG, and not in the JSON"),
    "unknown in the PNG": (edit_segments("pred", lambda segments: segments.append(record(4711, 1))),
        "image 70 .*pred0.png.*: predicted segment 4711 is in the JSON, and not in the PNG"),
    "category": (edit_segments("pred", lambda segments: segments[0].update(category_id=55)),
        "image 70 .*predicted segment 8 has category 55"),
    "true category": (edit_segments("gt", lambda segments: segments[0].update(category_id=55)),
        "image 70 .*true segment 5 has category 55"),
    "true area": (edit_segments("gt", lambda segments: segments[0].update(area=3)),
        "image 70 .*true segment 5 has more pixels than its area"),
    "no category": (edit_segments("pred", lambda segments: segments[0].pop("category_id")),
        "image 70: a segment of .*pred0.png has no valid id, category_id"),
    "no true area": (edit_segments("gt", lambda segments: segments[0].pop("area")),
        "image 70: a segment of .*gt0.png or .* has no valid id, category_id or area"),
    "type of an id": (edit_segments("pred", lambda segments: segments[0].update(id="8")),
        "image 70: a segment of .* has no valid id"),
    "size": (
        replace_png("pred", encode_png(np.ones((4, 6), np.int32))), "4 x 6 pixels, the ground truth 4 x 5"),
    "no prediction": (lambda root: edit(root / "pred.json", lambda content: content["annotations"].pop()),
        "pred.json has no prediction for image 70 of .*gt.json"),
    "no PNG": (
        set_in_prediction(file_name="away.png"), "cannot read the panoptic PNG .*away.png: No such file"),
    "no true PNG": (lambda root: (root / "gt" / "gt0.png").unlink(), "gt0.png: No such file"),
    "cut PNG": (replace_png("pred", encode_png(np.full((40, 50), 8, np.int32))[:60]), "PNG .*pred0.png"),
    "no PNG at all": (replace_png("pred", b"no PNG"), "cannot read the panoptic PNG .*pred0.png"),
    "grey PNG": (replace_png("gt", grey_png()), "gt0.png is no panoptic PNG: its pixels are L"),
    "no file": (lambda root: (root / "pred.json").unlink(), "pred.json: No such file"),
    "no JSON": (lambda root: (root / "gt.json").write_text("{"), "gt.json is no valid JSON"),
    "no annotations": (
        lambda root: (root / "pred.json").write_text("{}"), "pred.json: it has no list of annot"),
    "no segments": (
        set_in_prediction(segments_info=None), "annotation number .* has no segments_info of type"),
    "no isthing": (lambda root: edit(root / "gt.json", lambda c: c["categories"][0].pop("isthing")),
        "gt.json: categories must be a list of objects with id and isthing"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(tmp_path, capsys, fault):
    files, _ = write_files(tmp_path, 2)
    whole = np.full((4, 5), 5, np.int32)
    (tmp_path / "gt" / "gt0.png").write_bytes(encode_png(whole))
    (tmp_path / "pred" / "pred0.png").write_bytes(encode_png(whole + 3))
    edit(files.gt_json, lambda content: content["annotations"][0].update(segments_info=[record(5, 1, 20)]))
    edit(files.pred_json, lambda content: content["annotations"][-1].update(segments_info=[record(8, 1)]))
    evaluate_files(*files, workers=1)
    damage, message = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate_files(*files)
    assert main(arguments(files)) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1


def test_a_fault_found_by_another_process_is_named_too(tmp_path):
    files, _ = write_files(tmp_path, 80)
    (tmp_path / "pred" / "pred70.png").unlink()
    with pytest.raises(UserError, match="pred70.png: No such file"):
        evaluate_files(*files, workers=2)


# ---- the evaluator


def predictions_of(files):
    entries = json.loads(files.pred_json.read_text())["annotations"]
    return [{**e, "png_string": (files.pred_folder / e["file_name"]).read_bytes()} for e in entries]


def test_the_evaluator(tmp_path, capsys):
    files, scenes = write_files(tmp_path / "data")
    evaluator = PanopticEvaluator(
        files.gt_json, files.gt_folder, output_dir=tmp_path / "out" / "panoptic_eval"
    )
    predictions = predictions_of(files)
    evaluator.update(predictions[:4])
    evaluator.update(predictions[4:])
    evaluator.update([{**predictions[0], "png_string": b"", "segments_info": []}])  # counted already
    evaluator.synchronize_between_processes()
    result = evaluator.summarize()
    assert_same_figures(result, straightforward_figures(scenes))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["PQ", "All", "Things", "Stuff"]
    assert "png_string" in predictions[0]
    written = json.loads((tmp_path / "out" / "panoptic_eval" / "predictions.json").read_text())
    expected = json.loads(files.pred_json.read_text())["annotations"]
    assert written["annotations"] == sorted(expected, key=lambda entry: entry["image_id"])
    for entry in expected:
        content = (tmp_path / "out" / "panoptic_eval" / entry["file_name"]).read_bytes()
        assert content == (files.pred_folder / entry["file_name"]).read_bytes()
    assert evaluator.evaluation is not None
    rows = evaluator.evaluation.per_class()
    assert [row["id"] for row in rows] == CLASSES.tolist()
    assert [row["name"] for row in rows if row["pq"] is None] == ["bus"]


def test_the_evaluator_without_a_folder(tmp_path, monkeypatch):
    files, scenes = write_files(tmp_path / "data")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    evaluator = PanopticEvaluator(files.gt_json, files.gt_folder, output_dir="")
    evaluator.update(predictions_of(files))
    assert_same_figures(evaluator.summarize(), straightforward_figures(scenes))
    assert not list(Path().iterdir())
    assert PanopticEvaluator(files.gt_json, files.gt_folder).output_dir == "panoptic_eval"  # as published


def test_the_evaluator_misses_an_image_or_its_folder(tmp_path):
    files, _ = write_files(tmp_path / "data")
    evaluator = PanopticEvaluator(files.gt_json, files.gt_folder, output_dir=tmp_path / "out")
    evaluator.update([p for p in predictions_of(files) if p["image_id"] != 74])
    with pytest.raises(UserError, match=r"predictions.json has no prediction for image 74"):
        evaluator.summarize()
    (tmp_path / "file").write_text("")
    evaluator = PanopticEvaluator(files.gt_json, files.gt_folder, output_dir=tmp_path / "file")
    with pytest.raises(UserError, match="cannot write predictions to .*file"):
        evaluator.summarize()


def evaluate_share(files, folder):
    rank = torch.distributed.get_rank()
    predictions = predictions_of(files)
    evaluator = PanopticEvaluator(files.gt_json, files.gt_folder, output_dir=folder / f"out{rank}")
    evaluator.update(predictions[rank::2] + predictions[:2])  # the first two are given twice
    evaluator.synchronize_between_processes()
    return evaluator.summarize()


def test_two_processes_that_share_no_folder(tmp_path):
    files, scenes = write_files(tmp_path / "data")
    answers = ranks().run(2, evaluate_share, files, tmp_path)
    assert answers[1] is None and not (tmp_path / "out1").exists()
    assert_same_figures(answers[0], straightforward_figures(scenes))
    assert len(list((tmp_path / "out0").glob("*.png"))) == len(scenes)
