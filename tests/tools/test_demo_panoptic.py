"""What `make demo-panoptic` trained, on pictures of different sizes: in batches."""

import json
from pathlib import Path
from typing import Any

import pytest

from datasets.shapes import write_shapes
from tests.helpers import ROOT, python

CHECKPOINT = ROOT / "demo-panoptic" / "run" / "checkpoint.pth"
MOST_POINTS = 1.0  # of PQ, between evaluation batches
PICTURES = 100

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


def evaluated(pictures: Path, folder: Path, batch: int) -> dict[str, Any]:
    """`main.py --eval` on the pictures -> its figures."""
    words = ["main.py", "@recipes/shapes_panoptic.args", "--eval", "--resume", CHECKPOINT]
    words += ["--coco_path", pictures, "--coco_panoptic_path", pictures, "--eval_batch_size", batch]
    words += ["--num_workers", 0, "--device", "cpu", "--output_dir", folder]
    python(*words, check=True)
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
