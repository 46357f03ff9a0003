"""Models of the timm library by name, and their weights: timm's pretrained ones, or a file's."""

from __future__ import annotations

import contextlib
import difflib
from typing import Any

from torch import Tensor, nn

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
    """The model with weights from a file: a state_dict, also as entry `model` or `state_dict`.

    Its names are timm's or those that timm can convert; or the tensors agree in order, under any names.
    """
    checkpoint = load_checkpoint(path)
    state = model_state(checkpoint)
    classifier = timm.models.get_pretrained_cfg(name).classifier
    names = [classifier] if isinstance(classifier, str) else list(classifier or ())
    # The classifier is dropped afterwards; of the right width it lets timm compare all names.
    heads = [len(state[f"{key}.weight"]) for key in names if f"{key}.weight" in state]
    classes = heads[0] if heads else 0
    source = {"state_dict": dict(state), "num_classes": classes, "classifier": None, "label_offset": 0}
    try:
        model = create(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=classes)
        del model.pretrained_cfg["state_dict"]  # type: ignore[operator,union-attr]
        # Some architectures timm fills with whatever names fit. Sums survive the renaming and reshaping it
        # does; those of vectors say little, as norms start at 0 and 1.
        sums = {float(value.double().sum()) for value in state.values()}
        own = [float(value.detach().double().sum()) in sums for value in model.parameters() if value.ndim > 1]
        by_name = "few tensors fit" if 2 * sum(own) < len(own) else ""
    except Exception as error:  # timm's converters of foreign files fail in any way on a wrong one
        by_name = _first_line(error)
    if by_name:
        model = create(name, num_classes=0)
        in_order = _load_in_order(model, state)
        if in_order:
            raise UserError(
                f"--backbone_weights {path}: not the weights of {PREFIX}{name}, by the names of its tensors "
                f"({by_name}) or by their order ({in_order})"
            )
    return model


def _load_in_order(model: nn.Module, state: dict[str, Tensor]) -> str:
    """Fill a model without a classifier from a file that has its tensors in their order, under other names.

    Shapes must agree, and the last part of each name, as `running_mean`. A classifier's weight and bias may
    follow. The counters of batch norms are left out on both sides.

    Returns:
        The first difference in words; "" if there is none, and the model is filled.
    """
    own, theirs = (
        {key: value for key, value in one.items() if not key.endswith("num_batches_tracked")}
        for one in (model.state_dict(), state)
    )
    for (key, tensor), (other, value) in zip(own.items(), theirs.items(), strict=False):
        if (key.split(".")[-1], tensor.shape) != (other.split(".")[-1], value.shape):
            return f"{other} {tuple(value.shape)} stands where timm has {key} {tuple(tensor.shape)}"
    if len(theirs) - len(own) not in (0, 2):
        return f"it has {len(theirs)}, and timm {len(own)} without a classifier"
    model.load_state_dict(dict(zip(own, theirs.values(), strict=False)), strict=False)
    return ""


def _tags(timm: Any, architecture: str) -> list[str]:
    """Names of the weights that timm has of a model."""
    names = timm.list_models(f"{architecture}.*", pretrained=True)
    return [name.partition(".")[2] for name in names]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
