"""What a run does to the things it is given: the flags, and the checkpoint that it starts from."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import engine
import main
import run.resume
from tests.helpers import TINY, Prepared, read_log, trained_flags, write_coco
from tests.helpers import run as run_main


def test_main_leaves_its_arguments_alone_and_can_be_called_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With other data: nothing that was decided for the first may stay."""
    args = main.get_args_parser().parse_args([*TINY.split(), "--eval"])
    for categories, classes in (({1: "bolt", 2: "nut"}, 3), ({1: "bolt", 9: "gear"}, 10)):
        args.coco_path = str(write_coco(tmp_path / str(classes), categories))
        before = copy.deepcopy(vars(args))
        main.main(args)
        assert vars(args) == {**before, "distributed": False}
        assert f"num_classes {classes}\n" in capsys.readouterr().out


def test_flags_that_a_script_lacks_have_their_defaults(coco_root: Path, tmp_path: Path) -> None:
    args = main.get_args_parser().parse_args([*TINY.split(), "--coco_path", str(coco_root), "--eval"])
    for name in ("amp", "ema", "report", "check_data", "dist_timeout", "tf32"):
        delattr(args, name)
    main.main(args)
    assert not hasattr(args, "amp")


def test_the_checkpoint_is_let_go_before_the_first_step(
    prepared: Prepared, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref] = []
    alive: list[int] = []
    load, train = run.resume.load_checkpoint, engine.train_one_epoch

    def loaded(path: Any) -> dict[str, Any]:
        checkpoint = load(path)
        kept.extend(weakref.ref(value) for value in checkpoint["model"].values())
        return checkpoint

    def watched(*words: Any, **more: Any) -> Any:
        gc.collect()
        alive.append(sum(reference() is not None for reference in kept))
        return train(*words, **more)

    monkeypatch.setattr(run.resume, "load_checkpoint", loaded)
    monkeypatch.setattr(engine, "train_one_epoch", watched)
    flags = [*trained_flags(prepared), "--epochs", 3, "--output_dir", tmp_path]
    assert run_main(*flags, "--resume", trained / "checkpoint0001.pth") == 0
    assert len(kept) > 50 and alive == [0]
    assert len(read_log(tmp_path)) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_the_cpu_with_a_warning(
    coco_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("--coco_path", coco_root, "--eval", "--device", "cuda") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "--device" in line]
    assert line.startswith("warning: --device cuda") and "CPU" in line
