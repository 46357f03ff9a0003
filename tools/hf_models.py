"""transformers' DETR as a module: filled with our weights, or loaded from where save_pretrained put it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from util.errors import UserError

if TYPE_CHECKING:
    from inference.trained import TrainedModel

NEEDS = "pip install 'transformers>=5' safetensors"
TIMM = "this backbone is timm's in transformers: pip install timm"


def import_transformers() -> Any:
    """transformers, told to keep its progress bars to itself.

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
    with contextlib.suppress(ImportError):  # its retries without a network are 11 lines before ours
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()
    return transformers


def hf_model(trained: TrainedModel) -> Any:
    """transformers' model with the weights of ours, in evaluation mode.

    Raises:
        UserError: transformers has no such model.
    """
    import torch
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
        UserError: there is none, it is damaged or none of ours, or weights are missing in it.
    """
    if not os.path.isdir(source) and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"{source}: neither a folder nor a name on the model hub (OWNER/NAME)")
    try:
        with _silence():
            model, report = _loaded(source)
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


def _loaded(source: str) -> tuple[Any, dict[str, Any]]:
    """A model and what became of its weights; one that is none of ours is refused before they are read."""
    import torch
    import transformers

    from tools.hf_config import settings_of

    config: Any = transformers.AutoConfig.from_pretrained(source)
    kind = (config.architectures or ["DetrForObjectDetection"])[0]
    if config.model_type != "detr" or kind not in ("DetrForObjectDetection", "DetrForSegmentation"):
        raise UserError(f"{source}: a {kind}; exchanged are DetrForObjectDetection and DetrForSegmentation")
    settings_of(config, source)
    return getattr(transformers, kind).from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without transformers' table of weights that do not fit: one line says it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
