"""Checkpoints: what published files hold is read, what would run code is not; written whole or not at all."""

import argparse
import collections
import datetime
import errno
import io
import os
import pathlib
import pickle
import random
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from util.checkpoint_file import load_checkpoint, model_state, save_checkpoint, stored_flags
from util.errors import UserError

WEIGHTS = {"head.weight": torch.arange(12.0).view(3, 4), "head.bias": torch.tensor([1.0, -2.0, 0.5])}


class Flag:
    """Of a user's own code."""


def written(path, content, **options):
    torch.save(content, path, **options)
    return path


def assert_weights(checkpoint):
    state = model_state(checkpoint)
    assert list(state) == list(WEIGHTS)
    assert all(torch.equal(state[name], value) for name, value in WEIGHTS.items())


def training_state():
    """Optimizer and schedule after a step, as their state_dicts."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 200)
    parameter.sum().backward()
    optimizer.step()
    schedule.step()
    return {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}


# --- What is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_files_as_the_published_code_writes_them(tmp_path, zipped):
    """Before torch 1.6 files were no zip archives."""
    args = argparse.Namespace(lr=1e-4, backbone="resnet50", masks=False, resume="", num_classes=None)
    content = {"model": WEIGHTS, **training_state(), "epoch": 7, "args": args}
    path = written(tmp_path / "checkpoint.pth", content, _use_new_zipfile_serialization=zipped)
    checkpoint = load_checkpoint(path)
    assert_weights(checkpoint)
    assert checkpoint["args"] == args and checkpoint["epoch"] == 7
    assert checkpoint["optimizer"]["state"][0]["exp_avg"].tolist() == pytest.approx([0.1] * 3)
    assert checkpoint["lr_scheduler"]["last_epoch"] == 1


def test_a_namespace_from_slurm_holds_a_path(tmp_path):
    """run_with_submitit.py as published replaces output_dir by a Path before it trains."""
    args = argparse.Namespace(output_dir=pathlib.PurePosixPath("/experiments/17"))
    content = {"model": WEIGHTS, "args": args}
    path = written(tmp_path / "checkpoint.pth", content, _use_new_zipfile_serialization=False)
    names = {type(args.output_dir).__module__, "pathlib"}
    raw = path.read_bytes()
    for module in names:  # newer Pythons keep the classes elsewhere
        raw = raw.replace(f"c{module}\nPurePosixPath\n".encode(), b"cpathlib\nPosixPath\n")
    path.write_bytes(raw)
    checkpoint = load_checkpoint(path)
    assert_weights(checkpoint)
    assert str(checkpoint["args"].output_dir) == "/experiments/17"


HARMLESS = {
    "range": range(3, 9, 2),
    "slice": slice(1, 2),
    "complex": 1j,
    "frozenset": frozenset({1}),
    "type": int,
    "namespace": SimpleNamespace(a=1, b=SimpleNamespace(c=range(2))),
    "array": np.arange(6.0).reshape(2, 3),
    "array of halves": np.ones(2, np.float16),
    "array of words": np.array(["a", "bc"]),
    "array of objects": np.array([[1], "a"], dtype=object),
    "array by columns": np.asfortranarray(np.ones((2, 3))),
    "time": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    "duration": datetime.timedelta(1),
    "path": pathlib.PurePosixPath("/a/b"),
    "path of Windows": pathlib.PureWindowsPath("C:/a"),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_that_do_no_harm(tmp_path, zipped):
    args = argparse.Namespace(**HARMLESS)
    path = written(
        tmp_path / "x.pth", {"model": WEIGHTS, "args": args}, _use_new_zipfile_serialization=zipped
    )
    stored = vars(load_checkpoint(path)["args"])
    assert stored.keys() == HARMLESS.keys()
    for name, value in HARMLESS.items():
        assert type(stored[name]) is type(value) and repr(stored[name]) == repr(value), name


def test_containers_that_become_plain_ones(tmp_path):
    counts = collections.defaultdict(list, {"a": [1]})
    args = SimpleNamespace(counts=counts, last=collections.deque([1, 2], 2), lr=0.1)
    checkpoint = load_checkpoint(written(tmp_path / "x.pth", {"model": WEIGHTS, "args": args}))
    assert stored_flags(checkpoint) == {"counts": {"a": [1]}, "last": [1, 2], "lr": 0.1}


def test_what_only_its_package_can_make_is_named_and_not_called_code(tmp_path):
    """Such as a pickled model, or a flag of a class of the user's own."""
    path = written(tmp_path / "other.pth", {"model": WEIGHTS, "args": Flag()})
    with pytest.raises(UserError, match=r"other\.pth: holds a [\w.]+\.Flag, .*save its state_dict") as caught:
        load_checkpoint(path)
    assert "code" not in str(caught.value)


# --- Names of tensors ---------------------------------------------------------------------------------

DETR_NAMES = ("transformer.norm.weight", "class_embed.bias", "backbone.0.body.conv1.weight")


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",
        "_orig_mod.{}",
        "model.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "model._orig_mod.{}",
        "_forward_module.model.{}",
        "_fsdp_wrapped_module.{}",
        "module.detr.{}",
        "model.model.{}",
    ],
)
@pytest.mark.parametrize("entry", ["model", "state_dict", None])
def test_names_lose_what_wrappers_put_before_them(tmp_path, capsys, wrapped, entry):
    detr = "detr." if "detr." in wrapped else ""
    state = {wrapped.format(name): torch.full((2,), float(i)) for i, name in enumerate(DETR_NAMES)}
    path = written(tmp_path / "x.pth", {entry: state, "epoch": 3} if entry else state)
    checkpoint = load_checkpoint(path)
    own = model_state(checkpoint)
    assert [*own] == [detr + name for name in DETR_NAMES]
    assert [value[0].item() for value in own.values()] == [0, 1, 2]
    assert checkpoint.get("epoch") == (3 if entry else None)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path}: {next(iter(state))} is read as {detr}{DETR_NAMES[0]}" in said


def test_a_part_that_was_wrapped_and_tensors_beside_the_model(tmp_path, capsys):
    state = dict.fromkeys(
        ("model.transformer._orig_mod.norm.weight", "model.class_embed.bias"), torch.ones(1)
    )
    beside = {"criterion.empty_weight": torch.ones(2), "metric.total": torch.ones(1)}
    checkpoint = load_checkpoint(written(tmp_path / "x.ckpt", {"state_dict": beside | state}))
    assert [*model_state(checkpoint)] == ["transformer.norm.weight", "class_embed.bias"]
    assert "2 others that are not the model's are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        DETR_NAMES,
        ("model.encoder.norm.weight", "class_labels_classifier.bias"),  # of transformers
        ("module.class_embed.bias", "class_embed.bias"),  # which of the two?
        ("student.class_embed.bias", "teacher.class_embed.bias"),
    ],
)
def test_other_names_stay(tmp_path, capsys, names):
    state = dict.fromkeys(names, torch.ones(1))
    assert [*model_state(load_checkpoint(written(tmp_path / "x.pth", {"model": state})))] == [*names]
    assert capsys.readouterr().err == ""


# --- More of what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.int32, np.bool_])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_scalars_of_either_numpy(tmp_path, kind, module):
    number = kind(1)
    path = tmp_path / "checkpoint.pth"
    written(path, {"model": WEIGHTS, "best": number}, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    ours = number.__reduce__()[0].__module__.encode()  # NumPy 1 and 2 keep the function in different ones
    assert raw.count(ours) == 1
    path.write_bytes(raw.replace(ours, module))
    best = load_checkpoint(path)["best"]
    assert best == number and type(best) is kind


def test_a_bare_state_dict(tmp_path):
    assert_weights(load_checkpoint(written(tmp_path / "weights.pth", WEIGHTS)))
    module = torch.nn.ModuleDict({"head": torch.nn.Linear(4, 3)})
    module.load_state_dict(WEIGHTS)
    assert_weights(load_checkpoint(str(written(tmp_path / "ordered.pth", module.state_dict()))))


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "args": {}}, {"model": {}}, {"model": 3}])
def test_no_weights_where_they_are_looked_for(content):
    with pytest.raises(UserError, match=r"holds no weights: no entry `model`"):
        model_state(content)


# --- What is refused ----------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker, through):
        self.marker, self.through = marker, through

    def __reduce__(self):
        if self.through == "system":
            return os.system, (f"touch '{self.marker}'",)
        if self.through == "eval":
            return eval, (f"open({str(self.marker)!r}, 'w').close()",)
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
@pytest.mark.parametrize("through", ["system", "eval", "open"])
def test_a_file_that_would_run_code_does_not(tmp_path, through, kind):
    marker = tmp_path / "was_here"
    content = {"model": WEIGHTS, "args": argparse.Namespace(hidden=[Bomb(marker, through)])}
    path = tmp_path / "checkpoint.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["args"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"checkpoint\.pth: (refused, .* would run code|not a checkpoint)"):
        load_checkpoint(path)
    assert not marker.exists()
    if kind == "zip":  # the bomb is a real one
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_the_refusal_names_what_would_be_run(tmp_path):
    path = written(tmp_path / "evil.pth", {"model": WEIGHTS, "x": Bomb(tmp_path / "was_here", "system")})
    with pytest.raises(UserError, match=r"evil\.pth: refused, .*\bsystem\b"):
        load_checkpoint(path)


def foreign_zip():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("folder/readme.txt", "hello")
        return file.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"text, and not a checkpoint\n" * 20,
    "html": b"<!DOCTYPE html>",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(90),
    "zip": foreign_zip(),
    "pickle": pickle.dumps({"model": 1}),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_named(tmp_path, kind):
    path = tmp_path / "foreign.pth"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(UserError, match=r"foreign\.pth") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[WEIGHTS], torch.ones(3), 7])
def test_what_is_no_dict_is_named(tmp_path, content):
    path = written(tmp_path / "list.pth", content)
    with pytest.raises(UserError, match=rf"list\.pth: holds a {type(content).__name__}"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(UserError, match=f"{path}: there is no such file"):
            load_checkpoint(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_never_ends_in_a_traceback(tmp_path, zipped):
    """Cut off, it is refused with its name; with bytes changed too, unless none of them matters."""
    random.seed(0)
    content = {"model": WEIGHTS, "args": argparse.Namespace(a=1), "best": np.float64(2)}
    whole = written(tmp_path / "whole.pth", content, _use_new_zipfile_serialization=zipped).read_bytes()
    path = tmp_path / "damaged.pth"
    for _ in range(60):
        path.write_bytes(whole[: random.randrange(len(whole))])
        with pytest.raises(UserError, match=r"damaged\.pth"):
            load_checkpoint(path)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 1, 4))):
            damaged[random.randrange(len(whole))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except UserError as error:
            assert "damaged.pth" in str(error)


# --- Writing ------------------------------------------------------------------------------------------


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "checkpoint.pth"
    args = {"lr": 1e-4, "resume": None, "scales": [480, 512]}
    content = {"model": WEIGHTS, **training_state(), "epoch": 3, "args": args}
    save_checkpoint(content, path)
    assert torch.load(path, weights_only=True).keys() == content.keys()
    checkpoint = load_checkpoint(path)
    assert_weights(checkpoint)
    assert checkpoint["args"] == args
    save_checkpoint({"model": WEIGHTS, "epoch": 4}, str(path))  # over the old one
    assert load_checkpoint(path)["epoch"] == 4
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pth"]


def full_disk(monkeypatch):
    def save(content, file, **options):
        file.write(b"the first part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)


def full_at_flush(monkeypatch):
    def sync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", sync)


def interrupted(monkeypatch):
    def save(content, file, **options):
        file.write(b"the first part")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)


@pytest.mark.parametrize(
    "breaks, content, expected",
    [
        (full_disk, {"epoch": 2}, UserError),
        (full_at_flush, {"epoch": 2}, UserError),
        (interrupted, {"epoch": 2}, KeyboardInterrupt),
        (lambda patch: None, {"epoch": lambda: 2}, Exception),  # cannot be pickled: a programmer's mistake
    ],
)
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, breaks, content, expected):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"model": WEIGHTS, "epoch": 1}, path)
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(expected) as caught:
            save_checkpoint(content, path)
    if expected is UserError:
        assert "checkpoint.pth: cannot be written" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert load_checkpoint(path)["epoch"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/gone/checkpoint\.pth: cannot be written.*--output_dir"):
        save_checkpoint({"model": WEIGHTS}, tmp_path / "gone" / "checkpoint.pth")
