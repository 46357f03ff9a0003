"""The data set doctor: what is wrong with annotation files and pictures, why it matters, and what to do.

    python -m doctor DATA_FOLDER                     every split (layouts: datasets.layouts)
    python -m doctor FILE.json --images FOLDER       one annotation file
    python -m doctor DATA_FOLDER --fix CORRECTED     and write a corrected copy

Where masks are to be trained, --masks goes with each of them: objects then need masks, in the copy too.
Exit status: 0 without faults (there may be notes), 1 with faults, 2 where a file cannot be used at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from doctor.check import check_dataset, find_sources
from doctor.fix import write_corrected
from util.command_line import OneLineParser
from util.errors import exit_status


def get_args_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = OneLineParser("python -m doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", help="folder of a data set, or an annotation file")
    parser.add_argument("--dataset_file", choices=["coco", "custom", "coco_panoptic"],
                        help="read this layout; otherwise whatever is there")  # fmt: skip
    parser.add_argument("--images", help="folder of the pictures, where path is a file")
    parser.add_argument("--num_classes", type=int, help="of the model: highest category id + 1")
    parser.add_argument("--num_queries", type=int, default=100, help="of the model")
    parser.add_argument("--masks", action="store_true", help="masks are to be trained: objects need them")
    parser.add_argument("--no_decode", action="store_true", help="do not open pictures")
    parser.add_argument("--json", metavar="OUT", help="write all findings to this file")
    parser.add_argument("--fix", metavar="OUT_DIR", help="write a corrected copy to this new folder")
    parser.add_argument("--drop", action="store_true", help="with --fix: drop what cannot be mended, "
                        "even more than a tenth of a split")  # fmt: skip
    return parser


def run(words: Sequence[str] | None = None) -> int:
    """The command -> its exit status."""
    args = get_args_parser().parse_args(words)
    sources = find_sources(args.path, args.dataset_file, args.images)
    decode = not args.no_decode
    report = check_dataset(sources, args.num_classes, args.num_queries, decode, masks=args.masks)
    print("\n".join(report.lines()))
    if args.json:
        Path(args.json).write_text(json.dumps(report.to_json(), indent=1, default=str), encoding="utf-8")
    if args.fix:
        lines = write_corrected(sources, args.fix, args.num_classes, decode, args.masks, args.drop)
        print("\n" + "\n".join(lines))
    return report.status


if __name__ == "__main__":
    sys.exit(exit_status(run))
