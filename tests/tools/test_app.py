"""The page to try a model on: numbers are predict.py's, the model is asked once, a browser can use it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from datasets.panoptic_png import read_ids
from inference.attention_maps import listening
from inference.drawing import draw_attention
from inference.predicting import Found, kinds_of, summary
from inference.trained import TrainedModel, load_trained
from tests.browser import Visit, chromium, visit
from tests.helpers import ROOT, TINY_MODEL, assert_one_line
from tests.inference.panoptic_model import NAMES, SIZES, noise, save_panoptic
from tests.reference.settings import build, parse
from tools import app, app_look, app_results
from tools.app_look import Limits, Look, look_at
from tools.app_results import Choice, find, hit, written
from util.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

THRESHOLDS = (0.05, 0.2, 0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a panoptic model that is more or less sure of things and stuff, and two pictures."""
    folder = tmp_path_factory.mktemp("app")
    pictures = [noise(folder / "7.png"), noise(folder / "large.jpg", 150, 250, seed=1, quality=95)]
    save_panoptic(folder / "panoptic.pth", pictures, stuff=range(3, 20, 3))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> TrainedModel:
    return load_trained(folder / "panoptic.pth")


@pytest.fixture(scope="module")
def look(trained: TrainedModel, folder: Path) -> Look:
    return look_at(trained, folder / "7.png", "7.png", Limits())


def predicted(checkpoint: Path, picture: Path, kind: str, threshold: float, out: Path) -> dict[str, bytes]:
    """What predict.py writes."""
    words = ["--resume", checkpoint, picture, f"--{kind}", "--threshold", threshold, "--json"]
    words += ["--no_pictures", "--output_dir", out, "--device", "cpu", "--num_workers", 0]
    assert predict.run(list(map(str, words))) == 0
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def without_folders(content: bytes) -> Any:
    """A JSON file of predict.py, in which pictures are named by their paths."""
    loaded = json.loads(content)
    for entry in loaded["images"] if isinstance(loaded, dict) else loaded:
        entry["file_name"] = Path(entry["file_name"]).name
    return loaded


# --- The model is asked once ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["boxes", "masks", "panoptic"])
def test_files_are_those_of_predict(kind: str, folder: Path, trained: TrainedModel, tmp_path: Path) -> None:
    counts = []
    for name in ("7.png", "large.jpg"):
        look = look_at(trained, folder / name, name, Limits())
        for threshold in THRESHOLDS:
            out = tmp_path / name / str(threshold)
            expected = predicted(folder / "panoptic.pth", folder / name, kind, threshold, out)
            files = written(look, Choice(kind, threshold))
            assert files.keys() == expected.keys()
            assert len(files) == (2 if kind == "panoptic" else 1)
            for file, content in files.items():
                if file.endswith(".png"):
                    assert content == expected[file]
                else:
                    assert json.loads(content) == without_folders(expected[file])
            counts.append(len(find(look, Choice(kind, threshold))))
    assert counts[0] > counts[2], "the threshold must make a difference"


@pytest.fixture(scope="module")
def boxes_alone(folder: Path) -> Path:
    """The checkpoint of a model without masks, which all classes are things to."""
    model = build(f"{TINY_MODEL} --num_classes 20", 0)[0]
    content = {"args": vars(parse(f"{TINY_MODEL} --num_classes 20 {SIZES}")), "categories": NAMES}
    torch.save({"model": model.state_dict(), **content}, folder / "boxes.pth")
    return folder / "boxes.pth"


@pytest.mark.parametrize(("height", "width"), [(64, 96), (1, 2000)])
def test_a_model_without_masks(boxes_alone: Path, height: int, width: int, tmp_path: Path) -> None:
    """A thin picture too is seen as predict.py sees it."""
    trained, picture = load_trained(boxes_alone), noise(tmp_path / "7.png", height, width)
    assert kinds_of(trained) == ["boxes"]
    look = look_at(trained, picture, "7.png", Limits())
    assert look.size == (height, width)
    files = written(look, Choice("boxes", 0.05))
    expected = predicted(boxes_alone, picture, "boxes", 0.05, tmp_path / "out")
    assert len(json.loads(files["results.json"])) > 0
    assert json.loads(files["results.json"]) == without_folders(expected["results.json"])


def test_the_model_is_called_once(folder: Path, trained: TrainedModel) -> None:
    calls: list[Any] = []
    model: Any = trained.model
    handle = model.detr.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        look = look_at(trained, folder / "7.png", "7.png", Limits())
        for kind in kinds_of(trained):
            for threshold in THRESHOLDS:
                found = find(look, Choice(kind, threshold))
                app_results.draw_where(look, found, 0 if len(found) else None, (3, 3))
                written(look, Choice(kind, threshold, frozenset({1, 2, 3})))
    finally:
        handle.remove()
    assert len(calls) == 1


def test_only_the_chosen_classes(look: Look, tmp_path: Path) -> None:
    everything = find(look, Choice("panoptic", 0.2))
    assert everything.panoptic is not None
    present = sorted({segment["category_id"] for segment in everything.panoptic.segments})
    assert len(present) > 1
    chosen = frozenset(present[1:])
    found = find(look, Choice("panoptic", 0.2, chosen))
    assert found.panoptic is not None
    assert {*found.labels.tolist()} == {*everything.labels.tolist()} & chosen
    expected = torch.full_like(everything.panoptic.ids, -1)
    for segment in everything.panoptic.segments:
        if segment["category_id"] in chosen:
            expected[everything.panoptic.ids == segment["id"]] = segment["id"]
    assert torch.equal(found.panoptic.ids, expected)

    files = written(look, Choice("panoptic", 0.2, chosen))
    (tmp_path / "7.png").write_bytes(files["7.png"])
    ids, counts = np.unique(read_ids(tmp_path / "7.png"), return_counts=True)
    (entry,) = json.loads(files["panoptic.json"])["annotations"]
    areas = {segment["id"]: segment["area"] for segment in entry["segments_info"]}
    assert {i: n for i, n in zip(ids.tolist(), counts.tolist(), strict=True) if i} == areas
    assert 0 in ids, "of what was not chosen"

    for kind in ("boxes", "masks"):
        assert {*find(look, Choice(kind, 0.05, frozenset({4}))).labels.tolist()} <= {4}
    nothing = written(look, Choice("panoptic", 0.2, frozenset({0})))
    (tmp_path / "none.png").write_bytes(nothing["7.png"])
    assert (read_ids(tmp_path / "none.png") == 0).all()


def test_large_pictures_are_shown_smaller(
    folder: Path, trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_look, "SHOWN_SIDE", 100)
    look = look_at(trained, folder / "large.jpg", "large.jpg", Limits())
    assert look.shown.shape == (3, 60, 100)
    assert look.size == (150, 250)
    choice = Choice("masks", 0.05)
    found, whole = find(look, choice), find(look, choice, whole=True)
    assert found.masks is not None and whole.masks is not None
    assert found.masks.shape[1:] == (60, 100) and whole.masks.shape[1:] == (150, 250)
    x0, y0, x1, y1 = whole.boxes.unbind(1)
    expected = torch.stack([x0, y0, x1 - x0, y1 - y0], 1)
    rows = app_results.table(look, found)
    assert [row[0] for row in rows] == list(range(1, len(whole) + 1))
    torch.testing.assert_close(torch.tensor([row[3:] for row in rows]), expected, rtol=0, atol=0.06)
    assert "250 x 150 pixels, seen by the model at 106 x 64, drawn at 100 x 60" in app_results.in_words(
        look, found, 1.0
    )


# --- Clicks --------------------------------------------------------------------------------------------


def a_found(masks: torch.Tensor | None = None) -> Found:
    boxes = torch.tensor([[10.0, 10, 80, 50], [20, 20, 40, 40], [-5, 0, 30, 30]])
    return Found(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 1]), boxes, torch.arange(3), masks)


@pytest.mark.parametrize(
    ("x", "y", "index"), [(25, 25, 1), (60, 45, 0), (12, 12, 2), (0, 0, 2), (90, 60, None)]
)
def test_a_click_means_the_smallest_box_there(x: float, y: float, index: int | None) -> None:
    assert hit(a_found(), x, y) == index


def test_a_click_means_the_mask_that_is_there() -> None:
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 10:50, 10:80] = True
    masks[1, 20:40, 20:30] = True
    assert [hit(a_found(masks), x, 25.5) for x in (25.5, 35.5, 5.5)] == [1, 0, None]


def test_a_click_on_a_segment_means_a_detection_of_its_class(look: Look) -> None:
    found = find(look, Choice("panoptic", 0.05))
    assert found.panoptic is not None
    classes = {segment["id"]: segment["category_id"] for segment in found.panoptic.segments}
    found_any = False
    for y in range(0, 64, 7):
        for x in range(0, 96, 7):
            index = hit(found, x, y)
            category = classes[int(found.panoptic.ids[y, x])]
            inside = [
                i
                for i, (x0, y0, x1, y1) in enumerate(found.boxes.tolist())
                if x0 <= x < x1 and y0 <= y < y1 and int(found.labels[i]) == category
            ]
            assert (index in inside) if inside else index is None
            found_any |= index is not None
    assert found_any


def test_clicks_are_counted_in_pixels_of_the_enlarged_drawing(look: Look) -> None:
    from inference.drawing import draw

    drawn = draw(look.shown, find(look, Choice("boxes", 0.5)), NAMES)
    height, width = drawn.shape[1:]
    assert height > 64
    assert app_results.to_shown(look, 0, 0) == pytest.approx((0.1, 0.1), abs=0.1)
    x, y = app_results.to_shown(look, width - 1, height - 1)
    assert 95 < x < 96 and 63 < y < 64


@pytest.mark.parametrize("kind", ["boxes", "masks", "panoptic"])
def test_attention_is_that_of_the_detection(kind: str, look: Look, trained: TrainedModel) -> None:
    from inference.predicting import predict as predict_on

    choice = Choice(kind, 0.05)
    found = find(look, choice)
    assert len(found) > 1
    with listening(trained.model) as heard:
        (expected,) = predict_on(trained, [look.image], [look.size], 0.05, kind)
    last = len(expected) - 1
    scores, labels, boxes = expected.scores[last:], expected.labels[last:], expected.boxes[last:]
    single = Found(scores, labels, boxes, expected.queries[last:])
    sheet = draw_attention(look.shown, single, heard, 0, NAMES)
    assert torch.equal(app_results.draw_where(look, found, last), sheet)
    from_place = draw_attention(look.shown, found, heard, 0, NAMES, [(30.5, 20.5)])
    assert torch.equal(app_results.draw_where(look, found, None, (30.5, 20.5)), from_place)


def test_no_encoder_is_reported(folder: Path, tmp_path: Path) -> None:
    torch.save({"model": build(f"{TINY_MODEL} --enc_layers 0", 0)[0].state_dict()}, tmp_path / "a.pth")
    trained = load_trained(tmp_path / "a.pth", nheads=4, eval_scale=64, max_size=128)
    look = look_at(trained, folder / "7.png", "7.png", Limits())
    with pytest.raises(UserError, match="no encoder"):
        app_results.draw_where(look, find(look, Choice("boxes", 0.05)), None, (1, 1))


# --- Files that are refused ----------------------------------------------------------------------------


def refused(trained: TrainedModel, path: Path, limits: Limits = Limits()) -> str:  # noqa: B008
    with pytest.raises(UserError) as raised:
        look_at(trained, path, "mine.png", limits)
    assert str(path) not in str(raised.value), "the visitor knows it by another name"
    return str(raised.value)


def test_no_picture(trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    expected = "mine.png: cannot be read (not a picture of a known format, or damaged)"
    assert refused(trained, tmp_path / "a.png") == expected


def test_too_large_a_file(trained: TrainedModel, folder: Path, tmp_path: Path) -> None:
    size = (folder / "7.png").stat().st_size / 2**20
    assert look_at(trained, folder / "7.png", "a", Limits(megabytes=1.01 * size)).name == "a"
    message = refused(trained, folder / "7.png", Limits(megabytes=0.99 * size))
    assert message.startswith("mine.png: ") and "no more than" in message


def test_too_many_pixels_are_refused_before_they_are_decoded(trained: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for width, expected in ((7000, "7000 x 6000 are 42 megapixels"), (40000, "far more than 40 megapixels")):
        Image.new("1", (width, 6000)).save(path)
        path.write_bytes(path.read_bytes()[:100])  # decoding it would say that it is damaged
        assert expected in refused(trained, path)
    Image.new("1", (6600, 6000)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in refused(trained, path)


@pytest.mark.parametrize(
    ("given", "name"),
    [("a.png", "a.png"), ("../../etc/a.png", "a.png"), ("C:\\x\\a.png", "a.png"), ("", "picture")],
)
def test_names_of_files(given: str, name: str) -> None:
    assert app_look.file_name(given) == name


# --- The command line ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_gradio(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    assert app.run(["--resume", str(folder / "panoptic.pth"), "--port", str(free_port())]) == 2
    assert_one_line(capsys, "tools.app needs gradio: pip install -r requirements-app.txt")


def test_flags_of_a_trained_model_reach_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in predict.py: pictures would be seen otherwise than there if one were left out."""
    given: dict[str, Any] = {}

    def load(*_: Any, **settings: Any) -> None:
        given.update(settings)
        raise UserError("enough")

    monkeypatch.setattr("inference.trained.load_trained", load)
    monkeypatch.setattr(app, "prepare_gradio", lambda host: None)
    words = ["--resume", str(folder / "panoptic.pth"), "--port", str(free_port()), "--eval_scale", "64"]
    words += ["--max_size", "128", "--white_level", "4095", "--nheads", "4", "--dilation"]
    assert app.run(words) == 2
    assert given == {"eval_scale": 64, "max_size": 128, "white_level": 4095, "nheads": 4, "dilation": True}


def test_an_address_that_cannot_be_listened_on(folder: Path, capsys: Any) -> None:
    words = ["--resume", str(folder / "panoptic.pth"), "--port"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert app.run([*words, port]) == 2
    assert_one_line(capsys, f"--port {port}: ", "in use")
    assert app.run([*words, str(free_port()), "--host", "192.0.2.1"]) == 2
    assert_one_line(capsys, "--host 192.0.2.1")


def test_no_such_model(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    assert app.run(["--resume", "nowhere.pth", "--port", str(free_port())]) == 2
    assert_one_line(capsys, "nowhere.pth: neither a file")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


# --- In a browser --------------------------------------------------------------------------------------

VAL = ROOT / "data" / "shapes" / "val2017"
PICTURE = VAL / "000000000003.jpg"  # a circle above two triangles


@contextmanager
def served(checkpoint: Path, *words: str) -> Iterator[str]:
    """The page of a model -> its address, while the context lasts."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    if not checkpoint.exists() or not PICTURE.exists():
        pytest.skip(f"{checkpoint.relative_to(ROOT)} is not there: `make {checkpoint.parts[-3]}` trains it")
    port = str(free_port())
    command = [sys.executable, "-m", "tools.app", "--resume", str(checkpoint), "--device", "cpu"]
    command += ["--port", port, *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}/" in line, line
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
    assert process.returncode == 143


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def upload(seen: Visit, path: Path) -> None:
    seen.page.set_default_timeout(60_000)
    seen.page.locator("#given input[type=file]").set_input_files(path)


def wait_for_words(seen: Visit, text: str) -> str:
    """Until the page says so -> all that it says."""
    seen.page.wait_for_function(
        "text => document.querySelector('#words textarea')?.value.includes(text)", arg=text
    )
    return str(seen.page.locator("#words textarea").input_value())


def model_time(words: str) -> str:
    return next(part for part in words.splitlines()[-1].split(" · ") if part.startswith("model "))


def downloaded(seen: Visit, button: str) -> tuple[str, bytes]:
    seen.page.wait_for_selector(f"#{button}:not([disabled])")
    with seen.page.expect_download() as waiting:
        seen.page.locator(f"#{button}").click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def click_at(seen: Visit, x: float, y: float, picture: Path = PICTURE) -> bytes:
    """A click on a pixel of the picture, where it is drawn -> the file of the attention that appears."""
    drawn = seen.page.locator("#drawn img")
    box = drawn.bounding_box()
    assert box is not None
    with Image.open(picture) as image:
        width, height = image.size
    place: Any = {"x": x / width * box["width"], "y": y / height * box["height"]}
    return new_attention(seen, lambda: drawn.click(position=place))


def new_attention(seen: Visit, act: Callable[[], None]) -> bytes:
    """The file of the attention that appears when something is done."""
    before = seen.page.locator("#attention img").get_attribute("src") if attention_is_shown(seen) else ""
    act()
    seen.page.wait_for_function(
        "old => { const i = document.querySelector('#attention img');"
        " return i && i.complete && i.naturalWidth && i.getAttribute('src') !== old; }",
        arg=before,
    )
    return seen.page.request.get(str(seen.page.locator("#attention img").get_attribute("src"))).body()


def attention_is_shown(seen: Visit) -> bool:
    return seen.page.locator("#attention img").count() > 0


def keep_screenshot(seen: Visit, name: str) -> None:
    if folder := os.environ.get("DETR_SCREENSHOTS"):
        seen.page.screenshot(path=Path(folder) / name, full_page=True)


@pytest.mark.slow
def test_boxes_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    checkpoint = ROOT / "demo" / "run" / "checkpoint.pth"
    with served(checkpoint) as address, visit(browser, address, 1300, 1000) as seen:
        upload(seen, PICTURE)
        first = wait_for_words(seen, "96 x 96 pixels")
        name, content = downloaded(seen, "json")
        expected = predicted(checkpoint, PICTURE, "boxes", 0.7, tmp_path / "a")
        assert name == "results.json"
        assert json.loads(content) == without_folders(expected[name])
        circles = [entry for entry in json.loads(content) if entry["category_id"] == 1]
        circle = max(circles, key=lambda entry: entry["score"])

        picture = seen.page.locator("#drawn img").get_attribute("src")
        seen.page.locator("#threshold input[type=range]").fill("0.1")
        seen.page.wait_for_function(
            "old => (document.querySelector('#drawn img')?.getAttribute('src') ?? old) !== old", arg=picture
        )
        second = wait_for_words(seen, "96 x 96 pixels")
        assert model_time(second) == model_time(first), "the model must not have run again"
        name, content = downloaded(seen, "json")
        expected = predicted(checkpoint, PICTURE, "boxes", 0.1, tmp_path / "b")
        assert json.loads(content) == without_folders(expected[name])

        x, y, width, height = circle["bbox"]
        assert not attention_is_shown(seen)
        of_circle = click_at(seen, x + width / 2, y + height / 2)
        of_place = click_at(seen, 2, 2)
        assert of_circle != of_place
        trained = load_trained(checkpoint)
        look = look_at(trained, PICTURE, PICTURE.name, Limits())
        found = find(look, Choice("boxes", 0.1))
        index = hit(found, x + width / 2, y + height / 2)
        assert index is not None and int(found.labels[index]) == 1
        assert_shows(of_circle, app_results.draw_where(look, found, index), tmp_path)
        row = seen.page.locator("#rows").get_by_text("circle").last
        of_row = new_attention(seen, row.click)
        last = max(i for i, label in enumerate(found.labels.tolist()) if label == 1)
        assert_shows(of_row, app_results.draw_where(look, found, last), tmp_path)
        keep_screenshot(seen, "app-boxes.png")

        number = seen.page.locator("#threshold input[type=number]")
        number.press("Control+a")
        number.press_sequentially("0.99", delay=100)  # 0, which the slider does not have, is typed first
        surest = summary(find(look, Choice("boxes", 0.99)), trained.names)
        wait_for_words(seen, f"{surest}\n")
        seen.assert_sound()


def assert_shows(file: bytes, picture: torch.Tensor, folder: Path) -> None:
    """A JPEG file is that of a picture."""
    from inference.visualize import save_picture

    save_picture(picture, folder / "expected.jpg")
    assert file == (folder / "expected.jpg").read_bytes()


@pytest.mark.slow
def test_panoptic_segments_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    checkpoint = ROOT / "demo-panoptic" / "run" / "checkpoint.pth"
    with served(checkpoint) as address, visit(browser, address, 1300, 1000) as seen:
        upload(seen, PICTURE)
        first = wait_for_words(seen, "96 x 96 pixels")
        expected = predicted(checkpoint, PICTURE, "panoptic", 0.85, tmp_path / "a")
        name, content = downloaded(seen, "json")
        assert json.loads(content) == without_folders(expected[name])
        name, content = downloaded(seen, "png")
        assert content == expected[name]
        click_at(seen, 48, 20)
        keep_screenshot(seen, "app-panoptic.png")

        seen.page.locator("#kind").get_by_text("masks").click()
        seen.page.wait_for_selector("#png", state="detached")
        seen.page.locator("#classes input").click()
        seen.page.locator("#classes [role=option]", has_text="circle").click()
        (found,) = predicted(checkpoint, PICTURE, "masks", 0.7, tmp_path / "b").values()
        circles = [e for e in without_folders(found) if e["category_id"] == 1]
        words = wait_for_words(seen, f"{len(circles)} circle\n")
        assert model_time(words) == model_time(first)
        name, content = downloaded(seen, "json")
        assert json.loads(content) == circles != []
        seen.assert_sound()


@pytest.mark.slow
def test_what_is_refused_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    Image.new("1", (2000, 1000)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(bytes(600_000))
    words = ("--max_megabytes", "0.5", "--max_megapixels", "1.5")
    checkpoint = ROOT / "demo" / "run" / "checkpoint.pth"
    with served(checkpoint, *words) as address, visit(browser, address, 1300, 1000) as seen:
        upload(seen, PICTURE)
        wait_for_words(seen, "96 x 96 pixels")
        upload(seen, tmp_path / "a.png")
        wait_for_words(seen, "a.png: cannot be read (not a picture of a known format, or damaged)")
        assert seen.page.locator("#drawn img").count() == 0
        assert seen.page.locator("#json").is_disabled()
        upload(seen, tmp_path / "b.png")
        wait_for_words(seen, "b.png: 2000 x 1000 are 2 megapixels, and no more than 1.5 are taken")
        assert seen.errors == [] and seen.requests == []
        upload(seen, tmp_path / "c.png")
        seen.page.get_by_text("exceed the maximum allowed size").wait_for()
        keep_screenshot(seen, "app-refused.png")
        upload(seen, PICTURE)
        wait_for_words(seen, "96 x 96 pixels")
        assert seen.requests == []
