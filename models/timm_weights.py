"""Models of the timm library by name, and their weights: timm's pretrained ones, or a file's."""

from __future__ import annotations

import contextlib
import difflib
from typing import Any

from torch import nn

from util.checkpoint_file import load_checkpoint, model_state
from util.errors import UserError

PREFIX = "timm/"


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "--backbone timm/...: the timm package is not installed; run `pip install timm`, or take one of "
            "torchvision's ResNets"
        ) from error
    with contextlib.suppress(ImportError):  # its retries without a network are 22 lines before ours
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()
    return timm


def create(name: str, **options: Any) -> nn.Module:
    """timm's model of that name, for images of every size if it can take them.

    Raises:
        UserError: timm is missing, or does not know it.
    """
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.7)
        close += [other for other in timm.list_models(f"*{name}*") if other not in close]
        close = close or difflib.get_close_matches(name, known, n=5, cutoff=0.3)
        has = f"it has {', '.join(close[:5])}" if close else "`timm.list_models()` lists those it knows"
        raise UserError(f"--backbone {PREFIX}{name}: timm knows no such model; {has}")
    if tag and tag not in _tags(timm, architecture):
        raise UserError(
            f"--backbone {PREFIX}{name}: timm has no weights of {architecture} with the tag {tag}; it has "
            + (", ".join(_tags(timm, architecture)) or "none")
        )
    if timm.models.get_pretrained_cfg(name).fixed_input_size:
        with contextlib.suppress(TypeError):  # an architecture that knows no such setting; _levels tries it
            return timm.create_model(name, strict_img_size=False, **options)  # Swin's
    return timm.create_model(name, **options)


def create_with_weights(name: str, weights: str) -> nn.Module:
    """timm's model holding the weights asked for: `imagenet`, or a file's."""
    timm = _timm()
    if weights != "imagenet":
        return _from_file(timm, name, weights)
    if not _tags(timm, name.partition(".")[0]):
        raise UserError(
            f"--backbone {PREFIX}{name}: timm has no weights of it; pass --backbone_weights PATH or none"
        )
    try:
        return create(name, pretrained=True)
    except Exception as error:  # each of the clients that timm fetches with fails in its own way
        raise UserError(
            f"weights of {PREFIX}{name}: could not be downloaded ({_first_line(error)}); pass "
            "--backbone_weights PATH with a file of them, or none to start from random ones"
        ) from error


def _from_file(timm: Any, name: str, path: str) -> nn.Module:
    """The model with weights from a file: a state_dict, also as entry `model` or `state_dict`."""
    checkpoint = load_checkpoint(path)
    state = model_state(checkpoint)
    classifier = timm.models.get_pretrained_cfg(name).classifier
    names = [classifier] if isinstance(classifier, str) else list(classifier or ())
    # The classifier is dropped afterwards; of the right width it lets timm compare all names.
    heads = [len(state[f"{key}.weight"]) for key in names if f"{key}.weight" in state]
    classes = heads[0] if heads else 0
    source = {"state_dict": state, "num_classes": classes, "classifier": None, "label_offset": 0}
    try:
        model = create(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=classes)
    except Exception as error:  # timm's converters of foreign files fail in any way on a wrong one
        raise UserError(
            f"--backbone_weights {path}: not the weights of {PREFIX}{name} ({_first_line(error)})"
        ) from error
    # Some architectures timm fills with whatever names fit. Sums survive the renaming and reshaping it does;
    # those of vectors say little, as norms start at 0 and 1.
    sums = {float(value.double().sum()) for value in state.values()}
    own = [float(value.detach().double().sum()) in sums for value in model.parameters() if value.ndim > 1]
    if 2 * sum(own) < len(own):
        raise UserError(f"--backbone_weights {path}: not the weights of {PREFIX}{name}, few tensors fit")
    del model.pretrained_cfg["state_dict"]  # type: ignore[operator,union-attr]
    return model


def _tags(timm: Any, architecture: str) -> list[str]:
    """Names of the weights that timm has of a model."""
    names = timm.list_models(f"{architecture}.*", pretrained=True)
    return [name.partition(".")[2] for name in names]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
