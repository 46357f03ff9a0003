"""transformers' DETR as a module: filled with our weights, or loaded, and compared with a model here."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

if TYPE_CHECKING:
    from inference.trained import TrainedModel

NEEDS = "pip install 'transformers>=5' safetensors"
TIMM = "this backbone is timm's in transformers: pip install timm"


def import_transformers() -> Any:
    """transformers, without its progress bars and its notices: one line of ours says what does not fit.

    The folder `datasets` here has the name of a library that transformers looks for. Only its Trainer and its
    model cards use that; nothing that is imported here does.

    Raises:
        UserError: it is not installed, or too old.
    """
    try:
        import safetensors  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(f"the exchange needs packages ({error}): {NEEDS}") from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UserError(f"transformers {transformers.__version__} is too old: {NEEDS}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with contextlib.suppress(ImportError):  # its retries without a network are 11 lines before ours
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()
    return transformers


def hf_model(trained: TrainedModel) -> Any:
    """transformers' model with the weights of ours, in evaluation mode.

    Raises:
        UserError: transformers has no such model.
    """
    import transformers

    from tools.hf_config import config_of, uses_timm
    from tools.hf_names import counters_of, state_to_hf

    state = trained.model.state_dict()
    config = config_of(trained.args, trained.names, trained.is_thing, counters_of(state))
    kind = transformers.DetrForSegmentation if trained.args.masks else transformers.DetrForObjectDetection
    try:
        with torch.device("meta"):  # no time for initial values
            model = kind(config)
    except ImportError as error:
        raise UserError(TIMM) from error
    model.load_state_dict(state_to_hf(state, uses_timm(config)), strict=True, assign=True)
    return model.eval()


def load_hf(source: str) -> Any:
    """transformers' model in float32 and evaluation mode.

    Raises:
        UserError: there is none, it is damaged or not a DETR, or weights are missing in it.
    """
    if not os.path.isdir(source) and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"{source}: neither a folder nor a name on the model hub (OWNER/NAME)")
    import transformers

    from tools.hf_config import settings_of

    try:
        config: Any = transformers.AutoConfig.from_pretrained(source)
        kind = (config.architectures or ["DetrForObjectDetection"])[0]
        if config.model_type != "detr" or kind not in ("DetrForObjectDetection", "DetrForSegmentation"):
            raise UserError(
                f"{source}: a {kind}; exchanged are DetrForObjectDetection and DetrForSegmentation"
            )
        settings_of(config, source)  # one that is not ours is refused before its weights are read
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, report = getattr(transformers, kind).from_pretrained(source, **options)
    except ImportError as error:
        raise UserError(f"{source}: {TIMM}") from error
    except UserError:
        raise
    except Exception as error:  # of many kinds, from the hub's client, the reader of weights and the checks
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source}: transformers cannot load it ({reason})") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise UserError(f"{source}: {len(lacking)} weights are missing or do not fit, first {lacking[0]}")
    return model.eval()


# --- How far both are apart ------------------------------------------------------------------------------

TOLERANCE = 1e-4
SIZES = ((150, 198), (190, 131))  # height, width of the images that are compared on; each is padded


def differences(ours: nn.Module, theirs: Any) -> dict[str, float]:
    """The largest absolute differences: `logits`, `boxes` (in units of the image), `masks` (logits).

    Both see the same two images of different sizes, in one padded batch, and compute in double precision. In
    single precision a trained model's mask logits, which reach 100, lie 3e-4 from their own exact values: a
    limit would judge rounding, not the function.
    """
    images = []
    for seed, size in enumerate(SIZES):
        coarse = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
        images.append(nn.functional.interpolate(coarse, size, mode="bicubic")[0])  # smooth colours
    batch = nested_tensor_from_tensor_list(images)
    assert batch.mask is not None
    pixels = batch.tensors.double()
    with torch.no_grad():
        here = copy.deepcopy(ours).double()(NestedTensor(pixels, batch.mask))
        there = copy.deepcopy(theirs).double()(pixel_values=pixels, pixel_mask=(~batch.mask).long())
    pairs = {"logits": (here["pred_logits"], there.logits), "boxes": (here["pred_boxes"], there.pred_boxes)}
    if "pred_masks" in here:
        pairs["masks"] = here["pred_masks"], there.pred_masks
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def checked(ours: nn.Module, theirs: Any, target: str) -> dict[str, float]:
    """`differences`, which are small.

    Raises:
        UserError: one is more than TOLERANCE.
    """
    found = differences(ours, theirs)
    if not all(value <= TOLERANCE for value in found.values()):  # not a number differs, too
        raise UserError(f"{target}: not written, because both models differ: {in_words(found)}")
    return found


def in_words(found: dict[str, float]) -> str:
    """Differences in words."""
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())
