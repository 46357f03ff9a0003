"""Write a trained model to a file that runs without this project.

  python export.py --resume outputs/mine/checkpoint.pth --format onnx --output detr.onnx
  python export.py --resume detr_resnet50_panoptic --format onnx --output panoptic.onnx --with_mask
  python export.py --resume CHECKPOINT --format torch_export --output detr.pt2 --postprocess

The file takes batches of any number and size of images:

  images  float32 [B, 3, H, W], RGB from 0 to 1, less `mean`, divided by `std`; zero where padded
  mask    bool [B, H, W], True where padded; with --with_mask
  sizes   int64 [B, 2], (height, width) in which boxes are wanted; with --postprocess

and gives

  pred_logits  [B, Q, C + 1], the last class is "no object"     with --postprocess  scores  [B, Q]
  pred_boxes   [B, Q, 4], cx cy w h relative to the image       in place of these   labels  [B, Q]
  pred_masks   [B, Q, H / 4, W / 4], logits, of mask models                         boxes   [B, Q, 4], x y x y

onnx runs in onnxruntime and many others; torch_export (.pt2) and torchscript in torch without this code.
torchscript takes mask and sizes as optional arguments; torch no longer develops it. Names of classes, mean
and std, and the size for which images are prepared (shorter side `eval_scale`, longer at most `max_size`) are
kept in the file: in ONNX's metadata_props, each as JSON; otherwise together, as metadata.json.

Each file is run before it is kept, on three batches of other sizes than it was made with, and compared with
the model in PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.command_line import RecipeParser, at_least
from util.errors import UserError, exit_status

if TYPE_CHECKING:
    from torch import Tensor

    from inference.export_formats import Format
    from inference.trained import TrainedModel

TOLERANCE = 1e-3
FORMAT_NAMES = ("onnx", "torchscript", "torch_export")
LOWEST_OPSET = 18  # in which torch's exporter is written; converting to older ones fails
# (height, width) of each image. No two axes of a batch have one length, or tracing might take them for one.
TRACED = ((128, 160), (96, 142))
CHECKED = (((224, 290),), ((97, 131), (97, 90), (60, 131)), ((161, 120), (140, 120), (161, 101), (111, 75)))


def get_args_parser() -> RecipeParser:
    """Every flag."""
    parser = RecipeParser("export.py", description=__doc__)
    flag = parser.add_argument
    flag("--resume", required=True, metavar="PATH|URL|NAME", help="checkpoint, or a torch.hub entry point")
    flag("--ema", action="store_true", help="the averaged weights of a run with --ema")
    flag("--format", required=True, choices=FORMAT_NAMES, help="of the file")
    flag("--output", required=True, metavar="FILE", help="where to write; an older file is replaced")
    flag("--postprocess", action="store_true", help="give scores, labels and boxes in pixels")
    flag("--with_mask", action="store_true", help="take a mask of padding (torchscript always does)")
    flag(
        "--opset", type=at_least(LOWEST_OPSET), help=f"of ONNX; left out, {LOWEST_OPSET}, which most can read"
    )
    flag("--debug", action="store_true", help="show tracebacks of mistakes")
    return parser


def main(args: argparse.Namespace) -> None:
    """Load, write, check and report, as the flags say."""
    from inference.export_formats import FORMATS, Onnx
    from inference.trained import load_trained

    if args.opset is not None and args.format != "onnx":
        raise UserError(f"--opset is ONNX's; leave it out with --format {args.format}")
    kind = FORMATS[args.format]() if args.opset is None else Onnx(args.opset)
    kind.check_packages()
    path = Path(args.output)
    # Mistakes in --output are reported before anything is loaded or fetched.
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: its folder does not exist")
    if kind.suffix and path.suffix != kind.suffix:
        raise UserError(f"--output {path}: {kind.name} needs a name that ends in {kind.suffix}")
    if path.exists() and os.path.exists(args.resume) and path.samefile(args.resume):
        raise UserError(f"--output {path}: is the checkpoint itself; give another name")
    trained = load_trained(args.resume, ema=args.ema)
    differences = export(trained, path, kind, args.postprocess, args.with_mask)
    for name, difference in differences.items():
        print(f"{name:12} differs from PyTorch by at most {difference:.1e}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def export(
    trained: TrainedModel, path: Path, kind: Format, postprocess: bool = False, with_mask: bool = False
) -> dict[str, float]:
    """Write a model, and keep the file if it does what the model does.

    Args:
        path: where; its folder exists.
        postprocess: give scores, labels and boxes in pixels in place of logits and relative boxes.
        with_mask: take a mask of padding.

    Returns:
        How far each output is from the model's at most: see `differences`.

    Raises:
        UserError: the model cannot be written in this format, the file cannot be written, or it differs by
            more than TOLERANCE; no file is left then, but for one that was there before.
    """
    from inference.export_formats import first_line
    from inference.exportable import Exportable, example_inputs

    model = Exportable(trained.model, postprocess)
    example = example_inputs(TRACED, with_mask, postprocess)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name  # torch looks at its suffix
            kind.write(model, example, temporary, describe(trained))
            try:
                found = check(kind, temporary, trained, postprocess, with_mask)
            except Exception as error:  # each runtime has exceptions of its own
                raise UserError(f"{path}: not kept, because it does not run: {first_line(error)}") from error
            worst = max(found, key=lambda name: found[name])
            if found[worst] > TOLERANCE:
                raise UserError(
                    f"{path}: not kept, because {worst} differs from PyTorch by {found[worst]:.1e}, which is "
                    f"more than {TOLERANCE:.0e}; try another --format or --opset"
                )
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror or error})") from error
    return found


def describe(trained: TrainedModel) -> dict[str, Any]:
    """What users of a file need to know of the model, as plain values."""
    from util.nested_tensor import IMAGENET_MEAN, IMAGENET_STD

    return {
        "source": trained.source.replace(os.sep, "/").rpartition("/")[2].partition("?")[0],
        "names": trained.names,
        "is_thing": trained.is_thing,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "eval_scale": trained.args.eval_scale,
        "max_size": trained.args.max_size,
    }


def check(
    kind: Format, path: Path, trained: TrainedModel, postprocess: bool, with_mask: bool
) -> dict[str, float]:
    """Run a file on the batches of CHECKED -> how far each output is from the model's at most."""
    from inference.exportable import example_inputs

    run = kind.load(path)
    found: dict[str, float] = {}
    for padded in (False, True) if kind.optional_mask else (with_mask,):
        for seed, images in enumerate(CHECKED, 1):
            sizes = images if padded else images[:1] * len(images)
            inputs = example_inputs(sizes, padded, postprocess, seed)
            for name, difference in differences(run(inputs), inputs, trained).items():
                found[name] = max(difference, found.get(name, 0.0))
    return found


def differences(
    outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], trained: TrainedModel
) -> dict[str, float]:
    """How far a file's outputs are from what the model and its post-processor give, at most.

    Boxes in pixels count relative to the size they are wanted in, and labels by how much less probable than
    its best class the model takes the given one to be. Logits of masks reach a hundred and more, beyond what
    float32 separates by TOLERANCE: outputs with values beyond 1 count relative to the largest. Infinite
    where shapes differ or a value is not a number.
    """
    import torch

    expected = model_outputs(inputs, trained)
    found = {}
    for name, value in outputs.items():
        if value.shape != expected[name].shape:
            found[name] = float("inf")
            continue
        if name == "labels":
            probabilities = expected["pred_logits"].softmax(-1)  # [B, Q, C + 1]
            distance = expected["scores"] - probabilities.gather(-1, value[..., None])[..., 0]
        else:
            distance = value - expected[name]
        if name == "boxes":
            distance = distance / inputs["sizes"].flip(1).repeat(1, 2)[:, None]
        elif name.startswith("pred_"):
            distance = distance / expected[name].abs().max().clamp(min=1)
        found[name] = float(torch.nan_to_num(distance.abs(), nan=float("inf")).max())
    return found


def model_outputs(inputs: Mapping[str, Tensor], trained: TrainedModel) -> dict[str, Tensor]:
    """What the model gives on its own device, and with `sizes` its post-processor, on the CPU."""
    import torch

    from util.nested_tensor import NestedTensor

    images = inputs["images"].to(trained.device)
    mask = inputs.get("mask")
    if mask is None:
        mask = torch.zeros(images[:, 0].shape, dtype=torch.bool)
    with torch.no_grad():
        outputs = trained.model(NestedTensor(images, mask.to(trained.device)))
    expected = {name: value.cpu() for name, value in outputs.items() if name.startswith("pred_")}
    if "sizes" in inputs:
        results = trained.postprocessors["bbox"](expected, inputs["sizes"])
        expected |= {name: torch.stack([result[name] for result in results]) for name in results[0]}
    return expected


def run(argv: list[str] | None = None) -> int:
    """The command line -> its exit status: 0, or 2 for a mistake that the user can correct."""
    args = get_args_parser().parse_args(argv)
    return exit_status(lambda: main(args), args.debug)


if __name__ == "__main__":
    sys.exit(run())
