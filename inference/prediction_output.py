"""The files that predict.py writes: drawn pictures, drawn attention, and JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.images import image_ids
from datasets.panoptic_png import encode_png
from inference.attention_maps import Attention
from inference.drawing import draw, draw_attention
from inference.pictures import Read, unique_stems
from inference.predicting import Found, coco_results, panoptic_results
from inference.trained import TrainedModel
from inference.visualize import save_picture
from util.errors import UserError
from util.files import make_writable, write_whole

JSON_FILES = {"boxes": "results.json", "masks": "results.json", "panoptic": "panoptic.json"}


class Output:
    """Writes what was found, each picture's under a name of its own.

    Args:
        args: the flags of predict.py.
        paths: of all pictures that are to be read.
        ids: their image ids; None: the numbers that they are called by, or 1, 2, …

    Raises:
        UserError: the folder cannot be written to, or one of the pictures to be read would be overwritten.
    """

    def __init__(
        self, args: argparse.Namespace, paths: Sequence[Path], ids: Mapping[Path, int] | None = None
    ):
        self.args = args
        self.folder = Path(args.output_dir)
        self.stems = unique_stems(paths)
        self.ids = dict(zip(paths, image_ids(paths), strict=True)) if ids is None else ids
        originals = {path.resolve() for path in paths}
        for path in paths:
            drawing = [] if args.no_pictures else [self.drawing(path)]
            sheet = [self.sheet(path)] if args.attention else []
            for name in drawing + sheet + ([self.segments(path)] if args.json else []):
                if name.resolve() in originals:
                    raise UserError(
                        f"--output_dir {self.folder}: {name} is one of the pictures to be read and would be "
                        "overwritten; choose another folder"
                    )
        make_writable(self.folder, f"--output_dir {self.folder}")

    def drawing(self, path: Path) -> Path:
        """Where a picture goes with what was found drawn in."""
        return self.folder / f"{self.stems[path]}.{self.args.format}"

    def sheet(self, path: Path) -> Path:
        """Where the drawing of attention goes."""
        return self.folder / "attention" / f"{self.stems[path]}.{self.args.format}"

    def segments(self, path: Path) -> Path:
        """Where the PNG with the ids of panoptic segments goes."""
        return self.folder / "panoptic" / f"{self.stems[path]}.png"

    def write(
        self, read: Read, found: Found, heard: Attention | None, place: int, names: Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """Write what belongs to one picture -> its entries in the JSON file.

        Args:
            heard: the attention meanwhile, if it is to be drawn.
            place: of the picture in its batch.
        """
        assert read.picture is not None
        if not self.args.no_pictures:
            save_picture(draw(read.picture, found, names), self.drawing(read.path))
        points = self.args.point or ()
        if heard is not None and (points or len(found)):
            sheet = draw_attention(read.picture, found, heard, place, names, points)
            save_picture(sheet, self.sheet(read.path))
        if not self.args.json:
            return []
        if found.panoptic is None:
            return coco_results(found, self.ids[read.path], str(read.path))
        ids, segments = found.panoptic
        if segments:  # their ids begin with 0, which in a file stands for pixels of no segment
            ids = ids + 1
            segments = [{**segment, "id": segment["id"] + 1, "iscrowd": 0} for segment in segments]
        file = self.segments(read.path)
        file.parent.mkdir(exist_ok=True)
        write_whole(file, encode_png(ids.numpy()))
        return [{"image_id": self.ids[read.path], "file_name": file.name, "segments_info": segments}]

    def finish(self, records: Sequence[list[dict[str, Any]]], trained: TrainedModel, kind: str) -> None:
        """Write the JSON file, if there is to be one, from what `write` gave for each picture."""
        if not self.args.json:
            return
        content: Any = [entry for of_picture in records for entry in of_picture]
        if kind == "panoptic":
            done = {entry["image_id"] for entry in content}
            files = {i: str(path) for path, i in self.ids.items() if i in done}
            content = panoptic_results(content, files, trained)
        write_whole(self.folder / JSON_FILES[kind], json.dumps(content))
