"""The training report's page: curves, pictures, tables, and what it leaves alone."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from report import RunReport
from report.charts import Series, chart, value_axis
from report.curves import curves, headline
from report.html import tag
from report.pictures import CROP, LONGEST, marked, read_crop, read_picture
from report.source import Region, thinned
from report.tables import class_table
from run.summary import Split

NAMES = {1: "cat", 2: "dog", 3: "hen"}

# --- Drawing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_axes_hold_their_values_and_a_few_round_ticks(seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = (10 ** draw.uniform(-6, 4, draw.integers(1, 9))).tolist()
    for from_zero in (False, True):
        axis = value_axis(values, from_zero)
        assert axis.low <= min(values) * (1 + 1e-6)
        assert axis.high >= max(values) * (1 - 1e-6)
        assert not from_zero or axis.low == 0
        assert 2 <= len(axis.ticks) <= 14
        places = [axis.place(tick) for tick in axis.ticks]
        assert places == sorted(places)
        assert -1e-9 <= places[0] <= places[-1] <= 1 + 1e-9


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [3.0], [-2.0, 5.0]])
def test_axes_of_values_without_a_range(values: list[float]) -> None:
    axis = value_axis(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert axis.high > axis.low


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    assert chart("t", [Series("a", [(0, float("nan"))])]) == ""
    drawn = chart("t", [Series("a", [(0, 1.0), (1, float("inf")), (2, 2.0)])])
    points = json.loads(re.search(r'data-series="([^"]*)"', drawn)[1].replace("&quot;", '"'))  # type: ignore[index]
    assert points == [{"name": "a", "points": [[0, 1.0], [2, 2.0]]}]
    assert drawn.count("<circle") == 2


def test_text_is_escaped() -> None:
    assert tag("a", title='"<b>', href="#x") == '<a title="&quot;&lt;b&gt;" href="#x"></a>'
    table = class_table({1: "<script>"}, [], {}, {})
    assert "&lt;script&gt;" in table
    assert "<script>" not in table


def test_pictures_are_read_small_and_crops_show_the_place(tmp_path: Path) -> None:
    image = Image.new("RGB", (1600, 1200), "blue")
    image.paste("red", (1500, 1000, 1600, 1100))
    image.save(tmp_path / "a.jpg")
    picture = read_picture(tmp_path / "a.jpg")
    assert (picture.width, picture.height) == (1600, 1200)
    assert decoded(picture.address).size == (LONGEST, LONGEST * 3 // 4)

    crop, (left, top, right, bottom) = read_crop(tmp_path / "a.jpg", [1500, 1000, 100, 100])
    assert (right - left, bottom - top, right) == (160, 160, 1600), "moved into the picture"
    pixels = np.asarray(decoded(crop.address)).astype(int)
    assert max(pixels.shape) <= CROP
    scale = len(pixels) / 160
    red = (pixels[..., 0] > 128).nonzero()
    assert red[0].min() / scale == pytest.approx(1000 - top, abs=2)
    assert red[1].min() / scale == pytest.approx(1500 - left, abs=2)

    grey = Image.new("L", (9, 7))
    grey.save(tmp_path / "b.png")
    crop, place = read_crop(tmp_path / "b.png", [2, 2, 0, 0])
    assert place == (0, 0, 9, 7), "what is smaller than a crop shows whole"


def test_deep_pictures_are_seen_as_in_training(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60), 2**15, np.uint16)).save(tmp_path / "a.png")
    for level, grey in ((None, 128), (2.0**16 - 2, 128), (2.0**15, 255)):
        seen = decoded(read_picture(tmp_path / "a.png", None, level).address)
        assert np.asarray(seen.convert("L")).mean() == pytest.approx(grey, abs=2)


def decoded(address: str) -> Image.Image:
    import base64
    import io

    kind, _, content = address.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_masks_are_thinned() -> None:
    mask = np.zeros((480, 640), bool)
    mask[100:200, 300:500] = True
    small = thinned(mask)
    assert small.shape == (240, 320)
    assert thinned(small).shape == small.shape
    assert small.mean() == pytest.approx(mask.mean(), rel=0.02)


def test_regions_below_the_threshold_do_not_crowd_out_labels(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    regions = [Region(1, (0.1, 0.1, 0.5, 0.5), 0.9), Region(2, (0.1, 0.1, 0.5, 0.5), 0.2)]
    drawn = marked(picture, "p", regions, NAMES, threshold=0.5)
    assert "cat 0.90</text>" in drawn
    assert drawn.count('data-score="0.2000"') >= 1, "the page can show it"


# --- Figures ---------------------------------------------------------------------------------------------


def log_line(epoch: int, precision: float, **more: Any) -> dict[str, Any]:
    figures = [precision, precision + 0.1, *[0.2] * 3, -1, *[0.3] * 6]
    return {"epoch": epoch, "train_loss": 3.0 - epoch, "test_coco_eval_bbox": figures, **more}


def test_the_headline_names_the_best_epoch() -> None:
    lines = [log_line(0, 0.2), log_line(1, 0.4), log_line(2, 0.3)]
    html = headline(lines)
    assert "0.300" in html
    assert "best 0.400 in epoch 1" in html
    assert "the best so far" in headline(lines[:2])


def test_curves_leave_out_what_was_not_evaluated() -> None:
    lines = [log_line(0, 0.2), log_line(1, 0.4)]
    titles = re.findall(r"<b>(.*?)</b>", "".join(curves(lines)))
    assert titles == ["Loss", "Box AP", "Box AP by size of objects"]
    html = "".join(curves(lines))
    assert "medium" in html
    assert "large" not in html, "-1: there is nothing large"
    averaged = [line | {"test_ema_coco_eval_bbox": [0.5] * 12} for line in lines]
    assert "Box AP (dashed: weights averaged)" in "".join(curves(averaged))
    assert "box AP, weights averaged" in headline(averaged)


# --- Without a run ---------------------------------------------------------------------------------------


class Still:
    """A data set of one picture, and no evaluation of boxes."""

    white_level = None

    def __init__(self, path: Path):
        self.path = path

    def image_ids(self, count: int) -> list[int]:
        return [7]

    def picture_file(self, image_id: int) -> Path:
        return self.path

    def stated_size(self, image_id: int) -> tuple[int | None, int | None]:
        return None, None

    def truth(self, image_id: int) -> list[Region]:
        np.random.random()  # a report may not move what training draws from
        return [Region(1, (0, 0, 0.5, 0.5))]

    def found(self, image_ids: Any, evaluator: Any, count: int) -> dict[int, list[Region]]:
        return {image_id: [Region(1, (0, 0, 0.5, 0.6), 0.75)] for image_id in image_ids}

    def boxes(self, evaluator: Any, count: int) -> None:
        return None

    def class_figures(self, evaluator: Any) -> dict[str, Any]:
        return {}


def test_a_report_draws_no_random_numbers_and_reads_a_picture_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10), "green").save(path)
    splits = [Split("val", 1, {1: 1})]
    report = RunReport(tmp_path, Still(path), {1: "leaf"}, splits, {"epochs": 3, "lr": 0.1}, {"lr": 0.2})  # type: ignore[arg-type]
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.write(None, [log_line(0, 0.1)])
        path.unlink()
        report.write(None, [log_line(0, 0.1), log_line(1, 0.2)])
    assert np.random.random() == expected
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "leaf 0.75</text>" in html
    assert '<section id="mistakes">' not in html
    changed = re.search(r"<table.*?</table>", html[html.index('id="flags"') :], re.S)
    assert changed is not None
    assert re.findall(r'data-value="(.*?)"', changed[0]) == ["--lr", "0.1", "0.2"]


def test_the_largest_segments_get_their_labels_first(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    masks = [np.zeros((60, 80), bool) for _ in range(14)]
    for number, mask in enumerate(masks[:13]):
        mask[0, number] = True
    masks[13][:, 20:] = True
    regions = [Region(number, (0, 0, 1, 1), None, mask) for number, mask in enumerate(masks)]
    drawn = marked(read_picture(tmp_path / "a.png"), "p", regions, {13: "sky"}, threshold=0.5)
    assert ">sky</text>" in drawn
