"""benchmarks.scale, with a file of few images."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import scale
from tests.helpers import ROOT


@pytest.mark.slow
def test_start_and_memory_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert scale.main(["--images", "80", "--batches", "4", "--json", str(out)]) == 0
    (figures,) = json.loads(out.read_text()).values()
    assert len(figures) == 3 and figures["start, s"] > 0


def test_memory_of_a_process_is_read() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs Linux's account of memory")
    assert scale.pss(str(os.getpid())) > 10


def test_a_tree_that_does_not_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="(?s)ended before its first step: .*No module named"):
        scale.start(tmp_path, ROOT)
