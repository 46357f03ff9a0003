"""--query_groups in whole runs: what a checkpoint holds, exact resume, evaluation, and what is refused."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from inference.trained import load_trained
from models import build_model
from tests.helpers import Prepared, Refused, assert_equal, load, read_log, run, trained_flags

K = 3


@pytest.fixture(scope="module")
def grouped(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the fixture `trained`, with groups and an average."""
    out = tmp_path_factory.mktemp("grouped") / "run"
    words = ["--resume", prepared.start, "--epochs", 3, "--output_dir", out, "--ema", 0.8]
    assert run(*trained_flags(prepared), *words, "--query_groups", K) == 0
    return out


def test_a_checkpoint_holds_them_beside_the_model(trained: Path, grouped: Path) -> None:
    plain, beside = load(trained / "checkpoint.pth"), load(grouped / "checkpoint.pth")
    assert set(beside) - set(plain) == {"query_groups", "ema", "ema_updates"}
    assert beside["model"].keys() == beside["ema"].keys() == plain["model"].keys()
    assert beside["query_groups"].shape == (K - 1, *plain["model"]["query_embed.weight"].shape)
    assert beside["args"]["query_groups"] == K
    build_model(Namespace(**beside["args"]))[0].load_state_dict(beside["model"])  # as hub and export do
    sizes = [len(group["params"]) for group in beside["optimizer"]["param_groups"]]
    assert sizes == [len(plain["optimizer"]["param_groups"][0]["params"]) + 1, sizes[1]]
    assert read_log(grouped)[-1].keys() >= read_log(trained)[-1].keys()
    assert read_log(grouped)[-1]["n_parameters"] == read_log(trained)[-1]["n_parameters"]


def test_evaluation_knows_nothing_of_them(prepared: Prepared, grouped: Path, tmp_path: Path) -> None:
    words = ["--coco_path", prepared.root, "--eval", "--output_dir", tmp_path, "--no_report"]
    assert run(*words, "--resume", grouped / "checkpoint.pth") == 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    line = read_log(grouped)[-1]
    assert figures == {name: line[name] for name in figures}
    assert "test_coco_eval_bbox" in figures


def test_what_uses_a_checkpoint_knows_nothing_of_them(grouped: Path, tmp_path: Path) -> None:
    """predict, export and the exchange with transformers begin with load_trained: the first group's model."""
    whole = load(grouped / "checkpoint.pth")
    alone = {name: whole[name] for name in ("model", "categories")}
    torch.save({**alone, "args": {**whole["args"], "query_groups": 1}}, tmp_path / "alone.pth")
    loaded = [load_trained(path) for path in (grouped / "checkpoint.pth", tmp_path / "alone.pth")]
    for one in loaded:
        assert_equal(dict(one.model.state_dict()), whole["model"])
    images = [torch.rand(3, 64, 90, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        found, expected = (one.model(images) for one in loaded)
    assert found.keys() == {"pred_logits", "pred_boxes"}
    assert_equal(found, expected)


def test_another_number_of_them_is_refused(
    prepared: Prepared, trained: Path, grouped: Path, refused: Refused
) -> None:
    words = [*trained_flags(prepared), "--epochs", 4, "--resume"]
    for folder, now, before in ((grouped, 1, K), (grouped, 2, K), (trained, 2, 1)):
        refused(
            [*words, folder / "checkpoint.pth", "--query_groups", now],
            "checkpoint.pth: it was trained with --query_groups",
            f"{before}, not {now}",
        )
