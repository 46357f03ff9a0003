"""Exchange models with transformers, in both directions.

  python -m tools.convert_hf to-hf outputs/mine/checkpoint.pth exported     for DetrForObjectDetection or
                                                                            DetrForSegmentation.from_pretrained
  python -m tools.convert_hf from-hf exported checkpoint.pth                for main.py, predict.py, export.py

Every run loads both models, feeds them two padded images in double precision, prints how far logits, boxes
and masks lie apart, and keeps nothing if that is more than 1e-4.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.command_line import RecipeParser
from util.errors import UserError, exit_status
from util.flags import get_args_parser

if TYPE_CHECKING:
    from inference.trained import TrainedModel

OF_MODEL = (
    *("backbone", "dilation", "position_embedding", "backbone_norm", "backbone_stages"),
    *("enc_layers", "dec_layers", "dim_feedforward", "hidden_dim", "nheads", "num_queries", "num_classes"),
    *("masks", "dataset_file", "eval_scale", "max_size"),
)
"""Flags of main.py that evaluation has to repeat."""


# --- Ours to theirs ------------------------------------------------------------------------------------


def to_hf(trained: TrainedModel, folder: Path) -> dict[str, float]:
    """Write a model for transformers: config.json, preprocessor_config.json and model.safetensors.

    Args:
        folder: is made if missing; files of those names in it are replaced.

    Returns:
        The largest differences between both; see hf_models.differences.

    Raises:
        UserError: transformers has no such model, or computes something else; nothing is written.
    """
    from tools.hf_config import processor_of
    from tools.hf_models import checked, hf_model, import_transformers, load_hf

    import_transformers()
    with _beside(folder) as name:
        scratch = Path(name)
        theirs = hf_model(trained)
        theirs.save_pretrained(scratch)
        processor_of(trained.args).save_pretrained(scratch)
        found = checked(trained.model, load_hf(str(scratch)), str(folder))
        try:
            folder.mkdir(exist_ok=True)
            mode = (scratch / "config.json").stat().st_mode
            for path in scratch.iterdir():
                path.chmod(mode)  # safetensors lets nobody but the owner read
                os.replace(path, folder / path.name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    return found


# --- Theirs to ours ------------------------------------------------------------------------------------


def from_hf(source: str, path: Path) -> dict[str, float]:
    """Write a model of transformers as a checkpoint, with `args`, `categories` and, if known, `is_thing`.

    Args:
        source: a folder that save_pretrained wrote, or a name on the model hub.
        path: of the checkpoint; `.safetensors` gives one in that format.

    Returns:
        The largest differences between both; see hf_models.differences.

    Raises:
        UserError: there is no such model, it is not a DETR as built here, or the two compute something else;
            nothing is written.
    """
    from inference.trained import load_trained
    from tools.hf_models import checked, import_transformers, load_hf
    from util.checkpoint_file import save_checkpoint

    import_transformers()
    theirs = load_hf(source)
    with _beside(path) as name:
        written = Path(name) / path.name
        save_checkpoint(checkpoint_of(theirs, source), written)
        found = checked(load_trained(written).model, theirs, str(path))
        try:
            os.replace(written, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return found


def checkpoint_of(theirs: Any, source: str) -> dict[str, Any]:
    """transformers' model as our checkpoint.

    Raises:
        UserError: it is not a DETR as built here.
    """
    import transformers

    from inference.architecture import settings_from_weights
    from tools import hf_config, hf_names

    config = theirs.config
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source)
        image_settings = hf_config.image_settings_of(processor, source)
    except (OSError, ValueError):  # the model brings no preprocessor_config.json
        image_settings = {}
    given = hf_config.settings_of(config, source)
    try:
        state = hf_names.state_from_hf(theirs.state_dict(), hf_config.uses_timm(config))
    except KeyError as error:
        raise UserError(f"{source}: {error.args[0]} has no counterpart in this project's DETR") from error
    state = hf_names.with_counters(state, hf_config.counters_of(config))
    seen = settings_from_weights(state, source)
    seen.pop("dataset_file")  # a guess
    args = vars(get_args_parser().parse_args([])) | seen | {"aux_loss": True, "backbone_weights": "none"}
    args |= {"dataset_file": "coco_panoptic"} if args["masks"] else {}
    args |= image_settings | given
    checkpoint = {"model": state, "args": args, "categories": hf_config.names_of(config)}
    is_thing = hf_config.things_of(config)
    return checkpoint if is_thing is None else {**checkpoint, "is_thing": is_thing}


# --- The command line ----------------------------------------------------------------------------------


def _beside(target: Path) -> tempfile.TemporaryDirectory:
    """A hidden folder next to a target, from which files can be renamed into place."""
    try:
        return tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error


def get_parser() -> argparse.ArgumentParser:
    """The two commands and their flags."""
    parser = RecipeParser("python -m tools.convert_hf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="to-hf|from-hf")
    there = commands.add_parser("to-hf", help="write a checkpoint for transformers")
    there.add_argument("checkpoint", help="a file, a URL, or a hub name such as detr_resnet50_panoptic")
    there.add_argument("folder", type=Path, help="where to write")
    flag = there.add_argument_group(
        "what weights alone do not say, where the checkpoint holds no flags"
    ).add_argument
    flag("--dilation", action="store_true", default=None, help="DC5")
    flag("--nheads", type=int, help="attention heads (8)")
    flag("--eval_scale", type=int, metavar="PIXELS", help="shorter side of images (800)")
    flag("--max_size", type=int, metavar="PIXELS", help="longest side of images (1333)")
    back = commands.add_parser("from-hf", help="read a model of transformers")
    back.add_argument("folder", help="what save_pretrained wrote, or a name on the model hub")
    back.add_argument("checkpoint", type=Path, help="file to write: .pth or .safetensors")
    for command in (there, back):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(args: argparse.Namespace) -> None:
    """Convert, and say how far both models are apart."""
    from tools.hf_models import import_transformers, in_words
    from util.checkpoint_file import load_checkpoint

    if args.command == "from-hf":
        found, written = from_hf(args.folder, args.checkpoint), args.checkpoint
    else:
        from inference.trained import load_trained

        import_transformers()
        overrides = {name: getattr(args, name) for name in ("dilation", "nheads", "eval_scale", "max_size")}
        found, written = to_hf(load_trained(args.checkpoint, **overrides), args.folder), args.folder
    apart = f"largest differences on two padded images, in double precision: {in_words(found)}"
    print(f"{written}: written; {apart}")
    if args.command == "from-hf":
        # The flags that main.py needs in addition to a checkpoint: those of its model and its images.
        stored, default = load_checkpoint(written)["args"], get_args_parser().parse_args([])
        changed = {name: stored[name] for name in OF_MODEL if stored[name] != getattr(default, name)}
        flags = " ".join(f"--{k}" if value is True else f"--{k} {value}" for k, value in changed.items())
        paths = "--coco_path ..." + (" --coco_panoptic_path ..." if "coco_panoptic" in flags else "")
        print(f"evaluate it with: python main.py --eval --resume {written} {flags} {paths}")


def run(argv: list[str] | None = None) -> int:
    """The command line -> its exit status: 0, or 2 for a mistake that the user can correct."""
    args = get_parser().parse_args(argv)
    return exit_status(lambda: main(args), args.debug)


if __name__ == "__main__":
    sys.exit(run())
