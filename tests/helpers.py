"""What several tests need: a tiny data set in COCO's layout, and flags of a model that trains in a second."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import main

CUSTOM_CATEGORIES = {1: "bolt", 2: "nut", 5: "gear"}
TRAIN_SIZES = ((96, 64), (64, 64), (72, 90), (100, 70), (64, 80))  # width, height
VAL_SIZES = ((96, 64),) * 4  # one size: no batch of them is padded
FIRST_ID = {"train": 100, "val": 200}

ROOT = Path(main.__file__).resolve().parent

# Two decoder layers, so that there are auxiliary losses.
TINY_MODEL = (
    "--backbone resnet18 --backbone_weights none --hidden_dim 32 --nheads 4 --dim_feedforward 32"
    " --enc_layers 1 --dec_layers 2 --num_queries 10"
)
TINY_IMAGES = "--scales 64 --eval_scale 64 --max_size 128"
# Two stages of the backbone have 0.7 million parameters instead of 11: 8 MB a checkpoint instead of 134.
TINY = f"{TINY_MODEL} --backbone_stages 2 {TINY_IMAGES} --device cpu --num_workers 0"


def write_pictures(
    folder: Path, sizes: Sequence[tuple[int, int]], first_id: int, step: int = 1
) -> list[dict[str, Any]]:
    """Write smooth coloured pictures of the given (width, height); return their entries for the JSON file."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(first_id)
    images = []
    for place, (width, height) in enumerate(sizes):
        image_id = first_id + step * place
        colours = Image.fromarray(draw.integers(0, 255, (4, 5, 3)).astype(np.uint8))
        name = f"{image_id:012d}.jpg"
        colours.resize((width, height), Image.Resampling.BICUBIC).save(folder / name, quality=95)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
    return images


def annotation(number: int, image_id: int, category: int, bbox: Sequence[float]) -> dict[str, Any]:
    """An object of an instances file; `bbox` is x, y, width, height in pixels."""
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    record = {"id": number, "image_id": image_id, "category_id": category, "bbox": list(bbox)}
    return {**record, "area": w * h, "iscrowd": 0, "segmentation": [polygon]}


def write_instances(
    root: Path,
    split: str,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
) -> Path:
    """Write annotations/instances_{split}2017.json, over an older one if there is one."""
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    names = [{"id": i, "name": name} for i, name in categories.items()]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    return path


def write_coco(root: Path, categories: Mapping[int, str] = CUSTOM_CATEGORIES) -> Path:
    """Write five pictures to train on and four to evaluate on, with one to three objects each."""
    draw = np.random.default_rng(0)
    ids = list(categories)
    for split, sizes in (("train", TRAIN_SIZES), ("val", VAL_SIZES)):
        images = write_pictures(root / f"{split}2017", sizes, FIRST_ID[split])
        objects: list[dict[str, Any]] = []
        for place, image in enumerate(images):
            for _ in range(1 + place % 3):
                low = draw.uniform(0, 0.5, 2) * (image["width"], image["height"])
                sides = draw.uniform(0.2, 0.5, 2) * (image["width"], image["height"])
                bbox = [round(float(v), 2) for v in (*low, *sides)]
                category = ids[len(objects) % len(ids)]
                objects.append(annotation(len(objects) + 1, image["id"], category, bbox))
        write_instances(root, split, images, objects, categories)
    return root


# --- Runs of main.py ------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """Data, and a checkpoint that holds weights alone, with which the AP on it is above 0."""

    root: Path
    start: Path


def run(*words: object) -> int:
    """main.py with the tiny model's flags and some more, in this process -> exit status."""
    try:
        return main.run([*TINY.split(), *map(str, words)])
    except SystemExit as end:  # argparse ends so
        return int(end.code or 0)


def python(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a user types it in the project's folder; `options` are subprocess.run's."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600, **options}
    return subprocess.run([sys.executable, *map(str, words)], **options)


def torchrun(processes: int, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same under torch's launcher."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    return python(*launcher, *words, **options)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """main.py in a process of its own."""
    return python("main.py", *words)


Refused = Callable[..., None]
"""Of the fixture `refused`."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def needs_scripting() -> None:
    """Skip the test from Python 3.14 on."""
    if sys.version_info >= (3, 14):
        pytest.skip("torch says that torch.jit.script is not supported from Python 3.14 on")


def assert_equal(one: Any, other: Any) -> None:
    """Two states, bit for bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def trained_flags(prepared: Prepared) -> list[object]:
    return ["--coco_path", prepared.root, "--lr_drop", 2]


def assert_one_line(capsys: pytest.CaptureFixture[str], *fragments: str) -> None:
    """stderr holds one message of one line, with every fragment in it."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line, line
