"""Models for transformers and back: the same tensors, the same function, the same names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.architecture import settings_from_weights
from inference.trained import load_trained
from tests.helpers import TINY_MODEL, assert_equal, files, python
from tests.reference.registry import published_state
from tests.reference.settings import build, parse
from tests.tools.exchange import MODELS, NAMES, Exported, convert, loaded, model_of, transformers, written
from tools import hf_config, hf_names
from util.coco_names import COCO_PANOPTIC, COCO_THINGS
from util.hub_models import HUB_MODELS
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

KEPT = (
    "backbone", "backbone_norm", "backbone_stages", "dilation", "position_embedding", "pre_norm", "masks",
    "hidden_dim", "enc_layers", "dec_layers", "dim_feedforward", "num_queries", "nheads", "dataset_file",
    "dropout", "eval_scale", "max_size", "eos_coef", "set_cost_class", "set_cost_bbox", "set_cost_giou",
    "bbox_loss_coef", "giou_loss_coef", "mask_loss_coef", "dice_loss_coef",
)  # fmt: skip
SIZES = ((97, 64), (66, 128))  # others than those that the tool compares on


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported.within(tmp_path_factory.mktemp("exchange"))


def padded() -> NestedTensor:
    """Two images in double precision."""
    draw = torch.Generator().manual_seed(3)
    batch = nested_tensor_from_tensor_list([torch.randn(3, *size, generator=draw) for size in SIZES])
    return NestedTensor(batch.tensors.double(), batch.mask)


@torch.no_grad()
def outputs(ours: Any) -> dict[str, Tensor]:
    """`logits`, `pred_boxes` and, of a model with masks, `pred_masks`."""
    found = ours.double()(padded())
    named = {"logits": "pred_logits", "pred_boxes": "pred_boxes", "pred_masks": "pred_masks"}
    return {name: found[key] for name, key in named.items() if key in found}


@torch.no_grad()
def outputs_there(theirs: Any) -> Any:
    """The same of transformers' model."""
    batch = padded()
    assert batch.mask is not None
    return theirs.double()(pixel_values=batch.tensors, pixel_mask=1 - batch.mask.long())


# --- There and back ------------------------------------------------------------------------------------


SLOW = ("r34", "r101", "timm: wide")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)
def test_there_and_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = written(tmp_path / "ours.pth", MODELS[name])
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folder, back = tmp_path / "exported", tmp_path / "back.pth"
    assert convert("to-hf", path, folder) == 0
    assert convert("from-hf", folder, back) == 0
    printed = capsys.readouterr().out
    shown = [
        float(value) for value in re.findall(r"(?:logits|boxes|masks) (\S+?)(?:,|$)", printed, re.MULTILINE)
    ]
    assert len(shown) == (6 if model is not model_of(model) else 4) and max(shown) <= 1e-4

    found = torch.load(back, weights_only=True)
    assert found["model"].keys() == state.keys()
    assert all(torch.equal(found["model"][key], state[key]) for key in state)
    assert all(found["model"][key].dtype == state[key].dtype for key in state)
    given = torch.load(path, weights_only=True)
    assert {key: found["args"][key] for key in KEPT} == {key: given["args"][key] for key in KEPT}
    assert found["categories"] == NAMES
    assert found.get("is_thing") == given.get("is_thing")

    ours, theirs = outputs(model), outputs_there(loaded(folder))
    assert len(ours) == len(shown) / 2
    for key, values in ours.items():
        torch.testing.assert_close(theirs[key], values, rtol=0, atol=2e-5)
        assert values.std() > 1e-3  # values that could differ


def test_the_timm_models_are_those_that_transformers_itself_has_not() -> None:
    for name, words in MODELS.items():
        config = hf_config.config_of(parse(f"{TINY_MODEL} {words}", "--num_classes=3"), {}, None, [])
        assert hf_config.uses_timm(config) == name.startswith("timm")


@pytest.mark.parametrize("words", ["", MODELS["panoptic"]], ids=["boxes", "panoptic"])
def test_a_checkpoint_of_nothing_but_weights(words: str, tmp_path: Path) -> None:
    """Names and sizes are COCO's then; the heads of a model without masks have to be given."""
    model, path = written(tmp_path / "bare.pth", words, bare=True)
    assert convert("to-hf", path, tmp_path / "there", *([] if words else ["--nheads", 4])) == 0
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    names = COCO_PANOPTIC if words else COCO_THINGS
    assert len(config["id2label"]) == (250 if words else 91)
    assert {int(i): label for i, label in config["id2label"].items() if label != "N/A"} == names
    processor = transformers.DetrImageProcessor.from_pretrained(tmp_path / "there")
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}
    assert convert("from-hf", tmp_path / "there", tmp_path / "back.safetensors") == 0
    back = load_trained(tmp_path / "back.safetensors")
    assert all(torch.equal(back.model.state_dict()[key], value) for key, value in model.state_dict().items())
    assert back.names == names and back.args.nheads == (8 if words else 4)
    assert set(back.postprocessors) == ({"bbox", "segm", "panoptic"} if words else {"bbox"})


def test_flags_say_what_bare_weights_do_not(tmp_path: Path) -> None:
    _, path = written(tmp_path / "bare.pth", MODELS["timm: dc5"], bare=True)
    flags = ["--dilation", "--nheads", 4, "--eval_scale", 600, "--max_size", 1000]
    assert convert("to-hf", path, tmp_path / "there", *flags) == 0
    assert convert("from-hf", tmp_path / "there", tmp_path / "back.pth") == 0
    args = load_trained(tmp_path / "back.pth").args
    assert (args.dilation, args.nheads, args.eval_scale, args.max_size) == (True, 4, 600, 1000)


def test_classes_that_nobody_names_stay_without_names(tmp_path: Path) -> None:
    _, path = written(tmp_path / "bare.pth", "--num_classes 5", bare=True)
    assert convert("to-hf", path, tmp_path / "there", "--nheads", 4) == 0
    assert loaded(tmp_path / "there").config.num_labels == 5
    assert convert("from-hf", tmp_path / "there", tmp_path / "back.pth") == 0
    assert load_trained(tmp_path / "back.pth").names == {}


def test_the_flags_that_are_printed_are_enough_for_main(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = written(tmp_path / "ours.pth", MODELS["timm: dc5, masks, batch norm"])
    assert convert("to-hf", path, tmp_path / "there") == 0
    capsys.readouterr()
    assert convert("from-hf", tmp_path / "there", tmp_path / "back.pth") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "main.py" in line]
    words = line.partition(f"--resume {tmp_path / 'back.pth'} ")[2].partition(" --coco_path")[0]
    rebuilt = build(words, seed=1)[0]
    rebuilt.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True)["model"], strict=True)
    assert not any(layer.training for layer in model.modules())
    assert_equal(outputs(rebuilt.eval()), outputs(model))


# --- What transformers makes of it ---------------------------------------------------------------------


def test_the_folder_holds_three_files_that_others_may_read(exported: Exported) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in exported.folder.iterdir()}
    assert modes.keys() == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert len(set(modes.values())) == 1
    assert sorted(path.name for path in exported.folder.parent.iterdir()) == ["ours.pth", "there"]


def test_its_processor_prepares_and_reads_as_ours(exported: Exported) -> None:
    """From a picture's pixels to labels, scores and boxes in pixels, by their means and by ours."""
    from inference.pictures import prepare
    from util.nested_tensor import ByteBatch

    trained, theirs = load_trained(exported.checkpoint), loaded(exported.folder)
    processor = transformers.DetrImageProcessor.from_pretrained(exported.folder)
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 9, 8, generator=draw) * 255
    sizes = [(131, 250), (180, 111)]
    pictures = [
        torch.nn.functional.interpolate(n[None], size, mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
        for n, size in zip(noise, sizes, strict=True)
    ]
    inputs = processor(images=pictures, return_tensors="pt")
    batch = ByteBatch([prepare(p, trained.args.eval_scale, trained.args.max_size) for p in pictures])
    ours = batch.to("cpu")
    assert ours.mask is not None
    assert torch.equal(inputs["pixel_mask"] == 0, ours.mask)
    grey_level = 1 / 255 / 0.224
    torch.testing.assert_close(inputs["pixel_values"], ours.tensors, rtol=0, atol=1.01 * grey_level)

    with torch.no_grad():
        outputs = theirs(pixel_values=ours.tensors, pixel_mask=1 - ours.mask.long())
        here = trained.postprocessors["bbox"](trained.model(ours), torch.tensor(sizes))
    for mine, found in zip(
        here, processor.post_process_object_detection(outputs, 0.0, target_sizes=sizes), strict=True
    ):
        assert torch.equal(found["labels"], mine["labels"]) and len(mine["labels"]) == 10
        torch.testing.assert_close(found["scores"], mine["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found["boxes"], mine["boxes"], rtol=0, atol=1e-3)
    assert {theirs.config.id2label[i] for i in NAMES} == set(NAMES.values())
    assert theirs.config.num_labels == 91


def test_no_object_is_the_last_class_there_too(tmp_path: Path) -> None:
    model, path = written(tmp_path / "ours.pth", "--num_classes 8")
    content = torch.load(path, weights_only=True)
    content["model"]["class_embed.bias"][:] = torch.tensor([0.0] * 7 + [20.0, 40.0])  # 7, then no object
    torch.save(content, path)
    assert convert("to-hf", path, tmp_path / "there") == 0
    theirs = loaded(tmp_path / "there")
    with torch.no_grad():
        outputs = theirs(pixel_values=torch.zeros(1, 3, 64, 64))
    assert set(outputs.logits.argmax(-1).flatten().tolist()) == {8}
    (found,) = transformers.DetrImageProcessor().post_process_object_detection(outputs, 0.0)
    assert {theirs.config.id2label[int(label)] for label in found["labels"]} == {"gear"}


@pytest.mark.parametrize("name", HUB_MODELS)
def test_published_models_fill_theirs_exactly(name: str) -> None:
    """By names and shapes of the tensors in the seven published files."""
    state, panoptic = published_state(name), name.endswith("panoptic")
    settings = settings_from_weights(state, name) | {"dilation": "dc5" in name}
    config = hf_config.config_of(parse("", *words_of(settings)), {}, None, [])
    kind = transformers.DetrForSegmentation if panoptic else transformers.DetrForObjectDetection
    with torch.device("meta"):
        theirs = kind(config).state_dict()
    found = hf_names.state_to_hf(state, hf_config.uses_timm(config))
    expected = {key: tensor.shape for key, tensor in theirs.items() if "num_batches_tracked" not in key}
    assert {key: tensor.shape for key, tensor in found.items()} == expected
    back = hf_names.state_from_hf(theirs, hf_config.uses_timm(config))
    assert {key: tensor.shape for key, tensor in back.items()} == {k: v.shape for k, v in state.items()}


def words_of(settings: dict[str, Any]) -> list[str]:
    """The flags of main.py that give these settings."""
    known = vars(parse(""))
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in settings.items()
        if name in known and value not in (None, False) and known[name] != value
    ]


def test_a_model_as_the_hub_has_it(tmp_path: Path) -> None:
    """Its configuration is older: it names timm's backbone by three flags, and says nothing of ours."""
    model, path = written(tmp_path / "ours.pth", "--backbone resnet50 --dilation")
    folder = tmp_path / "there"
    assert convert("to-hf", path, folder) == 0
    config = json.loads((folder / "config.json").read_text())
    del config["backbone_config"], config["detr_checkpoint"]
    config |= {
        "backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": False, "dilation": True,
        "max_position_embeddings": 1024, "scale_embedding": False, "classifier_dropout": 0.0,
        "num_hidden_layers": 1, "transformers_version": "4.27.0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({
            "do_normalize": True, "do_resize": True, "feature_extractor_type": "DetrFeatureExtractor",
            "format": "coco_detection", "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225], "max_size": 1333, "size": 800,
        })
    )  # fmt: skip
    assert convert("from-hf", folder, tmp_path / "back.pth") == 0
    found = load_trained(tmp_path / "back.pth")
    assert all(torch.equal(found.model.state_dict()[key], value) for key, value in model.state_dict().items())
    assert (found.args.backbone, found.args.dilation, found.args.backbone_norm) == (
        "resnet50",
        True,
        "frozen",
    )
    assert (found.args.eval_scale, found.args.max_size, found.names) == (800, 1333, NAMES)


# --- From the command line -----------------------------------------------------------------------------

WATCHED = """
import sys
sys.argv = ["convert_hf", *sys.argv[1:]]
import runpy
try:
    runpy.run_module("tools.convert_hf", run_name="__main__")
except SystemExit as end:
    print("loaded:", *sorted({"torch", "transformers", "transformers.trainer", "timm"} & set(sys.modules)))
    raise
"""


def test_the_library_that_has_the_name_of_our_folder_is_not_looked_for(
    exported: Exported, tmp_path: Path
) -> None:
    """transformers believes that our folder is it; what would import and ask it is its Trainer."""
    words = ["to-hf", str(exported.checkpoint), str(tmp_path / "there")]
    answer = python("-c", WATCHED, *words)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "loaded: torch transformers"
    assert files(tmp_path / "there") == files(exported.folder)
