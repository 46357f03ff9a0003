"""The model settings of the cases, and how a model is built from flags."""

import argparse
import contextlib
import io
from collections.abc import Iterator
from typing import Any

from tests.reference.streams import fill_state

SMALL = (
    "--backbone resnet18 --enc_layers 2 --dec_layers 3 --hidden_dim 64 --nheads 4"
    " --dim_feedforward 96 --num_queries 12 --dropout 0"
)
SMALL_R50 = SMALL.replace("resnet18", "resnet50")
SMALL_R101 = SMALL.replace("resnet18", "resnet101")
MASKS = (
    "--backbone resnet50 --enc_layers 1 --dec_layers 2 --hidden_dim 128 --nheads 8"
    " --dim_feedforward 96 --num_queries 12 --dropout 0 --masks"
)
LEARNED = f"{SMALL} --position_embedding learned"
NO_AUX = f"{SMALL} --no_aux_loss"


def parse(flags: str, *arguments: str) -> argparse.Namespace:
    """What main.py makes of `flags` (split at spaces) and `arguments`, on a CPU, without trained weights."""
    from main import get_args_parser

    parser = argparse.ArgumentParser(parents=[get_args_parser()])
    return parser.parse_args([*f"--device cpu --backbone_weights none {flags}".split(), *arguments])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def build(flags: str, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """Model with filled weights, criterion and post-processors for `flags`."""
    from models import build_model

    with quiet():
        model, criterion, postprocessors = build_model(parse(flags))
    fill_state(model, seed)
    return model, criterion, postprocessors
