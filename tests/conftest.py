"""Fixtures that more than one test file uses; nobody may write into what the session's ones give."""

import json
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from tests import helpers
from tests.file_server import forbid_network
from tests.helpers import CUSTOM_CATEGORIES, TINY, Prepared, Refused, annotation, trained_flags, write_coco
from tests.reference.settings import build, parse
from tests.reference.streams import fill_state

PROCESS_LINES = 60  # the last ones that a failed process printed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a process said whose failure fails a test."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        for name, text in (("stdout", error.stdout), ("stderr", error.stderr)):
            lines = (text.decode(errors="replace") if isinstance(text, bytes) else text or "").splitlines()
            report.sections.append((f"{name} of the process", "\n".join(lines[-PROCESS_LINES:])))
    return report


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set with categories of its own."""
    return write_coco(tmp_path_factory.mktemp("coco") / "tiny")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, coco_root: Path) -> Prepared:
    """The tiny data set with validation objects near those that a model with filled weights sees."""
    from datasets import build_dataset  # here, so that a fault in it fails these tests alone

    folder = tmp_path_factory.mktemp("prepared")
    root, start = folder / "data", folder / "start.pth"
    shutil.copytree(coco_root, root)
    flags = f"{TINY} --num_classes {max(CUSTOM_CATEGORIES) + 1}"
    model = build(flags, seed=0)[0].eval()
    unknown = [i for i in range(max(CUSTOM_CATEGORIES)) if i not in CUSTOM_CATEGORIES]
    model.class_embed.bias.data[unknown] -= 10  # no category of the data has these ids
    torch.save({"model": model.state_dict()}, start)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = list(
        _seen_objects(model, build_dataset("val", parse(flags, f"--coco_path={root}")))
    )
    path.write_text(json.dumps(content))
    return Prepared(root, start)


@torch.no_grad()
def _seen_objects(model: torch.nn.Module, data: Any) -> Iterator[dict[str, Any]]:
    """The four best detections of each image, moved by some pixels."""
    from models.postprocess import PostProcess

    draw = np.random.default_rng(1)
    number = 0
    for image, target in data:
        found = PostProcess()(model([image]), target["orig_size"][None])[0]
        for i in found["scores"].argsort(descending=True)[:4].tolist():
            number += 1
            x0, y0, x1, y1 = (float(v) for v in found["boxes"][i])
            moved = [v + float(draw.uniform(-2, 2)) for v in (x0, y0, x1 - x0, y1 - y0)]
            yield annotation(number, int(target["image_id"]), int(found["labels"][i]), moved)


@pytest.fixture(scope="session")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of three epochs, with a drop of the learning rate after the second."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = [*trained_flags(prepared), "--resume", prepared.start, "--epochs", 3, "--output_dir", out]
    assert helpers.run(*words) == 0
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command, main.py's unless another is given, whose words are a mistake.

    It ends with status 2, and says what is wrong in one line with every fragment in it.
    """

    def check(words: Sequence[object], *fragments: str, run: Callable[..., int] = helpers.run) -> None:
        capsys.readouterr()
        assert run(*words) == 2
        helpers.assert_one_line(capsys, *fragments)

    return check


# --- Weights and the network ----------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to reach the network a failure of the test."""
    forbid_network(monkeypatch)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's cache of checkpoints, empty; and no proxy stands before this machine's servers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes them: a whole ResNet-18 with ordinary norms, filled."""
    network = torchvision.models.resnet18()
    fill_state(network, 3)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path
