"""Checkpoints as .safetensors files: read wherever a checkpoint is, whole or refused, and written."""

import argparse
import errno
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.trained import load_trained
from tests.file_server import serving
from tests.helpers import (
    CUSTOM_CATEGORIES,
    TINY,
    Prepared,
    assert_equal,
    load,
    read_log,
    run,
)
from tests.reference.settings import build
from util.checkpoint_file import load_checkpoint, save_checkpoint
from util.errors import UserError

safetensors = pytest.importorskip("safetensors", reason="needs safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402 (only where it is installed)

WEIGHTS = {
    "head.weight": torch.arange(12.0).view(3, 4),
    "head.half": torch.tensor([1.0, -2.0, 0.5]).half(),
    "head.brain": torch.tensor([[3.0, -0.0]]).bfloat16(),
    "norm.num_batches_tracked": torch.tensor(7),
    "nothing": torch.zeros(0, 4),
}
ARGS = {"lr": 1e-4, "masks": False, "scales": [480, 512], "num_classes": None, "backbone": "resnet50"}
CONTENT = {
    "model": WEIGHTS,
    "args": ARGS,
    "categories": {1: "bolt", 5: "écrou"},
    "is_thing": {1: True, 5: False},
}


# --- Written and read ----------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_checkpoint({**CONTENT, "optimizer": {"step": 3}, "epoch": 3}, tmp_path / "c.safetensors")
    found = load_checkpoint(tmp_path / "c.safetensors")
    assert found.keys() == CONTENT.keys()
    assert {name: found[name] for name in found if name != "model"} == {
        name: value for name, value in CONTENT.items() if name != "model"
    }
    assert_equal(found["model"], {name: WEIGHTS[name] for name in found["model"]})
    assert found["model"].keys() == WEIGHTS.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_the_file_is_what_others_read(tmp_path: Path) -> None:
    save_checkpoint(CONTENT, tmp_path / "c.safetensors")
    found = load_file(tmp_path / "c.safetensors")
    assert found.keys() == WEIGHTS.keys()
    assert_equal(found, {name: WEIGHTS[name] for name in found})


def test_a_file_of_others_holds_weights_alone(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "c.safetensors")
    found = load_checkpoint(tmp_path / "c.safetensors")
    assert found.keys() == {"model"}
    assert_equal(found["model"], {name: WEIGHTS[name] for name in found["model"]})


def test_tensors_may_share_memory_and_lie_in_any_order(tmp_path: Path) -> None:
    """The library itself refuses both."""
    whole = torch.arange(48.0).view(2, 3, 2, 4)
    state = {
        "one": whole,
        "other": whole,
        "part": whole[1:],
        "transposed": whole[0, 0].t(),
        "channels last": whole.to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    save_checkpoint({"model": state}, tmp_path / "c.safetensors")
    found = load_checkpoint(tmp_path / "c.safetensors")["model"]
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())


def test_flags_may_be_a_namespace_and_paths(tmp_path: Path) -> None:
    args = argparse.Namespace(output_dir=Path("outputs"), lr=0.5, scales=(1, 2))
    save_checkpoint({"model": WEIGHTS, "args": args}, tmp_path / "c.safetensors")
    assert load_checkpoint(tmp_path / "c.safetensors")["args"] == {
        "output_dir": "outputs", "lr": 0.5, "scales": [1, 2],
    }  # fmt: skip


def test_what_is_written_does_not_change_what_it_is_written_from(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "model": {"a": torch.ones(2, 2).t()},
        "args": {"lr": 1.0},
        "categories": {1: "bolt"},
    }
    save_checkpoint(given, tmp_path / "c.safetensors")
    assert given["args"] == {"lr": 1.0} and given["categories"] == {1: "bolt"}
    assert torch.equal(given["model"]["a"], torch.ones(2, 2))


# --- Damage --------------------------------------------------------------------------------------------


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


def with_words(**words: str) -> Callable[[bytes], bytes]:
    """The same tensors, with other words beside them and no checksum."""

    def edit(raw: bytes) -> bytes:
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        header["__metadata__"] = words
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    return edit


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda raw: raw[:-5], "damaged, cut off"),
    "cut off in its header": (lambda raw: raw[:60], "damaged, cut off"),
    "empty": (lambda raw: b"", "damaged, cut off"),
    "text": (lambda raw: b"hello, this is no checkpoint\n" * 9, "damaged, cut off"),
    "a bit of the last weight": (flipped(-3), "its checksum does not match"),
    "the header": (flipped(12), "damaged"),
    "flags no JSON": (with_words(args="{"), "what it says of args is not readable"),
    "flags no dict": (with_words(args="3"), "what it says of args is not readable"),
    "categories without ids": (with_words(categories='{"a": "b"}'), "of categories is not readable"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    edit, message = DAMAGES[name]
    path = tmp_path / "c.safetensors"
    save_checkpoint(CONTENT, path)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(UserError, match=rf"c\.safetensors: .*{message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["class_labels_classifier.bias", "detr.class_labels_classifier.bias"])
def test_weights_of_transformers_are_named_with_the_command(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    save_file({name: torch.zeros(4)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"tools\.convert_hf from-hf .*exported checkpoint\.pth"):
        load_checkpoint(folder / "model.safetensors")


def test_without_the_package_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(CONTENT, path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="pip install safetensors"):
        save_checkpoint(CONTENT, tmp_path / "other.safetensors")
    assert [found.name for found in tmp_path.iterdir()] == ["c.safetensors"]


def test_other_checkpoints_need_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    save_checkpoint(CONTENT, tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["args"] == ARGS


def test_a_denied_file_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    save_checkpoint(CONTENT, tmp_path / "c.safetensors")
    monkeypatch.setattr("util.checkpoint_file.open", deny, raising=False)  # a mode binds no root
    with pytest.raises(UserError, match=r"c\.safetensors: cannot be read \(Permission denied\)"):
        load_checkpoint(tmp_path / "c.safetensors")


# --- Wherever a checkpoint is read ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def twin(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What main.py saved, as safetensors."""
    path = tmp_path_factory.mktemp("twin") / "twin.safetensors"
    save_checkpoint(load_checkpoint(trained / "checkpoint.pth"), path)
    return path


def test_training_starts_from_its_weights(twin: Path, prepared: Prepared, tmp_path: Path) -> None:
    """`--resume` of weights alone begins at epoch 0, as with a .pth file that holds nothing else."""
    still = ["--coco_path", prepared.root, "--lr", 0, "--lr_backbone", 0, "--weight_decay", 0, "--epochs", 1]
    for flag in ("--resume", "--finetune"):
        assert run(*still, flag, twin, "--output_dir", tmp_path / flag) == 0
        assert_equal(load(tmp_path / flag / "checkpoint.pth")["model"], load_checkpoint(twin)["model"])
        assert [entry["epoch"] for entry in read_log(tmp_path / flag)] == [0]


def test_frozen_weights_may_be_safetensors(prepared: Prepared, tmp_path: Path) -> None:
    wide = "--hidden_dim 128 --nheads 8 --backbone_stages 3"
    detector = build(f"{TINY} {wide} --num_classes {max(CUSTOM_CATEGORIES) + 1}", seed=0)[0].state_dict()
    save_checkpoint({"model": detector}, tmp_path / "boxes.safetensors")
    words = ["--coco_path", prepared.root, "--masks", *wide.split(), "--epochs", 1]
    out = tmp_path / "out"
    assert run(*words, "--frozen_weights", tmp_path / "boxes.safetensors", "--output_dir", out) == 0
    state = load(out / "checkpoint.pth")["model"]
    assert_equal({name: state[f"detr.{name}"] for name in detector}, dict(detector))


def test_a_trained_model_is_loaded_with_its_names(twin: Path, trained: Path) -> None:
    found, expected = load_trained(twin), load_trained(trained / "checkpoint.pth")
    assert found.names == expected.names == CUSTOM_CATEGORIES
    assert_equal(found.model.state_dict(), expected.model.state_dict())
    kept = {name: value for name, value in vars(expected.args).items() if not isinstance(value, Path | tuple)}
    assert {name: vars(found.args)[name] for name in kept} == kept


def test_it_may_come_from_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    shared = tmp_path / "shared"
    shared.mkdir()
    save_checkpoint(CONTENT, shared / "c.safetensors")
    raw = (shared / "c.safetensors").read_bytes()
    (shared / "broken.safetensors").write_bytes(flipped(-3)(raw))
    with serving(shared) as server:
        assert load_checkpoint(f"{server.url}/c.safetensors")["categories"] == CONTENT["categories"]
        with pytest.raises(UserError, match="checksum"):
            load_checkpoint(f"{server.url}/broken.safetensors")
    kept = [path.name for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert kept == ["c.safetensors"]
