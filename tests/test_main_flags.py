"""What main.py makes of its flags: what it decides, loads, fetches and generates."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

import datasets.shapes
import main
from tests.helpers import TINY, VAL_SIZES, Prepared, Refused, load, run, write_coco

# --- What the flags do ---------------------------------------------------------------------------------


def resolved(*words: object) -> argparse.Namespace:
    args = main.get_args_parser().parse_args([*TINY.split(), *map(str, words)])
    return main.resolve(args, None)[0]


def sizes_given(loader: Any) -> set[tuple[int, ...]]:
    return {tuple(target["size"].tolist()) for _, targets in loader for target in targets}


def test_help_says_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.run(["--help"])
    shown = " ".join(capsys.readouterr().out.split()).split("options:")[1]
    said = {}
    for action in main.get_args_parser()._actions:
        if action.help == argparse.SUPPRESS:
            continue  # what an old launcher passes
        flag = action.option_strings[0]
        text = shown.split(f" {flag} ")[1].split(" --")[0] if action.default else ""
        said[action.dest] = text.count("(default")
    assert "learning rate of all but the backbone (default: 0.0001)" in shown
    assert "average" in shown and "0: off (default: 0.0)" in shown
    for name in ("output_dir", "masks", "aux_loss", "scales"):  # said in words, empty, switches
        assert said[name] == 0, name
    for name in ("lr_backbone", "backbone", "num_queries", "dist_url", "max_size", "check_data", "seed"):
        assert said[name] == 1, name
    assert "(default: None)" not in shown and "(default: )" not in shown
    assert "(default: True)" not in shown and "(default: False)" not in shown


def test_eval_scale_and_max_size_change_what_evaluation_sees(coco_root: Path) -> None:
    data = ["--coco_path", coco_root]
    for words, size in (
        (["--eval_scale", 64], (64, 96)),
        (["--eval_scale", 80], (80, 120)),
        (["--eval_scale", 80, "--max_size", 90], (60, 90)),
    ):
        loader = main.build_data_loaders(resolved(*data, *words))[1]
        assert sizes_given(loader) == {size}


def test_scales_change_what_training_sees(coco_root: Path) -> None:
    seen = set()
    args = resolved("--coco_path", coco_root, "--scales", 48, 80, "--max_size", 100, "--batch_size", 1)
    loader = main.build_data_loaders(args)[0]
    assert loader is not None
    for epoch in range(4):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        seen |= sizes_given(loader)
    assert max(max(size) for size in seen) <= 100
    shorter = {min(size) for size in seen if max(size) < 99}  # the limit did not bind
    assert shorter == {48, 80}


def test_evaluation_batches_are_as_large_as_in_training_unless_given(coco_root: Path) -> None:
    data = ["--coco_path", coco_root, "--batch_size", 3]
    for words, sizes in (([], [3, 1]), (["--eval_batch_size", 4], [len(VAL_SIZES)])):
        loader = main.build_data_loaders(resolved(*data, *words))[1]
        assert [len(targets) for _, targets in loader] == sizes


def test_open_number_of_classes_is_read_off_the_data(coco_root: Path, tmp_path: Path) -> None:
    assert resolved("--coco_path", coco_root).num_classes == 6
    assert resolved("--coco_path", coco_root, "--num_classes", 10).num_classes == 10
    cocos_own = write_coco(tmp_path / "coco", {1: "person", 3: "car"})
    assert resolved("--coco_path", cocos_own).num_classes == 91
    other_names = write_coco(tmp_path / "other", {1: "person", 3: "lorry"})
    assert resolved("--coco_path", other_names).num_classes == 4


def test_number_of_classes_covers_both_splits(coco_root: Path, tmp_path: Path) -> None:
    shutil.copytree(coco_root, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 12, "name": "cog"})
    path.write_text(json.dumps(content))
    assert resolved("--coco_path", tmp_path / "data").num_classes == 13


def test_a_checkpoint_that_has_fewer_categories_than_the_data_is_refused(
    coco_root: Path, prepared: Prepared, tmp_path: Path, refused: Refused
) -> None:
    root = write_coco(tmp_path / "data", {1: "bolt", 9: "cog"})
    refused(["--coco_path", root, "--eval", "--resume", prepared.start], "category id 9", "--num_classes")


def test_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from util.machine import resolve_device

    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device(None) == device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cpu") == "cpu" and resolve_device("cuda:1") == "cuda:1"


# --- What is fetched and made --------------------------------------------------------------------------


def no_network(url: str, *args: Any, **kwargs: Any) -> None:
    raise URLError(f"no network for {url}")


@pytest.mark.parametrize("words", [["--eval"], ["--epochs", "1"]])
def test_nothing_is_fetched_where_a_checkpoint_holds_the_backbone(
    words: list[str], prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    flags = ["--backbone_weights", "imagenet", "--coco_path", prepared.root, *words]
    assert run(*flags, "--resume", prepared.start) == 0
    assert not (tmp_path / "cache").exists()


def test_a_file_of_the_backbone_is_read_before_finetuning(prepared: Prepared, refused: Refused) -> None:
    """The other model may have another backbone."""
    words = ["--coco_path", prepared.root, "--epochs", 1, "--finetune", prepared.start]
    refused(
        [*words, "--backbone_weights", prepared.start],
        f"--backbone_weights {prepared.start}: not the weights of resnet18",
    )


SHAPES = ["--dataset_file", "shapes", "--epochs", 1, "--batch_size", 4]


def test_shapes_that_are_there_are_left_alone(tmp_path: Path) -> None:
    datasets.shapes.write_shapes(tmp_path / "shapes", train=8, val=4, workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shapes").rglob("*")}
    assert run(*SHAPES, "--coco_path", tmp_path / "shapes", "--output_dir", tmp_path / "run") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shapes").rglob("*")} == before
    checkpoint = load(tmp_path / "run" / "checkpoint.pth")
    assert checkpoint["categories"] == dict(datasets.shapes.THINGS)


def test_shapes_that_are_absent_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into data/shapes where no folder is given."""
    write = datasets.shapes.write_shapes
    written = []

    def few(root: str | Path) -> Path:
        written.append(str(root))
        return write(root, train=8, val=4, workers=1)

    monkeypatch.setattr(datasets.shapes, "write_shapes", few)
    monkeypatch.chdir(tmp_path)
    assert run(*SHAPES) == 0
    assert run(*SHAPES, "--eval") == 0
    assert written == ["data/shapes"]
    assert len(list((tmp_path / "data" / "shapes" / "train2017").iterdir())) == 8
