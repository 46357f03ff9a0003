"""What `make demo-panoptic` trained, on pictures of different sizes: in batches, and on several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datasets.shapes import write_shapes
from tests.helpers import ROOT

CHECKPOINT = ROOT / "demo-panoptic" / "run" / "checkpoint.pth"
MOST_POINTS = 1.0  # of PQ, between evaluation batches
PICTURES = 100
RANKS_BATCH = 4  # 25 batches: neither two nor three ranks share them evenly

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.exists(), reason="demo-panoptic/run: run `make demo-panoptic` first"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Square, upright and wide, drawn from another seed than the demo's."""
    root = tmp_path_factory.mktemp("shapes") / "varied"
    write_shapes(root, train=1, val=PICTURES, size=96, vary_size=True, seed=7, workers=1)
    return root


def evaluated(pictures: Path, folder: Path, batch: int, launcher: Sequence[str] = ()) -> dict[str, Any]:
    """`main.py --eval` on the pictures, perhaps under a launcher -> its figures."""
    words = [sys.executable, *launcher, "main.py", "@recipes/shapes_panoptic.args", "--eval", "--resume"]
    words += [str(CHECKPOINT), "--coco_path", str(pictures), "--coco_panoptic_path", str(pictures)]
    words += [
        "--eval_batch_size",
        str(batch),
        "--num_workers",
        "0",
        "--device",
        "cpu",
        "--output_dir",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    return json.loads((folder / "eval.json").read_text())


def test_pq_hardly_depends_on_the_evaluation_batch(pictures: Path, tmp_path: Path) -> None:
    """Padded masks that are stretched cost the published code half of its PQ.

    The model has been trained on padded pictures: one that has not also finds other boxes next to padding.
    """
    quality = [
        100 * evaluated(pictures, tmp_path / str(batch), batch)["test_PQ_all"]["pq"] for batch in (1, 2, 4)
    ]
    print("PQ at evaluation batches of 1, 2, 4: " + ", ".join(f"{pq:.2f}" for pq in quality))
    assert quality[0] > 50, "the model works on these pictures"
    assert max(quality) - min(quality) < MOST_POINTS


def test_figures_do_not_depend_on_the_number_of_ranks(pictures: Path, tmp_path: Path) -> None:
    """PQ, box AP and mask AP equal, and losses within 1e-6, from files to figures."""
    alone = evaluated(pictures, tmp_path / "1", RANKS_BATCH)
    for ranks in (2, 3):
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
        shared = evaluated(pictures, tmp_path / str(ranks), RANKS_BATCH, launcher)
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            if name.startswith(("test_PQ", "test_coco_eval")):
                assert shared[name] == value, (ranks, name)
            elif isinstance(value, float):
                assert shared[name] == pytest.approx(value, abs=1e-6), (ranks, name)
