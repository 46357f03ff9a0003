"""The training report as a user sees it: opened in a headless Chromium without a network, read and used."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from datasets.shapes import write_shapes
from tests.browser import Visit, chromium, visit
from tests.helpers import ROOT, TINY_IMAGES, read_log, run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
CELLS = ROOT.parent / "shared" / "data" / "bccd"  # photographs of blood cells, in COCO's layout
TRAIN, VAL = 80, 20
SMALL = "--backbone_stages 3 --backbone_norm batch --lr 5e-4 --lr_backbone 5e-4 --batch_size 8 --dropout 0"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which one class has a name that is HTML, and would do harm as such."""
    root = write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=TRAIN, val=VAL, size=96)
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["name"] = category["name"].replace("square", "<img src=x onerror=alert(1)>")
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def boxes_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's recipe made short."""
    out = tmp_path_factory.mktemp("runs") / "boxes"
    flags = ["--coco_path", shapes, *SMALL.split(), "--epochs", 3]
    assert run(*flags, "--output_dir", out) == 0
    return out


@pytest.fixture(scope="module")
def panoptic_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "panoptic"
    paths = ["--coco_path", shapes, "--coco_panoptic_path", shapes, "--dataset_file", "coco_panoptic"]
    flags = [*paths, *SMALL.split(), "--masks", "--hidden_dim", 128, "--nheads", 8]
    assert run(*flags, "--epochs", 2, "--output_dir", out) == 0
    return out


def table(seen: Visit, section: str) -> list[dict[str, str]]:
    """The first table of a section, row by row, by the titles of its columns."""
    head, *rows = seen.page.eval_on_selector(
        f"#{section} table", "t => [...t.rows].map(r => [...r.cells].map(c => c.textContent.trim()))"
    )
    return [dict(zip(head, row, strict=True)) for row in rows]


def shown(seen: Visit, selector: str) -> int:
    """How many elements have a place on the page."""
    return int(
        seen.page.eval_on_selector_all(selector, "all => all.filter(e => e.getClientRects().length).length")
    )


def per_class(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figure(text: str) -> str:
    return format(float(text), ".3f") if text else "n/a"


def test_it_says_what_was_logged(browser: Browser, boxes_run: Path) -> None:
    lines = read_log(boxes_run)
    with visit(browser, (boxes_run / "report.html").as_uri()) as seen:
        assert seen.page.title() == "boxes: training report"
        assert seen.page.locator("#pictures .picture").count() == 16
        rows = table(seen, "classes")
        expected = per_class(boxes_run / "eval" / "per_class.csv")
        assert [row["class"] for row in rows] == [row["name"] for row in expected]
        assert "<img src=x onerror=alert(1)>" in [row["class"] for row in rows]
        for row, one in zip(rows, expected, strict=True):
            assert [row[k] for k in ("AP", "AP50", "AR")] == [figure(one[k]) for k in ("AP", "AP50", "AR")]
        tile = seen.page.locator(".tile", has_text="box AP50").locator("strong").inner_text()
        assert tile == f"{lines[-1]['test_coco_eval_bbox'][1]:.3f}"
        data = {row["split"]: row["images"] for row in table(seen, "data")}
        assert data == {"train": str(TRAIN), "val": str(VAL)}
        flags = {row["flag"]: (row["value"], row["default"]) for row in table(seen, "flags")}
        assert flags["--epochs"] == ("3", "300")
        assert "--seed" not in flags, "it has its default"
        assert seen.page.locator("#mistakes figure").count() > 3
        seen.assert_sound()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False)])
def test_nothing_is_wider_than_the_window(
    browser: Browser, boxes_run: Path, panoptic_run: Path, width: int, dark: bool
) -> None:
    for folder in (boxes_run, panoptic_run):
        with visit(browser, (folder / "report.html").as_uri(), width, dark=dark) as seen:
            background = seen.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
            seen.assert_sound()


def test_curves_show_their_values(browser: Browser, boxes_run: Path) -> None:
    lines = read_log(boxes_run)
    with visit(browser, (boxes_run / "report.html").as_uri()) as seen:
        card = seen.page.locator("#curves figure", has_text="validation").first
        curve = card.locator("svg")
        box = curve.bounding_box()
        assert box is not None
        seen.page.mouse.move(box["x"] + box["width"] * 0.98, box["y"] + box["height"] / 2)
        shown = card.locator("output").inner_text().splitlines()
        values = [f"{float(f'{lines[-1][key]:.4g}'):g}" for key in ("train_loss", "test_loss")]
        assert shown == ["epoch 2", f"train  {values[0]}", f"validation  {values[1]}"]
        curve.focus()
        curve.press("ArrowLeft")
        assert card.locator("output").inner_text().startswith("epoch 1\n")
        seen.assert_sound()


def test_it_can_be_used(browser: Browser, boxes_run: Path) -> None:
    with visit(browser, (boxes_run / "report.html").as_uri()) as seen:
        page = seen.page
        regions = "#pictures .region[data-score]"
        counts = []
        for score in (0, 0.3, 1):
            page.eval_on_selector(
                "#score", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", score
            )
            scores = page.eval_on_selector_all(regions, "all => all.map(e => Number(e.dataset.score))")
            assert shown(seen, regions) == sum(value >= score for value in scores)
            counts.append(shown(seen, regions))
        assert counts[0] > counts[2]

        page.locator("#classes th", has_text="train objects").locator("button").click()
        objects = [int(row["train objects ▼"].replace(",", "")) for row in sorted_table(seen)]
        assert objects == sorted(objects, reverse=True)

        page.locator("#pictures .picture").nth(2).click()
        dialog = page.locator("dialog[open]")
        assert dialog.locator("figcaption").inner_text().startswith("000000000003.jpg")
        large = dialog.locator("svg").first.bounding_box()
        small = page.locator("#pictures .picture svg.marked").first.bounding_box()
        assert large is not None
        assert small is not None
        assert large["width"] > 1.5 * small["width"]
        dialog.click()
        assert page.locator("dialog[open]").count() == 0
        seen.assert_sound()


def sorted_table(seen: Visit) -> list[dict[str, str]]:
    """The table of classes, with the mark that the style sheet sets after the column it is sorted by."""
    marks = {"ascending": " ▲", "descending": " ▼"}
    rows = table(seen, "classes")
    order = seen.page.eval_on_selector_all("#classes th", "all => all.map(e => e.getAttribute('aria-sort'))")
    titles = [title + marks.get(one, "") for title, one in zip(rows[0], order, strict=True)]
    return [dict(zip(titles, row.values(), strict=True)) for row in rows]


def test_panoptic_quality_of_each_class(browser: Browser, panoptic_run: Path) -> None:
    with visit(browser, (panoptic_run / "report.html").as_uri()) as seen:
        rows = table(seen, "classes")
        expected = per_class(panoptic_run / "panoptic_eval" / "per_class.csv")
        assert [row["id"] for row in rows] == [one["id"] for one in expected]
        for row, one in zip(rows, expected, strict=True):
            assert [row[k] for k in ("PQ", "SQ", "RQ")] == [figure(one[k]) for k in ("pq", "sq", "rq")]
        assert seen.page.locator("#pictures .picture").count() == 16
        assert shown(seen, "#pictures .region image") > 32, "masks of the ground truth at least"
        seen.assert_sound()


@pytest.mark.skipif(not CELLS.is_dir(), reason=f"no {CELLS}")
def test_photographs(browser: Browser, tmp_path: Path) -> None:
    images = TINY_IMAGES.replace("64", "96").split()
    flags = ["--coco_path", CELLS, *SMALL.split(), *images, "--epochs", 1]
    assert run(*flags, "--output_dir", tmp_path / "cells") == 0
    with visit(browser, (tmp_path / "cells" / "report.html").as_uri()) as seen:
        assert [row["class"] for row in table(seen, "classes")] == ["RBC", "WBC", "Platelets"]
        assert seen.page.locator("#pictures .picture").count() == 16
        assert seen.page.locator("#mistakes figure").count() > 3
        seen.assert_sound()
