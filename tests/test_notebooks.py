"""The notebooks hold their outputs, and run from top to bottom without a network."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

NOTEBOOKS = ("look_at_a_model", "fine_tune_on_your_own_data", "detr_in_50_lines")
LEAST_PICTURES = dict(zip(NOTEBOOKS, (3, 3, 1), strict=True))
FOLDER = ROOT / "notebooks"
TRAINED_BY_DEMOS = ("demo/run/checkpoint.pth", "demo-panoptic/run/checkpoint.pth")
LARGEST = 600_000  # bytes of a file
LEAST_AP = 0.4  # of the fine-tuned model, which reached 0.68; the one before does not know the classes


def code_cells(name: str) -> list[dict[str, Any]]:
    content = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def kinds(cells: list[Any]) -> list[list[str]]:
    """What each cell shows: names of streams, types of pictures, errors."""
    found = []
    for cell in cells:
        shown = []
        for output in cell["outputs"]:
            pictures = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            shown += pictures or [output.get("name", output["output_type"])]
        found.append(sorted(set(shown)))
    return found


def printed(cells: list[Any]) -> str:
    outputs = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in outputs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_kept(name: str) -> None:
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [kind for one in kinds(cells) for kind in one]
    assert not {"error", "stderr"} & set(shown)
    assert sum(kind.startswith("image/") for kind in shown) >= LEAST_PICTURES[name] and "stdout" in shown
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_says_whose_machine_it_was(name: str) -> None:
    cells = code_cells(name)
    texts = [printed(cells)] + ["".join(cell["source"]) for cell in cells]
    found = re.findall(r"(?<![\w./:])/(?:\w[\w.-]*/)+\w*", "\n".join(texts))
    assert not found


@pytest.mark.parametrize(
    "name, lines",
    [
        ("look_at_a_model", ('BOXES, PANOPTIC = "detr_resnet50", "detr_resnet50_panoptic"', "PICTURES = ")),
        ("fine_tune_on_your_own_data", ('detr-r50-e632da11.pth"', 'FLAGS = "@recipes/finetune.args"')),
    ],
)
def test_two_lines_lead_to_published_weights(name: str, lines: tuple[str, str]) -> None:
    from util.hub_models import HUB_MODELS

    content = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown")
    assert all(line in text for line in lines)
    for entry in re.findall(r'"(detr_resnet\w+)"', text):
        assert entry in HUB_MODELS
    for file in re.findall(r"detr/(detr-[\w-]+\.pth)", text):
        assert file in {model.file for model in HUB_MODELS.values()}
    for recipe in re.findall(r"@(recipes/\w+\.args)", text):
        assert (ROOT / recipe).is_file()


@pytest.mark.parametrize(
    "module, status, stops", [("doctor", 1, False), ("doctor", 2, True), ("main", 1, True)]
)
def test_a_command_that_fails_stops_the_notebook(
    module: str, status: int, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but faults that the doctor finds, which it reports with status 1."""
    (helper,) = (
        "".join(cell["source"]).split("\n\n\n")[0]
        for cell in code_cells("fine_tune_on_your_own_data")
        if "def python(" in "".join(cell["source"])
    )
    script = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"raise SystemExit({status})")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"sys": sys, "subprocess": subprocess}
    exec(helper, names)
    if not stops:
        names["python"]("-m", module)
        return
    with pytest.raises(RuntimeError, match=f"exit status {status}: the last line above says why"):
        names["python"]("-m", module)


def test_the_page_of_detr_in_50_lines_is_its_notebook() -> None:
    content = json.loads((FOLDER / "detr_in_50_lines.ipynb").read_text(encoding="utf-8"))
    fences = {"code": ("```python\n", "\n```"), "markdown": ("", "")}
    cells = [(*fences[cell["cell_type"]], "".join(cell["source"])) for cell in content["cells"]]
    page = "\n\n".join(before + source + after for before, after, source in cells) + "\n"
    assert page == (ROOT / "docs" / "detr_in_50_lines.md").read_text(encoding="utf-8")


def test_detr_in_50_lines_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells up to the training, with few pictures and steps; the committed run finds what it says."""
    from datasets.shapes import write_shapes

    smaller = {
        '"data/shapes_small"': repr(
            str(write_shapes(tmp_path / "shapes", train=8, val=2, size=48, workers=1))
        ),
        "PICTURES, SIZE = 4000, 48": "PICTURES, SIZE = 8, 48",
        "val=200": "val=2",
        "STEPS, BATCH, RATE = 6500, 16": "STEPS, BATCH, RATE = 20, 4",
    }
    cells = code_cells("detr_in_50_lines")
    text = "\n".join("".join(cell["source"]) for cell in cells).partition("\nmodel.eval()")[0]
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {}
    exec(text, names)
    losses = names["losses"]
    assert len(losses) == 20 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    ((found, total),) = re.findall(r"(\d+) of (\d+) objects found", printed(cells))
    assert int(found) > int(total) * 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name, start", [(NOTEBOOKS[0], FOLDER), (NOTEBOOKS[1], ROOT)])
def test_notebooks_run_from_top_to_bottom(name: str, start: Path, tmp_path: Path) -> None:
    """On the demos' models, started in either folder; every cell shows what its stored outputs show."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    missing = [path for path in TRAINED_BY_DEMOS if not (ROOT / path).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not there; make demo and make demo-panoptic train it")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    stored = kinds(code_cells(name))
    for cell in notebook.cells:
        cell.source = cell.source.replace('"outputs/fine_tune_notebook"', repr(str(tmp_path / "folder")))
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(start)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert kinds(cells) == stored
    if name == "fine_tune_on_your_own_data":
        assert (tmp_path / "folder" / "run" / "checkpoint_best.pth").exists()
        (best,) = re.findall(r"best epoch \d+: AP ([\d.]+)", printed(cells))
        assert float(best) > LEAST_AP
