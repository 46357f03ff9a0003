"""Every recipe says what it is, parses, and builds its model; those whose data is there train two steps."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from datasets.shapes import write_shapes
from models import build_model
from tests.helpers import ROOT, read_log

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.args"))
PARAMETERS = {"resnet18": 0, "resnet50": 41.3e6, "resnet101": 60.2e6}  # published, of the detector


def parse(*words: str) -> argparse.Namespace:
    parser = main.RecipeParser("main.py", parents=[main.get_args_parser()])
    return parser.parse_args(list(words))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("recipes") / "shapes", train=32, val=4, workers=1)


def test_there_is_one_for_each_published_model() -> None:
    evaluated = {
        (ROOT / "recipes" / f"{name}.args").read_text() for name in RECIPES if name.startswith("eval")
    }
    for weights in ("r50-e632da11", "r50-dc5-f0fb7ef5", "r101-2c7b67e5", "r101-dc5-a2e86def"):
        assert sum(f"detr-{weights}.pth" in text for text in evaluated) == 1
    for weights in ("r50-panoptic-00ce5173", "r50-dc5-panoptic-da08f1b1", "r101-panoptic-40021d53"):
        assert sum(f"detr-{weights}.pth" in text for text in evaluated) == 1


@pytest.mark.parametrize("name", RECIPES)
def test_states_command_cost_and_result(name: str) -> None:
    comments = [
        line for line in (ROOT / "recipes" / f"{name}.args").read_text().splitlines() if line.startswith("#")
    ]
    text = "\n".join(comments)
    assert f"main.py @recipes/{name}.args" in text
    assert "# Cost" in text
    assert "esult" in text


@pytest.mark.parametrize("name", RECIPES)
def test_builds_its_model(name: str) -> None:
    args = parse(f"@{ROOT}/recipes/{name}.args", "--backbone_weights", "none")
    args.device = "meta"
    model: Any
    criterion: Any
    with torch.device("meta"):  # shapes without numbers
        model, criterion, postprocessors = build_model(args)
    detector = model.detr if args.masks else model
    least = PARAMETERS[args.backbone]
    assert least == 0 or sum(p.numel() for p in detector.parameters()) == pytest.approx(least, rel=0.03)
    assert ("segm" in postprocessors) == args.masks
    assert set(criterion.weight_dict) >= {
        "loss_ce",
        "loss_bbox",
        "loss_giou",
        f"loss_ce_{args.dec_layers - 2}",
    }


@pytest.mark.parametrize("name", ["shapes", "shapes_panoptic_boxes", "shapes_panoptic"])
def test_trains_two_steps(name: str, shapes: Path, tmp_path: Path) -> None:
    flags = ["--coco_path", str(shapes), "--coco_panoptic_path", str(shapes), "--num_workers", "0"]
    flags += ["--epochs", "1", "--device", "cpu", "--output_dir", str(tmp_path)]
    assert main.run([f"@{ROOT}/recipes/{name}.args", *flags]) == 0
    line = read_log(tmp_path)[-1]
    assert line["epoch"] == 0 and line["train_loss"] > 0
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["warmup"]["last_epoch"] == 2
    assert ("test_PQ_all" in line) == (name == "shapes_panoptic")


def test_flags_after_a_recipe_override_it(tmp_path: Path) -> None:
    recipe = tmp_path / "a.args"
    recipe.write_text("# a comment\n\n--lr 1e-3 --epochs 7   # and more\n--scales 64 96\n")
    args = parse(f"@{recipe}", "--epochs", "9")
    assert (args.lr, args.epochs, args.scales) == (1e-3, 9, [64, 96])
