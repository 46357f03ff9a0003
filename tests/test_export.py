"""Exported models: they give what the model gives at any size and number of images, or are not kept."""

import argparse
import contextlib
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import export
from inference import export_formats, trained
from inference.export_formats import FORMATS, Format, Onnx, TorchExport, TorchScript
from inference.exportable import Exportable, example_inputs
from inference.trained import TrainedModel, load_trained
from models.resnet import _nearest
from tests.helpers import ROOT, TINY_MODEL, assert_one_line, needs_scripting, python
from tests.reference.settings import build
from util.errors import UserError
from util.nested_tensor import NestedTensor

TINY = f"{TINY_MODEL} --dropout 0 "
SMALLEST = TINY.replace("--dec_layers 2", "--dec_layers 1") + "--backbone_stages 2"
MASKS = TINY.replace("32 --nheads 4", "128 --nheads 8") + "--masks "
NAMES = {1: "bolt", 2: "nut", 5: "gear"}
BOXES_WITHIN = 1e-4  # of the image
Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def made(flags: str, is_thing: dict[int, bool] | None = None) -> TrainedModel:
    """A small model with filled weights, as load_trained would give it."""
    model, _, postprocessors = build(flags, 0)
    (model.detr if "--masks" in flags else model).aux_loss = False
    args = argparse.Namespace(eval_scale=64, max_size=128)
    return TrainedModel(model.eval(), postprocessors, args, NAMES, is_thing, "folder/tiny.pth?key=secret")


def written(source: TrainedModel, kind: Format, folder: Path, **options: bool) -> Path:
    path = folder / f"{kind.name}.pt2"
    found = export.export(source, path, kind, **options)
    assert found and all(0 <= value < export.TOLERANCE for value in found.values())
    assert sorted(folder.iterdir()) == [path]
    return path


@torch.no_grad()
def expected(source: TrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model gives without any of the code that exports it."""
    images = inputs["images"]
    mask = inputs.get("mask", torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool))
    out = source.model(NestedTensor(images, mask))
    if "sizes" in inputs:
        results = source.postprocessors["bbox"](out, inputs["sizes"])
        out |= {name: torch.stack([result[name] for result in results]) for name in results[0]}
    return out


def random_batches(count: int, smallest: int, largest: int, **options: bool) -> Iterator[dict[str, Tensor]]:
    """Batches of one to three images of random sizes."""
    draw = random.Random(7)
    for number in range(count):
        sizes = [(draw.randint(smallest, largest), draw.randint(smallest, largest))]
        for _ in range(number % 3):
            sizes.append(tuple(draw.randint(smallest, side) for side in sizes[0]))  # type: ignore[arg-type]
        if not options["with_mask"]:
            sizes = sizes[:1] * len(sizes)
        yield example_inputs(sizes, seed=number, **options)


def assert_same(run: Run, source: TrainedModel, inputs: Mapping[str, Tensor]) -> None:
    """Boxes within BOXES_WITHIN of the image, scores within 1e-5, logits within 1e-4 of the largest."""
    found, wanted = run(inputs), expected(source, inputs)
    for name, value in found.items():
        limits = {"boxes": BOXES_WITHIN * 2000, "pred_boxes": BOXES_WITHIN, "scores": 1e-5, "labels": 0}
        limit = limits.get(name, 1e-4 * float(wanted[name].abs().max()))
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=limit)


# --- Small models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> TrainedModel:
    return made(SMALLEST)


@pytest.fixture(scope="module")
def onnx_file(detector: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in Onnx.packages:
        pytest.importorskip(package)
    return written(detector, Onnx(), tmp_path_factory.mktemp("onnx"), with_mask=True)


def test_onnx_gives_what_the_model_gives(onnx_file, detector):
    run = Onnx().load(onnx_file)
    for inputs in random_batches(10, 33, 200, with_mask=True, with_sizes=False):
        assert_same(run, detector, inputs)


def test_onnx_names_its_inputs_outputs_and_axes(onnx_file):
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert axes == {
        "images": ["batch", 3, "height", "width"],
        "mask": ["batch", "height", "width"],
        "pred_logits": ["batch", 10, 92],
        "pred_boxes": ["batch", 10, 4],
    }
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": export.LOWEST_OPSET}


def test_onnx_holds_norms_in_the_weights_of_convolutions(onnx_file, detector):
    """So that runtimes that want plain weights take it, and none computes them for each image."""
    import onnx

    graph = onnx.load(onnx_file).graph
    weights = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(part, torch.nn.Conv2d) for part in detector.model.modules())
    assert all(set(node.input[1:]) <= weights for node in convolutions)


def test_onnx_runs_without_this_project_and_torch(onnx_file, detector, tmp_path):
    program = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
boxes, = session.run(["pred_boxes"], {"images": images, "mask": np.zeros(images[:, 0].shape, bool)})
assert not {"torch", "models", "util"} & set(sys.modules)
np.save(sys.argv[3], boxes)
print(json.loads(session.get_modelmeta().custom_metadata_map["names"])["5"])
"""
    import numpy as np

    inputs = example_inputs([(70, 90)], False, False)
    np.save(tmp_path / "images.npy", inputs["images"].numpy())
    files = [str(onnx_file), "images.npy", "boxes.npy"]
    answer = python("-I", "-c", program, *files, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (0, "gear\n"), answer.stderr
    boxes = torch.from_numpy(np.load(tmp_path / "boxes.npy"))
    torch.testing.assert_close(boxes, expected(detector, inputs)["pred_boxes"], rtol=0, atol=BOXES_WITHIN)


@pytest.fixture(scope="module")
def archive(detector: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(detector, TorchExport(), tmp_path_factory.mktemp("pt2"), with_mask=True, postprocess=True)


def test_torch_export_gives_what_the_model_and_its_postprocessor_give(archive, detector):
    run = TorchExport().load(archive)
    for inputs in random_batches(6, 33, 200, with_mask=True, with_sizes=True):
        assert_same(run, detector, inputs)


def test_torch_export_keeps_no_paths_of_this_machine(archive):
    with zipfile.ZipFile(archive) as members:
        found = [name for name in members.namelist() if str(ROOT).encode() in members.read(name)]
        assert {name.partition("/")[0] for name in members.namelist()} == {"archive"}
    assert found == []


@pytest.fixture(scope="module")
def mask_model() -> TrainedModel:
    return made(MASKS + "--backbone_stages 3 --dataset_file coco_panoptic", {1: True, 2: True, 5: False})


@pytest.fixture(scope="module")
def script(mask_model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_scripting()
    return written(mask_model, TorchScript(), tmp_path_factory.mktemp("script"))


@pytest.mark.parametrize("with_mask", [False, True])
def test_torchscript_takes_a_mask_or_none(script, mask_model, with_mask):
    run = TorchScript().load(script)
    for inputs in random_batches(4, 33, 140, with_mask=with_mask, with_sizes=False):
        assert list(run(inputs)) == ["pred_logits", "pred_boxes", "pred_masks"]
        assert_same(run, mask_model, inputs)


def test_masks_cover_the_image_at_a_quarter_of_its_size(script):
    found = TorchScript().load(script)({"images": torch.zeros(1, 3, 69, 130)})
    assert found["pred_masks"].shape == (1, 10, 18, 33)


@pytest.mark.parametrize(
    "fixture, kind", [("onnx_file", Onnx), ("archive", TorchExport), ("script", TorchScript)]
)
def test_files_say_what_users_need(fixture, kind, request):
    path = request.getfixturevalue(fixture)
    assert kind().metadata(path) == {
        "source": "tiny.pth",
        "names": {"1": "bolt", "2": "nut", "5": "gear"},
        "is_thing": {"1": True, "2": True, "5": False} if fixture == "script" else None,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "eval_scale": 64,
        "max_size": 128,
    }


def test_the_model_stays_as_it_was(detector):
    model: Any = made(f"{TINY} --backbone_stages 2").model.train()
    model.aux_loss = True
    exportable = Exportable(model, postprocess=True)
    assert model.training and model.aux_loss and all(p.requires_grad for p in model.transformer.parameters())
    assert not exportable.training and not exportable.model.aux_loss
    assert exportable.output_names == ["scores", "labels", "boxes"]


def test_example_inputs_leave_torchs_random_numbers_alone():
    before = torch.get_rng_state()
    inputs = example_inputs([(40, 50), (30, 60)], True, True, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: value.shape for name, value in inputs.items()} == {
        "images": (2, 3, 40, 60), "mask": (2, 40, 60), "sizes": (2, 2),
    }  # fmt: skip
    assert inputs["mask"][1, 30:].all() and inputs["mask"][0, :, 50:].all()
    assert inputs["mask"].sum() == 2 * 40 * 60 - 40 * 50 - 30 * 60


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_padding_is_shrunk_as_torch_does_it(stride):
    """At all sizes: runtimes' own nearest interpolation rounds otherwise at some, hence ours."""
    for pixels in range(1, 2000):
        cells = -(-pixels // stride)
        places = torch.arange(pixels, dtype=torch.float32)
        wanted = interpolate(places[None, None], size=cells)[0, 0].long()
        assert torch.equal(_nearest(pixels, cells, torch.device("cpu")), wanted), pixels


# --- What is not kept ----------------------------------------------------------------------------------


class Wrong(TorchScript):
    """Writes another model than it is given."""

    def write(self, model: Exportable, example: Any, path: Path, metadata: Mapping[str, Any]) -> None:
        detector: Any = model.model
        with torch.no_grad():
            detector.bbox_embed.layers[-1].bias += 0.02
        super().write(model, example, path, metadata)


class Broken(TorchScript):
    """Writes what cannot be read."""

    def write(self, model: Exportable, example: Any, path: Path, metadata: Mapping[str, Any]) -> None:
        path.write_text("nothing of use")


@pytest.mark.parametrize(
    "kind, message",
    [
        (Wrong, r"not kept, because pred_boxes differs from PyTorch by [45]\..e-03"),
        (Broken, "it does not run: "),
    ],
)
def test_a_file_that_is_not_right_is_not_kept(kind, message, detector, tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("an earlier file")
    with pytest.raises(UserError, match=message):
        export.export(detector, path, kind())
    assert path.read_text() == "an earlier file"
    assert sorted(tmp_path.iterdir()) == [path]


def test_differences(detector):
    inputs = example_inputs([(64, 80), (64, 80)], False, True)
    right = expected(detector, inputs)
    right = {name: right[name] for name in ("scores", "labels", "boxes", "pred_logits")}
    assert export.differences(right, inputs, detector) == dict.fromkeys(right, 0.0)

    scale = inputs["sizes"].flip(1).repeat(1, 2)[:, None]  # x y x y
    moved = {"boxes": right["boxes"] + 0.01 * scale, "scores": right["scores"] - 0.02}
    found = export.differences(moved, inputs, detector)
    assert found == pytest.approx({"boxes": 0.01, "scores": 0.02}, rel=1e-3)

    largest = float(right["pred_logits"].abs().max())
    assert largest > 1
    found = export.differences({"pred_logits": right["pred_logits"] + 0.5}, inputs, detector)
    assert found["pred_logits"] == pytest.approx(0.5 / largest, rel=1e-3)

    probabilities = right["pred_logits"].softmax(-1)[0, 4]
    labels = right["labels"].clone()
    labels[0, 4] = worst = int(probabilities[:-1].argmin())
    found = export.differences({"labels": labels}, inputs, detector)
    assert found["labels"] == pytest.approx(float(right["scores"][0, 4] - probabilities[worst]), rel=1e-3)

    right["scores"][1, 2] = float("nan")
    spoiled = {"scores": right["scores"], "boxes": right["boxes"][:, :5]}
    assert export.differences(spoiled, inputs, detector) == dict.fromkeys(spoiled, float("inf"))


# --- The command line ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    state = build(SMALLEST, 0)[0].state_dict()
    torch.save({"model": state, "args": argparse.Namespace(nheads=4), "categories": NAMES}, path)
    return path


def test_the_command_line(checkpoint, tmp_path, capsys):
    needs_scripting()
    path = tmp_path / "tiny.pt"
    flags = ["--resume", str(checkpoint), "--format", "torchscript", "--output", str(path), "--postprocess"]
    assert export.run(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["scores", "labels", "boxes", f"{path}:"]
    assert TorchScript().metadata(path)["names"] == {str(key): name for key, name in NAMES.items()}
    inputs = example_inputs([(64, 100)], False, True)
    assert_same(TorchScript().load(path), load_trained(checkpoint), inputs)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--format torchscript --opset 18 --output x.pt", "--opset is ONNX's; leave it out"),
        ("--format torch_export --output x.pt", "--output x.pt: torch_export needs a name that ends in .pt2"),
        ("--format torchscript --output missing/x.pt", "--output missing/x.pt: its folder does not exist"),
        ("--format torchscript --output .", "--output .: is a folder"),
        ("--format onnx --output x.onnx --opset 17", "argument --opset: 17 is below 18"),
        ("--format torchscript --output {checkpoint}", "--output {checkpoint}: is the checkpoint itself"),
    ],
)
def test_mistakes(flags, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = checkpoint.read_bytes()
    with contextlib.suppress(SystemExit):  # argparse ends so
        assert export.run(["--resume", str(checkpoint), *flags.format(checkpoint=checkpoint).split()]) == 2
    assert_one_line(capsys, message.format(checkpoint=checkpoint))
    assert list(tmp_path.iterdir()) == [] and checkpoint.read_bytes() == before


def test_missing_packages_are_named_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_formats, "find_spec", lambda name: None if name.startswith("onnxr") else name)
    monkeypatch.setattr(trained, "load_trained", lambda *_: pytest.fail("loaded"))
    assert export.run(f"--resume x --format onnx --output {tmp_path}/x.onnx".split()) == 2
    assert capsys.readouterr().err == "error: --format onnx needs packages: pip install onnxruntime\n"


def test_names_and_numbers_that_stand_twice():
    """The parser has them too, so that --help does not load torch."""
    assert set(export.FORMAT_NAMES) == set(FORMATS)
    assert export.LOWEST_OPSET == export_formats.OPSET


# --- Every kind of model -------------------------------------------------------------------------------

KINDS = {
    "r18": TINY,
    "dc5": TINY.replace("resnet18", "resnet50") + "--dilation",
    "learned positions": TINY + "--position_embedding learned",
    "pre-norm": TINY + "--pre_norm",
    "two stages, batch norm": TINY + "--backbone_stages 2 --backbone_norm batch",
    "masks": MASKS,
    "masks of dc5": MASKS.replace("resnet18", "resnet50") + "--dilation",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "flags, with_mask", [*((flags, True) for flags in KINDS), ("r18", False), ("masks", False)]
)
def test_every_kind_of_model(flags, kind, with_mask, tmp_path):
    for package in FORMATS[kind].packages:
        pytest.importorskip(package)
    source = made(KINDS[flags])
    path = written(source, FORMATS[kind](), tmp_path, with_mask=with_mask, postprocess=with_mask)
    run = FORMATS[kind]().load(path)
    for inputs in random_batches(3, 33, 180, with_mask=with_mask, with_sizes=with_mask):
        assert_same(run, source, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 22])
def test_later_opsets(opset, detector, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = written(detector, Onnx(opset), tmp_path, with_mask=True)
    assert onnx.load(path).opset_import[0].version == opset
