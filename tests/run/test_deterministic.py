"""--deterministic and --tf32: what they set, once and for all of a run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from run.summary import describe
from tests.helpers import assert_equal, load, python, read_log, run
from tests.reference.settings import parse
from util.machine import make_deterministic, set_tf32

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def settings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CUBLAS, raising=False)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
    os.environ.pop(CUBLAS, None)


def test_all_is_set_that_torch_asks_for() -> None:
    torch.backends.cudnn.benchmark = True
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ[CUBLAS] in (":4096:8", ":16:8"), "the two that cuBLAS is deterministic with"


def test_a_workspace_of_the_users_own_is_kept() -> None:
    os.environ[CUBLAS] = ":16:8"
    make_deterministic()
    assert os.environ[CUBLAS] == ":16:8"


@pytest.mark.parametrize("masks", ["", "--masks --hidden_dim 128 --nheads 8 --backbone_stages 3"])
def test_a_run_on_a_cpu_is_the_same_with_it(masks: str, coco_root: Path, tmp_path: Path) -> None:
    """Nothing that training and evaluation use is refused, masks included."""
    words = ["--coco_path", coco_root, "--epochs", 1, "--no_report", *masks.split()]
    for folder, more in (("without", []), ("with", ["--deterministic"])):
        assert run(*words, "--output_dir", tmp_path / folder, *more) == 0
        assert torch.are_deterministic_algorithms_enabled() == bool(more)
    one, other = (load(tmp_path / folder / "checkpoint.pth")["model"] for folder in ("without", "with"))
    assert_equal(one, other)
    assert read_log(tmp_path / "without") == read_log(tmp_path / "with")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_runs_on_a_gpu_have_equal_bits(coco_root: Path, tmp_path: Path) -> None:
    words = ["--coco_path", coco_root, "--epochs", 2, "--no_report", "--device", "cuda", "--deterministic"]
    for folder in ("one", "other"):
        assert run(*words, "--output_dir", tmp_path / folder) == 0
    one, other = (load(tmp_path / folder / "checkpoint.pth")["model"] for folder in ("one", "other"))
    assert_equal(one, other)


# --- TF32 ------------------------------------------------------------------------------------------------

TF32 = {"default": (True, False), "on": (True, True), "off": (False, False)}  # convolutions, matrix products


@pytest.mark.parametrize("choice", TF32)
def test_tf32_is_chosen_for_both_kinds_of_products(choice: str) -> None:
    for other in TF32:
        set_tf32(other)
        set_tf32(choice)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == TF32[choice]


def test_the_default_is_torchs_own() -> None:
    """Settings in a fresh process: what the published code gets today."""
    code = "import torch; print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)"
    assert python("-c", code, check=True).stdout.split() == [str(value) for value in TF32["default"]]


def test_main_sets_it(coco_root: Path) -> None:
    assert run("--coco_path", coco_root, "--epochs", 1, "--tf32", "on") == 0
    assert torch.backends.cuda.matmul.allow_tf32
    assert run("--coco_path", coco_root, "--epochs", 1) == 0
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("flags", "device", "words"),
    [
        ("", "cpu", "computes in  float32\n"),
        ("", "cuda", "computes in  float32; TF32 in convolutions\n"),
        ("--amp bf16", "cpu", "computes in  bfloat16, heads and losses in float32\n"),
    ],
)
def test_a_run_says_in_what_it_computes(flags: str, device: str, words: str) -> None:
    args = parse(f"--eval --num_classes 3 {flags}")
    args.device = device
    assert words in describe(args, torch.nn.Linear(1, 1), [], {}, range(0))
