"""The command line on whole folders: files written, numbers equal evaluation's, mistakes in one line."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from datasets.panoptic_png import read_ids
from tests.doctor.red_rectangles import SPECIAL, save_special
from tests.helpers import (
    CUSTOM_CATEGORIES,
    ROOT,
    TINY_MODEL,
    VAL_SIZES,
    run,
)
from tests.inference.panoptic_model import NAMES, noise, save_panoptic
from tests.reference.settings import build

STUFF = (5, 9)  # of the classes that the panoptic model finds


def predicted(*words: object) -> int:
    """predict.py in this process, on the CPU, without workers unless asked for -> exit status."""
    try:
        return predict.run(["--device", "cpu", "--num_workers", "0", *map(str, words)])
    except SystemExit as end:  # argparse ends so
        return int(end.code or 0)


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoint.pth"


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a panoptic model of filled weights that is sure of different things and stuff."""
    folder = tmp_path_factory.mktemp("panoptic")
    seen = [noise(folder / f"{seed}.png", seed=seed) for seed in range(3)]
    return save_panoptic(folder / "checkpoint.pth", seen, STUFF)


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def assert_same_results(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """The same detections but for rounding."""
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        assert (ours["image_id"], ours["category_id"]) == (theirs["image_id"], theirs["category_id"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-2)


# --- What is written -----------------------------------------------------------------------------------


def special_set(root: Path, source: Path) -> Path:
    """Pictures of a set's validation split as files of other kinds, with their objects."""
    (root / "val2017").mkdir(parents=True)
    for name in ("train2017", "annotations"):
        shutil.copytree(source / name, root / name)
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, kind in enumerate(SPECIAL, 1):
        image = content["images"][number % len(content["images"])]
        pixels = np.asarray(Image.open(source / "val2017" / image["file_name"]))
        path = save_special(pixels, root / "val2017" / f"{number}.x", kind)
        images.append({**image, "id": number, "file_name": path.name})
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                objects.append({**one, "id": len(objects) + 1, "image_id": number})
    file.write_text(json.dumps({**content, "images": images, "annotations": objects}))
    return root


@pytest.mark.parametrize("special", [False, True])
def test_results_of_every_query_have_the_figures_of_an_evaluation(prepared, checkpoint, tmp_path, special):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    root = special_set(tmp_path / "set", prepared.root) if special else prepared.root
    words = ["--coco_path", root, "--eval", "--resume", checkpoint, "--output_dir", tmp_path / "eval"]
    assert run(*words) == 0
    expected = torch.load(tmp_path / "eval" / "eval.pth", weights_only=False)
    pictures = root / "val2017"
    words = ["--resume", checkpoint, pictures, "--threshold", 0, "--json", "--output_dir", tmp_path]
    assert predicted(*words, "--no_pictures") == 0
    assert len(results(tmp_path)) == 10 * len(SPECIAL if special else VAL_SIZES)
    assert not list(tmp_path.glob("*.jpg"))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / "instances_val2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    assert expected["precision"].max() > 0
    np.testing.assert_allclose(evaluation.eval["precision"], expected["precision"], atol=1e-9)
    np.testing.assert_allclose(evaluation.eval["recall"], expected["recall"], atol=1e-9)


def test_a_folder_is_drawn_and_listed(prepared, checkpoint, tmp_path, capsys):
    pictures = sorted((prepared.root / "val2017").iterdir())
    words = ["--resume", checkpoint, pictures[0].parent, "--threshold", 0.2]
    assert predicted(*words, "--output_dir", tmp_path / "new" / "out") == 0
    drawn = sorted((tmp_path / "new" / "out").iterdir())
    assert [path.name for path in drawn] == [path.name for path in pictures]
    for path, (width, height) in zip(drawn, VAL_SIZES, strict=True):
        with Image.open(path) as image:
            assert image.size[0] / image.size[1] == width / height and image.format == "JPEG"
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(pictures) + 1
    for line, path in zip(printed, pictures, strict=False):
        name = "|".join(CUSTOM_CATEGORIES.values())
        assert re.fullmatch(rf"{re.escape(str(path))}: (nothing|\d+ ({name})(, \d+ ({name}))*)", line)
    assert printed[-1] == f"4 of 4 pictures done: {tmp_path / 'new' / 'out'}"


def test_batches_and_workers_change_nothing_where_sizes_are_the_same(prepared, checkpoint, tmp_path):
    words = ["--resume", checkpoint, prepared.root / "val2017", "--threshold", 0, "--json", "--no_pictures"]
    assert predicted(*words, "--output_dir", tmp_path / "one") == 0
    more = ["--batch_size", 3, "--num_workers", 2, "--output_dir", tmp_path / "more"]
    assert predicted(*words, *more) == 0
    assert_same_results(results(tmp_path / "more"), results(tmp_path / "one"))


def test_boxes_lie_in_the_upright_picture(checkpoint, tmp_path):
    upright = noise(tmp_path / "1.png", 96, 64)
    turned = tmp_path / "in" / "1.png"
    turned.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left, to be turned to the right
    Image.open(upright).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    for path, out in ((upright, "a"), (turned, "b")):
        words = ["--resume", checkpoint, path, "--threshold", 0, "--json", "--output_dir", tmp_path / out]
        assert predicted(*words) == 0
    assert_same_results(results(tmp_path / "a"), results(tmp_path / "b"))
    with Image.open(tmp_path / "b" / "1.jpg") as drawn:
        assert drawn.height > drawn.width


def test_masks_in_coco_format(panoptic, tmp_path):
    from pycocotools import mask as mask_utils

    words = ["--resume", panoptic, noise(tmp_path / "a.png"), "--masks", "--threshold", 0, "--json"]
    assert predicted(*words, "--output_dir", tmp_path / "out", "--format", "png") == 0
    records = results(tmp_path / "out")
    assert records and not {record["category_id"] for record in records} & {*STUFF}
    masks = np.stack([mask_utils.decode(record["segmentation"]) for record in records])
    assert masks.shape[1:] == (64, 96) and 0 < masks.mean() < 1
    assert (tmp_path / "out" / "a.png").exists()


def test_panoptic_files_are_those_of_coco(panoptic, tmp_path):
    from datasets.panoptic_eval import main as evaluate

    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        noise(folder / f"{i + 7:012d}.png", seed=i)
    out = tmp_path / "out"
    assert predicted("--resume", panoptic, folder, "--threshold", 0.3, "--json", "--output_dir", out) == 0
    content = json.loads((out / "panoptic.json").read_text())
    assert {entry["id"]: entry["name"] for entry in content["categories"]} == NAMES
    assert [image["id"] for image in content["images"]] == [7, 8, 9]
    for entry in content["annotations"]:
        ids, counts = np.unique(read_ids(out / "panoptic" / entry["file_name"]), return_counts=True)
        assert len(ids) > 1 and ids[0] > 0  # 0 stands for no segment
        assert {s["id"]: s["area"] for s in entry["segments_info"]} == dict(zip(ids, counts, strict=True))
        assert all(s["isthing"] == (s["category_id"] not in STUFF) for s in entry["segments_info"])
    table = io.StringIO()
    words = ["--gt_json", out / "panoptic.json", "--gt_folder", out / "panoptic"]
    words += ["--pred_json", out / "panoptic.json", "--pred_folder", out / "panoptic"]
    with contextlib.redirect_stdout(table):
        evaluate(list(map(str, words)))
    assert re.search(r"All.*100\.0", table.getvalue())


def test_a_picture_of_no_segments_has_none(panoptic, tmp_path):
    words = ["--resume", panoptic, noise(tmp_path / "a.png"), "--threshold", 1, "--json"]
    assert predicted(*words, "--output_dir", tmp_path / "out") == 0
    assert (read_ids(tmp_path / "out" / "panoptic" / "a.png") == 0).all()
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert content["annotations"][0]["segments_info"] == []


@pytest.mark.parametrize("model", ["checkpoint", "panoptic"])
def test_attention_is_drawn(model, tmp_path, request):
    path = request.getfixturevalue(model)
    picture = noise(tmp_path / "a.png")
    words = ["--resume", path, "--threshold", 0.1, "--output_dir", tmp_path / "out", "--no_pictures"]
    assert predicted(*words, "--attention", picture) == 0  # the flag's own value may be left out
    with Image.open(tmp_path / "out" / "attention" / "a.jpg") as sheet:
        decoder = sheet.size
    points = ["--point", "10,20", "--point", "95,63"]
    assert predicted(*words, picture, "--attention", "encoder", *points) == 0
    with Image.open(tmp_path / "out" / "attention" / "a.jpg") as sheet:
        assert sheet.size != decoder
    assert not (tmp_path / "out" / "a.jpg").exists()


def test_pictures_of_one_name_keep_apart(checkpoint, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        noise(tmp_path / folder / "a.png")
    words = ["--resume", checkpoint, tmp_path / "x", tmp_path / "y", "--output_dir", tmp_path / "out"]
    assert predicted(*words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.jpg", "a.jpg"]


# --- What goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_named_and_skipped(workers, checkpoint, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    noise(folder / "a.png"), noise(folder / "c.png")
    (folder / "b.jpg").write_text("no picture")
    words = ["--resume", checkpoint, folder, "--json", "--output_dir", out, "--threshold", 0]
    assert predicted(*words, "--num_workers", workers, "--batch_size", 2) == 1
    streams = capsys.readouterr()
    assert streams.err.splitlines() == [
        f"{folder / 'b.jpg'}: cannot be read (not a picture of a known format, or damaged)"
    ]
    assert streams.out.splitlines()[-1].startswith("2 of 3 pictures done")
    assert sorted(path.name for path in out.iterdir()) == ["a.jpg", "c.jpg", "results.json"]
    assert {record["image_id"] for record in results(out)} == {1, 3}


def test_a_point_outside_one_picture_skips_it(checkpoint, tmp_path, capsys):
    small, large = noise(tmp_path / "small.png"), noise(tmp_path / "large.png", 128, 192)
    words = ["--resume", checkpoint, small, large, "--output_dir", tmp_path / "out"]
    assert predicted(*words, "--attention", "encoder", "--point", "100,20") == 1
    assert "small.png: --point 100,20 lies outside its 96 x 64 pixels" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "attention").iterdir()] == ["large.jpg"]


MISTAKES = {
    "no such picture": (["nowhere.jpg"], "nowhere.jpg: there is no such picture"),
    "an empty folder": (["{folder}"], "no pictures in this folder"),
    "no such model": (["{picture}", "--resume", "detr_resnet18"], "detr_resnet18: neither a file"),
    "not a checkpoint": (["{picture}", "--resume", "{picture}"], "a.png"),
    "the output is a file": (["{picture}", "--output_dir", "{picture}"], "nothing can be written to"),
    "an original would be lost": (["{jpeg}", "--output_dir", "{root}"], "would be overwritten"),
    "no mask head": (["{picture}", "--panoptic"], "cannot give panoptic, the model has no mask head"),
    "a point without encoder": (["{picture}", "--point", "1,2"], "--point belongs to --attention encoder"),
    "encoder without a point": (["{picture}", "--attention", "encoder"], "with --point X,Y"),
    "nothing to write": (["{picture}", "--no_pictures"], "nothing would be written"),
    "a threshold above 1": (["{picture}", "--threshold", "70"], "70 is not within 0 and 1"),
    "no point": (["{picture}", "--attention", "encoder", "--point", "5"], "5 is not X,Y"),
    "two kinds": (["{picture}", "--masks", "--boxes"], "not allowed with"),
    "no batch": (["{picture}", "--batch_size", "0"], "0 is below 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_in_one_line(mistake, checkpoint, tmp_path, refused):
    (tmp_path / "folder").mkdir()
    picture, jpeg = noise(tmp_path / "a.png"), noise(tmp_path / "b.jpg")
    places = {"root": tmp_path, "folder": tmp_path / "folder", "picture": picture, "jpeg": jpeg}
    before = picture.read_bytes(), jpeg.read_bytes()
    words, message = MISTAKES[mistake]
    given = [word.format(**places) for word in words]
    refused(["--resume", checkpoint, "--output_dir", tmp_path / "out", *given], message, run=predicted)
    assert (picture.read_bytes(), jpeg.read_bytes()) == before


def test_pictures_beyond_learned_positions_are_reported(tmp_path, refused):
    model = build(f"{TINY_MODEL} --backbone_stages 2 --position_embedding learned", 0)[0]
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    words: list[object] = ["--resume", tmp_path / "a.pth", "--nheads", 4, noise(tmp_path / "a.png", 20, 200)]
    words += ["--eval_scale", 400, "--max_size", 4000, "--output_dir", tmp_path / "out"]
    refused(words, "a.png", "lower --eval_scale and --max_size", run=predicted)


def test_no_encoder_no_self_attention(tmp_path, refused):
    model = build(f"{TINY_MODEL} --backbone_stages 2 --enc_layers 0", 0)[0]
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    words = ["--resume", tmp_path / "a.pth", noise(tmp_path / "a.png"), "--attention", "encoder"]
    refused([*words, "--point", "1,2", "--output_dir", tmp_path / "out"], "has no encoder", run=predicted)


# --- Around it -----------------------------------------------------------------------------------------


def test_the_python_of_the_documentation_works(checkpoint, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    assert "load_trained(" in code
    code = code.replace('"detr_resnet50"', repr(str(checkpoint)))
    noise(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert (tmp_path / "found.jpg").stat().st_size > 1000
    assert names["found"].boxes.shape[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize("run_folder", ["demo", "demo-panoptic"])
def test_what_the_demo_trained_finds_its_objects(run_folder: str, tmp_path: Path) -> None:
    checkpoint, data = ROOT / run_folder / "run" / "checkpoint.pth", ROOT / "data" / "shapes"
    if not checkpoint.exists() or not data.exists():
        pytest.skip(f"{checkpoint.relative_to(ROOT)} is not there: `make {run_folder}` trains it")
    pictures = sorted((data / "val2017").iterdir())[:20]
    words = ["--resume", checkpoint, *pictures, "--boxes", "--json", "--output_dir", tmp_path]
    assert predicted(*words, "--attention") == 0
    assert len(list((tmp_path / "attention").iterdir())) >= 15
    truth = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    kinds = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    found = {(record["image_id"], record["category_id"]) for record in results(tmp_path)}
    asked = {pair for pair in kinds if pair[0] in {int(path.stem) for path in pictures}}
    assert len(asked & found) > 0.7 * len(asked)
    assert len(asked & found) > 0.9 * len(found)
