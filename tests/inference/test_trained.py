"""Loading trained models: from what main.py saves, from published files, and from bare weights."""

import argparse
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from inference import trained
from inference.architecture import fitting_resnets, settings_from_weights
from inference.trained import load_trained
from models.backbone import Backbone
from models.resnet import RESNETS
from tests.helpers import CUSTOM_CATEGORIES, TINY_MODEL
from tests.mask_model import SMALL as SMALL_MASKS
from tests.mask_model import images
from tests.reference.registry import published_state
from tests.reference.settings import build
from util.checkpoint_file import load_checkpoint
from util.coco_names import COCO_PANOPTIC, COCO_THINGS, default_num_classes
from util.errors import UserError
from util.hub_models import HUB_MODELS

# Flags of small models -> what must be read from the weights alone.
MODELS = {
    "r18": "",
    "two stages, batch norm": "--backbone_stages 2 --backbone_norm batch",
    "dc5": "--backbone resnet50 --dilation",
    "pre-norm": "--pre_norm --enc_layers 3 --dec_layers 3",
    "learned positions": "--position_embedding learned --hidden_dim 48",
    "other sizes": "--num_queries 7 --num_classes 20 --dim_feedforward 40",
    "masks": "--masks --hidden_dim 128 --nheads 8",
    "panoptic": "--masks --hidden_dim 128 --nheads 8 --dataset_file coco_panoptic --backbone_stages 3",
}
SEEN = (
    "backbone", "backbone_norm", "backbone_stages", "position_embedding", "pre_norm", "masks", "dataset_file",
    "hidden_dim", "enc_layers", "dec_layers", "dim_feedforward", "num_queries", "dilation",
)  # fmt: skip


def flags(words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(parents=[main.get_args_parser()])
    return parser.parse_args(f"--device cpu {TINY_MODEL} {words}".split())


@functools.cache
def built(words: str, seed: int) -> torch.nn.Module:
    """A small model with filled weights, which nobody changes."""
    return build(f"{TINY_MODEL} {words}", seed)[0].eval()


def saved(path: Path, words: str = "", seed: int = 0, **more: Any) -> tuple[torch.nn.Module, Path]:
    """A small model, and a checkpoint that holds its weights and `more`."""
    model = built(words, seed)
    torch.save({"model": model.state_dict(), **more}, path)
    return model, path


@torch.no_grad()
def assert_same_function(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected, found = theirs(images()), ours(images())
    for name in set(expected) - {"aux_outputs"}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


# --- Bare weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_bare_weights_give_the_model(name: str, tmp_path: Path) -> None:
    wanted = flags(MODELS[name])
    file = "detr-dc5.pth" if wanted.dilation else "weights.pth"
    model, path = saved(tmp_path / file, MODELS[name])
    found = load_trained(path, nheads=wanted.nheads)
    assert {key: vars(found.args)[key] for key in SEEN} == {key: vars(wanted)[key] for key in SEEN}
    assert found.args.num_classes == (wanted.num_classes or default_num_classes(wanted.dataset_file))
    assert_same_function(found.model, model)
    assert not any(module.training for module in found.model.modules())


def test_the_state_dict_itself_is_a_checkpoint_too(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "weights.pth")
    torch.save(model.state_dict(), tmp_path / "state.pth")
    assert_same_function(load_trained(tmp_path / "state.pth", nheads=4).model, model)


def test_the_heads_are_seen_in_a_mask_head_and_eight_elsewhere(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "masks.pth", "--masks --hidden_dim 128 --nheads 16")
    assert load_trained(path).args.nheads == 16
    assert load_trained(saved(tmp_path / "boxes.pth")[1]).args.nheads == 8


def test_every_resnet_is_recognised() -> None:
    for name in RESNETS:
        with torch.device("meta"):
            backbone = Backbone(name, True, False, False, weights="none")
        state = {f"backbone.0.{key}": tensor for key, tensor in backbone.state_dict().items()}
        assert fitting_resnets(state) == [name]


def test_of_resnets_that_look_alike_the_stored_one_is_taken(tmp_path: Path) -> None:
    words = "--backbone resnet101 --backbone_stages 2"
    model, path = saved(tmp_path / "args.pth", words, args=vars(flags(words)))
    assert load_trained(path).args.backbone == "resnet101"
    assert_same_function(load_trained(path).model, model)
    _, path = saved(tmp_path / "bare.pth", words)
    found = load_trained(path, nheads=4)
    assert found.args.backbone == "resnet50"  # the same in its first two stages
    assert_same_function(found.model, model)


# --- Published files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HUB_MODELS)
def test_published_weights_give_the_published_settings(name: str) -> None:
    masks = name.endswith("panoptic")
    expected = {
        "backbone": "resnet101" if "101" in name else "resnet50", "backbone_norm": "frozen",
        "backbone_stages": 4, "num_classes": 250 if masks else 91, "num_queries": 100, "hidden_dim": 256,
        "enc_layers": 6, "dec_layers": 6, "dim_feedforward": 2048, "pre_norm": False, "masks": masks,
        "position_embedding": "sine", "dataset_file": "coco_panoptic" if masks else "coco",
    }  # fmt: skip
    assert settings_from_weights(published_state(name), name) == expected | ({"nheads": 8} if masks else {})


def test_a_name_of_torch_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--backbone resnet50 --nheads 8"
    model, path = saved(tmp_path / "any.pth", words + " --dilation")
    asked = []

    def fetched(location: str) -> dict:
        asked.append(location)
        return torch.load(path, weights_only=True)

    monkeypatch.setattr(trained, "load_checkpoint", fetched)
    found = load_trained("detr_resnet50_dc5")
    assert asked == ["https://dl.fbaipublicfiles.com/detr/detr-r50-dc5-f0fb7ef5.pth"]
    assert found.args.dilation and found.source == "detr_resnet50_dc5"
    assert_same_function(found.model, model)
    assert not load_trained("detr_resnet50").args.dilation


def test_the_flags_of_a_published_file_may_be_a_namespace_of_few(tmp_path: Path) -> None:
    """Such a file knows none of the flags that came later, and says nothing of classes."""
    words = "--backbone resnet50 --dilation --nheads 4"
    new = {*vars(flags("")).keys()} - {"backbone", "dilation", "nheads", "masks", "dataset_file", "device"}
    old = argparse.Namespace(**{key: v for key, v in vars(flags(words)).items() if key not in new})
    old.device = "cuda"
    model, path = saved(tmp_path / "published.pth", words, args=old)
    found = load_trained(path)
    assert (found.args.dilation, found.args.nheads, found.args.device) == (True, 4, "cpu")
    assert_same_function(found.model, model)


def test_names_of_coco_where_the_file_has_none(tmp_path: Path) -> None:
    assert load_trained(saved(tmp_path / "a.pth")[1]).names == COCO_THINGS
    assert load_trained(saved(tmp_path / "b.pth", "--num_classes 20")[1]).names == {}
    _, path = saved(tmp_path / "c.pth", MODELS["panoptic"])
    found = load_trained(path)
    assert found.names == COCO_PANOPTIC
    assert found.is_thing == {i: i <= 90 for i in range(250)}
    assert found.postprocessors["panoptic"].is_thing_map == found.is_thing
    assert set(found.postprocessors) == {"bbox", "segm", "panoptic"}


# --- What main.py saves --------------------------------------------------------------------------------


def test_what_main_saves_loads_without_flags(trained: Path) -> None:
    found = load_trained(trained / "checkpoint.pth")
    stored = torch.load(trained / "checkpoint.pth", weights_only=True)
    assert found.names == CUSTOM_CATEGORIES and found.is_thing is None
    ours = found.model.state_dict()
    assert ours.keys() == stored["model"].keys()
    assert all(torch.equal(ours[key], stored["model"][key]) for key in ours)
    assert found.args.eval_scale == stored["args"]["eval_scale"] != 800
    assert found.args.nheads == 4 and found.args.backbone_weights == "none"
    with torch.no_grad():
        assert "aux_outputs" not in found.model(images())


def test_things_are_those_that_the_file_names(tmp_path: Path) -> None:
    words = f"{SMALL_MASKS} --dataset_file coco_panoptic --num_classes 95"
    stored: dict[str, Any] = {"args": vars(flags(words)), "categories": {1: "circle", 92: "sky"}}
    _, path = saved(tmp_path / "rule.pth", words, **stored)
    assert load_trained(path).is_thing == {1: True, 92: False}
    unlike = {**stored, "categories": ["circle", "sky"], "is_thing": [True, False]}
    _, path = saved(tmp_path / "lists.pth", words, **unlike)
    found = load_trained(path)
    assert found.names == COCO_PANOPTIC and found.is_thing is not None and len(found.is_thing) > 2
    _, path = saved(tmp_path / "stored.pth", words, **stored, is_thing={1: False, 92: True})
    found = load_trained(path)
    assert found.is_thing == {1: False, 92: True} == found.postprocessors["panoptic"].is_thing_map


def test_overrides_win_and_none_is_no_override(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "dc5.pth", "--backbone resnet50", args=vars(flags("--backbone resnet50")))
    assert not load_trained(path, dilation=None).args.dilation  # what is stored counts more than the name
    assert load_trained(path, dilation=True).args.dilation
    assert load_trained(path, eval_scale=480).args.eval_scale == 480


# --- Mistakes ------------------------------------------------------------------------------------------


def test_a_source_that_is_nowhere_is_reported_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match="detr_resnet18: neither a file, nor a URL, nor one of detr_res"):
        load_trained("detr_resnet18")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: no checkpoint of a DETR, its weights lack class_embed"):
        load_trained(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth"):
        load_trained(tmp_path / "text.pth")


def test_overrides_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "r18.pth")
    with pytest.raises(UserError, match="nheads"):
        load_trained(path, nheads=5)
    with pytest.raises(UserError, match="another architecture"):
        load_trained(path, num_queries=3)


def test_a_backbone_that_nobody_knows_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    model, path = saved(tmp_path / "r18.pth")
    state = {key.replace("body.layer1", "body.stage1"): v for key, v in model.state_dict().items()}
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match="its backbone is none of resnet18, "):
        load_trained(path)


def test_averaged_weights_on_request(trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained / "checkpoint.pth")
    average = {name: value + 1 for name, value in checkpoint["model"].items()}
    torch.save({**checkpoint, "ema": average}, tmp_path / "both.pth")
    plain, averaged = (
        load_trained(tmp_path / "both.pth", ema=ema).model.state_dict() for ema in (False, True)
    )
    assert torch.equal(averaged["query_embed.weight"], plain["query_embed.weight"] + 1)
    with pytest.raises(UserError, match="no averaged weights"):
        load_trained(trained / "checkpoint.pth", ema=True)
