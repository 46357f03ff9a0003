"""Find objects in pictures with a trained model: drawn, listed as JSON, explained by attention.

  python predict.py --resume outputs/mine/checkpoint.pth photo.jpg            one picture
  python predict.py --resume detr_resnet50_panoptic photos/ --json            a folder, a published model
  python predict.py --resume CHECKPOINT 'photos/**/*.jpg' --threshold 0.5     a pattern
  python predict.py --resume CHECKPOINT photo.jpg --attention                 where each detection looks
  python predict.py --resume CHECKPOINT photo.jpg --attention encoder --point 320,240

--output_dir gets NAME.jpg for each picture; with --attention attention/NAME.jpg; with --json results.json
(COCO's results format), or panoptic.json and panoptic/NAME.png (COCO's panoptic format). The model's settings
and the names of classes come from the checkpoint. A picture that cannot be read is named and skipped: the
exit status is then 1. It is 2 after a mistake in the call.

The same from Python: docs/predict.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from util.command_line import RecipeParser, at_least, trained_model_flags
from util.errors import UserError, exit_status

if TYPE_CHECKING:
    from inference.attention_maps import Attention
    from inference.pictures import Read
    from inference.predicting import Found
    from inference.trained import TrainedModel

FEW = 20  # pictures up to which a line is printed for each
LAYERS = ("decoder", "encoder")
MOST_WAITING = 8  # pictures predicted and not yet written, which bounds the memory they hold


def get_args_parser() -> RecipeParser:
    """Every flag."""
    parser = RecipeParser("predict.py", description=__doc__)
    flag = parser.add_argument
    flag(
        "pictures", nargs="+", metavar="PICTURE", help="a picture, a folder of pictures, or a quoted pattern"
    )
    flag("--resume", required=True, metavar="PATH|URL|NAME", help="checkpoint, or a torch.hub entry point")
    flag("--ema", action="store_true", help="the averaged weights of a run with --ema")
    flag("--output_dir", default="predictions", help="where to write")
    flag(
        "--threshold",
        type=share,
        help="leave out what is less probable (default: 0.7; panoptic segments: 0.85, as published; 0 lists "
        "every query, as an evaluation of the JSON needs)",
    )
    kind = parser.add_mutually_exclusive_group()
    for name, text in {
        "boxes": "boxes alone, from any model",
        "masks": "boxes and instance masks",
        "panoptic": "a segment for every pixel, things and stuff",
    }.items():
        text += "" if name == "boxes" else " (default where the model was trained for it)"
        kind.add_argument(f"--{name}", dest="kind", action="store_const", const=name, help=text)
    flag(
        "--attention",
        nargs="?",
        const="decoder",
        choices=LAYERS,
        help="draw the last layer's attention, its mean over heads and each head: of the decoder for the "
        "10 surest detections, or of the encoder for --point",
    )
    flag(
        "--point",
        type=point,
        action="append",
        metavar="X,Y",
        help="with --attention encoder: a place in pixels of the picture; may be given several times",
    )
    flag("--json", action="store_true", help="write what was found as JSON too")
    flag(
        "--gt",
        metavar="FILE",
        help="an annotation file that lists the pictures: they are seen as main.py --eval sees them, and "
        "have the file's image ids",
    )
    flag("--as_stored", "--as-stored", action="store_true", help="do not turn pictures by their EXIF tag")
    flag("--no_pictures", action="store_true", help="draw no detections (with --json, --attention)")
    flag("--format", default="jpg", choices=("jpg", "png"), help="of the drawn pictures")
    flag(
        "--batch_size",
        default=1,
        type=at_least(1),
        help="pictures at a time. Above 1 smaller ones are padded, which the model sees: scores then move a "
        "little with a picture's neighbours, and much in DC5 models",
    )
    flag("--num_workers", default=2, type=at_least(0), help="processes that read pictures; 0: this one")
    trained_model_flags(flag)
    return parser


def share(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1")
    return value


def point(text: str) -> tuple[float, float]:
    """An argparse type: X,Y in pixels."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not X,Y in pixels") from error
    return x, y


def main(args: argparse.Namespace) -> int:
    """Predict as the flags say -> how many complaints about single pictures were printed."""
    from tqdm import tqdm

    from inference.pictures import View, find_pictures, listed_views, read_pictures
    from inference.predicting import kind_of, summary
    from inference.prediction_output import Output
    from inference.trained import load_trained

    check(args)
    paths = find_pictures(args.pictures)
    listed = listed_views(args.gt, paths) if args.gt else {}
    output = Output(args, paths, {path: number for path, (number, _) in listed.items()} if args.gt else None)
    names = ("dilation", "nheads", "eval_scale", "max_size", "white_level")
    settings = {name: getattr(args, name) for name in names}
    trained = load_trained(args.resume, args.device, ema=args.ema, **settings)
    kind = kind_of(trained, args.kind)
    if args.attention == "encoder" and not trained.args.enc_layers:
        raise UserError(f"--attention encoder: the model of {trained.source} has no encoder")
    scales = trained.args.eval_scale, trained.args.max_size
    usual = 0, View(as_shown=not args.as_stored)
    views = {path: listed.get(path, usual)[1] for path in paths}
    views = {path: view._replace(white_level=trained.args.white_level) for path, view in views.items()}
    complaints = 0
    records: list[list[dict[str, Any]]] = []  # of each picture, in order
    writing: deque[Future] = deque()
    with tqdm(total=len(paths), unit="picture", disable=None) as bar, ThreadPoolExecutor(2) as threads:
        for batch in read_pictures(paths, *scales, args.batch_size, args.num_workers, views):
            whole = []
            for read in batch:
                reason = read.error or point_outside(args.point or (), read)
                if reason:
                    bar.write(reason, file=sys.stderr)
                    complaints += 1
                else:
                    whole.append(read)
            founds, heard = find(trained, whole, args.threshold, kind, bool(args.attention))
            for place, (read, found) in enumerate(zip(whole, founds, strict=True)):
                if len(writing) == MOST_WAITING:
                    records.append(writing.popleft().result())
                writing.append(threads.submit(output.write, read, found, heard, place, trained.names))
                if len(paths) <= FEW:
                    bar.write(f"{read.path}: {summary(found, trained.names)}")
            bar.update(len(batch))
        records += [call.result() for call in writing]
    output.finish(records, trained, kind)
    print(f"{len(records)} of {len(paths)} pictures done: {output.folder}")
    return complaints


def find(
    trained: TrainedModel, reads: Sequence[Read], threshold: float | None, kind: str, listens: bool
) -> tuple[list[Found], Attention | None]:
    """What is found in a batch of pictures, and what was heard meanwhile of attention.

    Raises:
        UserError: the batch is too large for the memory or for the model.
    """
    from inference.attention_maps import listening
    from inference.predicting import naming_large_pictures, predict

    if not reads:
        return [], None
    images = [read.image for read in reads if read.image is not None]
    sizes = [read.picture.shape[1:] for read in reads if read.picture is not None]
    names = ", ".join(str(read.path) for read in reads)
    advice = "lower --batch_size or --max_size, or pass --boxes", "lower --eval_scale and --max_size"
    ears = listening(trained.model) if listens else nullcontext()
    with naming_large_pictures(trained, names, *advice), ears as heard:
        return predict(trained, images, sizes, threshold, kind), heard


def point_outside(points: Sequence[tuple[float, float]], read: Read) -> str:
    """Complaint about a --point that does not lie in the picture; empty if all do."""
    assert read.picture is not None
    height, width = read.picture.shape[1:]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            return f"{read.path}: --point {x:g},{y:g} lies outside its {width} x {height} pixels"
    return ""


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if args.attention == "encoder" and not args.point:
        raise UserError("--attention encoder: say of which place, with --point X,Y in pixels of the picture")
    if args.point and args.attention != "encoder":
        raise UserError("--point belongs to --attention encoder")
    if args.no_pictures and not (args.json or args.attention):
        raise UserError("--no_pictures: nothing would be written; pass --json or --attention too")


def run(argv: Sequence[str] | None = None) -> int:
    """The command line -> its exit status: 0; 1: pictures were skipped; 2: a mistake of the user's."""
    words = list(sys.argv[1:] if argv is None else argv)
    for i in reversed(range(len(words))):  # so that a picture may follow the flag at once
        if words[i] == "--attention" and words[i + 1 : i + 2] not in ([layer] for layer in LAYERS):
            words.insert(i + 1, LAYERS[0])
    args = get_args_parser().parse_args(words)
    return exit_status(lambda: min(main(args), 1), args.debug)


if __name__ == "__main__":
    sys.exit(run())
