"""Panoptic sets with one fault each, made from a clean one, as tests.spoiled makes sets of instances."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.panoptic_png import encode_png
from tests.helpers import write_pictures
from tests.spoiled import CleanSet, Spoiled, write_files

PANOPTIC = "annotations/panoptic_train2017.json"
WIDTH, HEIGHT = 60, 40
FIRST_SEGMENT = 300  # of image 21; 310 of image 22; 320 of image 23


def write_clean_panoptic(root: Path) -> CleanSet:
    """Three pictures, ids 21…23, of three segments each: two things (categories 1, 2) and stuff (5)."""
    images = write_pictures(root / "train2017", [(WIDTH, HEIGHT)] * 3, 21)
    (root / "panoptic_train2017").mkdir()
    annotations = []
    for place, image in enumerate(images):
        ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
        segments = []
        for number, category in enumerate((1, 2, 5)):
            segment = FIRST_SEGMENT + 10 * place + number
            ids[5:30, 20 * number : 20 * number + 15] = segment
            segments.append(
                {"id": segment, "category_id": category, "area": 375, "iscrowd": 0,
                 "bbox": [20 * number, 5, 15, 25]}
            )  # fmt: skip
        name = f"{image['id']}.png"
        (root / "panoptic_train2017" / name).write_bytes(encode_png(ids))
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    categories = [{"id": i, "name": f"c{i}", "isthing": int(i < 5)} for i in (1, 2, 5)]
    made = CleanSet(
        root, {PANOPTIC: {"images": images, "annotations": annotations, "categories": categories}}
    )
    write_files(made)
    return made


def spoil_panoptic(name: str, clean: CleanSet, root: Path) -> CleanSet:
    """A copy of the clean set in a new folder, with the fault `name` of SPOILED_PANOPTIC."""
    shutil.copytree(clean.root, root)
    made = CleanSet(root, copy.deepcopy(clean.files))
    SPOILED_PANOPTIC[name].spoiler(made)
    write_files(made)
    return made


def _annotation(change: Callable[[dict[str, Any]], Any]) -> Callable[[CleanSet], None]:
    """Changes the annotation of image 22."""
    return lambda made: change(made.files[PANOPTIC]["annotations"][1])


def _segment(**values: Any) -> Callable[[CleanSet], None]:
    """Changes segment 311 of image 22."""
    return _annotation(lambda one: one["segments_info"][1].update(values))


def _png(change: Callable[[Path], Any]) -> Callable[[CleanSet], None]:
    """Changes the PNG of image 22."""
    return lambda made: change(made.root / "panoptic_train2017" / "22.png")


def _resize(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(path)


SPOILED_PANOPTIC: dict[str, Spoiled] = {
    "isthing missing": Spoiled(
        lambda made: made.files[PANOPTIC]["categories"][1].pop("isthing"),
        "isthing_missing", text="category id 2"),
    "segments_info no list": Spoiled(
        _annotation(lambda one: one.update(segments_info=None)), "segments_malformed", None, 22,
        also={"png_not_in_json"}),
    "segment id twice": Spoiled(
        _segment(id=312), "segment_id", 312, 22, also={"png_not_in_json"}),
    "segment id too large": Spoiled(
        _segment(id=1 << 24), "segment_id", 1 << 24, 22, also={"png_not_in_json", "json_not_in_png"}),
    "segment without area": Spoiled(
        _annotation(lambda one: one["segments_info"][1].pop("area")), "segments_malformed", 311, 22),
    "segment of no category": Spoiled(_segment(category_id=77), "dangling_category_id", 311, 22, "77"),
    "image without annotation": Spoiled(
        lambda made: made.files[PANOPTIC]["annotations"].pop(1), "image_without_segments", None, 22),
    "annotation twice": Spoiled(
        lambda made: made.files[PANOPTIC]["annotations"].append(made.files[PANOPTIC]["annotations"][1]),
        "duplicate_annotation_id", None, 22),
    "annotation of no image": Spoiled(
        _annotation(lambda one: one.update(image_id=99)), "dangling_image_id", None, 99,
        also={"image_without_segments"}),
    "PNG missing": Spoiled(_png(Path.unlink), "png_unreadable", None, 22),
    "PNG damaged": Spoiled(_png(lambda path: path.write_bytes(b"x")), "png_unreadable", None, 22),
    "PNG in grey": Spoiled(
        _png(lambda path: Image.open(path).convert("L").save(path)), "png_unreadable", None, 22, "not RGB"),
    "PNG of another size": Spoiled(_png(_resize), "png_size", None, 22, "has 30 x 20, the image 60 x 40"),
    "segment missing in the JSON": Spoiled(
        _annotation(lambda one: one["segments_info"].pop(1)), "png_not_in_json", 311, 22, "375 pixels"),
    "segment missing in the PNG": Spoiled(
        _annotation(lambda one: one["segments_info"].append(
            {"id": 500, "category_id": 1, "area": 9, "iscrowd": 0})), "json_not_in_png", 500, 22),
}  # fmt: skip
"""Name -> fault, in a panoptic set."""
