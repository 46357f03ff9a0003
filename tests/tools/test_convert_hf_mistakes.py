"""What cannot be exchanged with transformers: one line says so, and nothing is kept."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.trained import load_trained
from tests.helpers import files
from tests.tools.exchange import MODELS, Exported, convert, transformers, written
from tools import hf_config, hf_models, hf_names
from util.errors import UserError


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported.within(tmp_path_factory.mktemp("exchange"))


@pytest.mark.parametrize("direction", ["to-hf", "from-hf"])
def test_models_that_differ_are_not_kept(direction, exported, tmp_path, monkeypatch, refused):
    """Keys and values in each other's place: every tensor finds one, of its shape."""
    target = tmp_path / "target"
    monkeypatch.setattr(hf_names, "_PARTS", ("q_proj", "v_proj", "k_proj"))
    refused(
        [direction, exported.checkpoint if direction == "to-hf" else exported.folder, target],
        "target: not written, because both models differ: logits ",
        "boxes ",
        run=convert,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_is_no_number_is_one(monkeypatch):
    monkeypatch.setattr(hf_models, "differences", lambda *models: {"logits": 0.0, "boxes": float("nan")})
    with pytest.raises(UserError, match="boxes nan"):
        hf_models.checked(torch.nn.Identity(), None, "there")


OURS_ALONE = {
    "pre-norm": ("--pre_norm", "--pre_norm: transformers' DETR has no norms in front"),
    "another backbone": (
        "--backbone timm/convnext_atto",
        "--backbone timm/convnext_atto: exchanged are resnet18, ",
    ),
}


@pytest.mark.parametrize("name", OURS_ALONE)
def test_what_transformers_has_not_is_refused(name, tmp_path, refused):
    words, message = OURS_ALONE[name]
    _, path = written(tmp_path / "ours.pth", words)
    refused(["to-hf", path, tmp_path / "there"], message, run=convert)
    assert [found.name for found in tmp_path.iterdir()] == ["ours.pth"]


def config_with(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        body = changes.get("backbone_config", {})
        body = {**content["backbone_config"], **body} if body.get("model_type") is None else body
        path.write_text(json.dumps({**content, **changes, "backbone_config": body}))

    return edit


def without(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        assert state.pop(name) is not None
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return edit


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


TIMM_BODY = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [4]}
THEIRS_ALONE: dict[str, tuple[Callable[[Path], None], str]] = {
    "auxiliary loss": (config_with(auxiliary_loss=True), "auxiliary_loss is True, and only False is ours; w"),
    "activation": (config_with(activation_function="gelu"), "activation_function is gelu, and only relu"),
    "heads": (config_with(encoder_attention_heads=8), "encoder_attention_heads and decoder_attention_heads"),
    "stem": (config_with(backbone_config={"hidden_act": "silu"}), "the backbone's hidden_act is silu"),
    "early stage": (
        config_with(backbone_config={"out_features": ["stage3"], "out_indices": [3]}),
        "gives stage3 of 4 stages",
    ),
    "stride": (
        config_with(backbone_config={**TIMM_BODY, "output_stride": 8}),
        "output_stride is 8, and --di",
    ),
    "timm body": (
        config_with(backbone_config={**TIMM_BODY, "backbone": "resnet26"}),
        "backbone resnet26; ex",
    ),
    "another model": (config_with(model_type="conditional_detr"), "a DetrForObjectDetection; exchanged are"),
    "another head": (config_with(architectures=["DetrModel"]), "a DetrModel; exchanged are DetrForObject"),
    "missing weight": (
        without("class_labels_classifier.bias"),
        "1 weights are missing or do not fit, first c",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "transformers cannot load it ("),
    "cut off": (cut_off, "transformers cannot load it ("),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "transformers cannot load it ("),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "transformers cannot load it ("),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("name", THEIRS_ALONE)
def test_what_is_none_of_ours_is_refused(name, exported, tmp_path, capsys):
    edit, message = THEIRS_ALONE[name]
    folder = exported.copied(tmp_path / "there")
    edit(folder)
    capsys.readouterr()
    assert convert("from-hf", folder, tmp_path / "back.pth") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder}: ") and message in line
    assert [found.name for found in tmp_path.iterdir()] == ["there"]


def test_a_model_that_is_nowhere(tmp_path, monkeypatch, refused):
    refused(
        ["from-hf", tmp_path / "nowhere", tmp_path / "back.pth"],
        "nowhere: neither a folder nor a name on the model hub (OWNER/NAME)",
        run=convert,
    )

    def unreachable(*words: Any, **more: Any) -> None:
        raise OSError("no connection to the hub\nand a second line")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    refused(
        ["from-hf", "some/model", tmp_path / "back.pth"],
        "some/model: transformers cannot load it (no connection to the hub)",
        run=convert,
    )


@pytest.mark.parametrize("target", ["nowhere/there", "file"])
def test_a_target_that_cannot_be_written(target, exported, tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    refused(["to-hf", exported.checkpoint, tmp_path / target], f"{target}: cannot be written (", run=convert)
    (tmp_path / "folder").mkdir()
    other = "folder" if target == "file" else target
    refused(["from-hf", exported.folder, tmp_path / other], f"{other}: cannot be written (", run=convert)
    assert files(tmp_path) == {"file": b"mine"}


def test_images_that_are_prepared_differently_are_reported(exported, capsys):
    processor = transformers.DetrImageProcessor.from_pretrained(exported.folder)
    assert hf_config.image_settings_of(processor, "there") == {"eval_scale": 96, "max_size": 160}
    assert capsys.readouterr().err == ""
    processor.image_mean = (0.5, 0.5, 0.5)
    assert hf_config.image_settings_of(processor, "there") == {"eval_scale": 96, "max_size": 160}
    assert "warning: there: preprocessor_config.json prepares images differently" in capsys.readouterr().err


def test_without_a_preprocessor_the_sizes_are_the_defaults(exported, tmp_path):
    folder = exported.copied(tmp_path / "there")
    (folder / "preprocessor_config.json").unlink()
    assert convert("from-hf", folder, tmp_path / "back.pth") == 0
    args = load_trained(tmp_path / "back.pth").args
    assert (args.eval_scale, args.max_size) == (800, 1333)


def test_packages_that_are_missing_or_old(monkeypatch):
    with monkeypatch.context() as patch:
        module = sys.modules["transformers"]  # it replaces itself when it is first used
        patch.setattr(module, "__version__", "4.57.1")
        with pytest.raises(
            UserError, match=r"transformers 4\.57\.1 is too old: pip install 'transformers>=5'"
        ):
            hf_models.import_transformers()
    for name in ("transformers", "safetensors"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match="pip install 'transformers>=5' safetensors"):
                hf_models.import_transformers()


def test_without_timm_the_models_that_need_it_say_so(exported, tmp_path, monkeypatch, refused):
    _, path = written(tmp_path / "ours.pth", MODELS["timm: wide"])
    assert convert("to-hf", path, tmp_path / "there") == 0
    module = transformers.models.timm_backbone.modeling_timm_backbone

    def lacking(*what: Any) -> None:
        raise ImportError("TimmBackbone requires the timm library")

    monkeypatch.setattr(module, "requires_backends", lacking)
    refused(["to-hf", path, tmp_path / "other"], "pip install timm", run=convert)
    refused(
        ["from-hf", tmp_path / "there", tmp_path / "back.pth"], "there: ", "pip install timm", run=convert
    )
    assert convert("from-hf", exported.folder, tmp_path / "r18.pth") == 0  # needs none
