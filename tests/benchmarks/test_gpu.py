"""benchmarks.gpu on a CPU, with small models: every part runs, a part that fails stops no other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu

IN_OTHER_PROCESSES = ("one_rank", "ema", "kill_and_resume", "throughput", "compiled")


@pytest.fixture
def options(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(device="cpu", tiny=True, against="", masks=False, batch=0, folder=tmp_path)


@pytest.mark.parametrize("name", [name for name in gpu.PARTS if name not in IN_OTHER_PROCESSES])
def test_a_part_holds(name: str, options: SimpleNamespace) -> None:
    figures = gpu.PARTS[name].run(options)
    assert figures and json.dumps(figures)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--tiny", "--output", str(tmp_path)]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(part["figures"] and part["error"] is None for part in parts.values())
    assert (tmp_path / "gpu.md").read_text().count("| holds |") == len(parts)


def test_values_that_are_wrong_fail_their_part(options: SimpleNamespace) -> None:
    with pytest.raises(gpu.Wrong, match="boxes lie"):
        gpu.mixed_precision(options, "bf16", allowed=0.0)


def test_a_failure_and_a_time_limit_are_reported() -> None:
    found = gpu.start_part("nothing", [], limit=300)
    assert "invalid choice" in found["error"] and found["figures"] == {}
    assert gpu.start_part("bf16", [], limit=0.1)["error"] == "not done after 0 s"


def test_the_table_names_failures() -> None:
    parts: dict[str, dict[str, Any]] = {
        "one": {"figures": {"apart": 0.123456}, "error": None, "seconds": 1.0},
        "two": {"figures": {}, "error": "out | of memory", "seconds": 2.0},
    }
    lines = gpu.table({"torch": torch.__version__}, parts).splitlines()
    assert lines[-2:] == ["| one | holds | apart: 0.1235 | 1.0 |", "| two | **out / of memory** |  | 2.0 |"]


def test_without_a_gpu_the_message_says_how_to_try_it(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --tiny" in capsys.readouterr().err


def test_floors_count_operations_and_bytes() -> None:
    weight, x = torch.randn(64, 64), torch.randn(64, 64)
    found = gpu.count(lambda: (x @ weight).relu_())
    assert found == (2 * 64**3, 4 * 64 * 64 * (3 + 2))
