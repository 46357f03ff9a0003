"""Your own data, registered from the command line: `--register NAME=annotations.json:images`."""

import json
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from util.errors import UserError

__all__ = ["register"]


def register(text: str) -> None:
    """Register a data set in COCO's format.

    Args:
        text: `NAME=annotations.json:images` for objects; `NAME=panoptic.json:images:pngs` for panoptic
            segments, whose classes are things or stuff as `isthing` says.

    Raises:
        UserError: another form, a name that is taken, or a file or folder that is not there.
    """
    name, _, places = text.partition("=")
    parts = [Path(place) for place in places.split(":")]
    if not name or len(parts) not in (2, 3):
        raise UserError(f"--register {text}: write NAME=annotations.json:images, or, for panoptic segments, "
                        "NAME=panoptic.json:images:pngs")  # fmt: skip
    if name in DatasetCatalog.list():
        raise UserError(f"--register {text}: a data set of the name {name} is registered already")
    annotations, *folders = parts
    if not annotations.is_file():
        raise UserError(f"--register {text}: there is no file {annotations}")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--register {text}: there is no folder {folder}")
    if len(folders) == 1:
        register_coco_instances(name, {}, str(annotations), str(folders[0]))
    else:
        register_panoptic(name, annotations, *folders)


def register_panoptic(name: str, annotations: Path, images: Path, pngs: Path) -> None:
    """As detectron2's register_coco_panoptic, for images of any kind: it takes all of them for .jpg."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    categories = sorted(content["categories"], key=lambda record: record["id"])
    contiguous = {record["id"]: i for i, record in enumerate(categories)}
    things = {record["id"] for record in categories if record["isthing"]}
    names = [record["name"] for record in categories]
    files = {record["id"]: record["file_name"] for record in content["images"]}

    def records() -> list[dict[str, Any]]:
        return [
            {
                "file_name": str(images / files[one["image_id"]]),
                "image_id": one["image_id"],
                "pan_seg_file_name": str(pngs / one["file_name"]),
                "segments_info": [
                    {
                        **segment,
                        "category_id": contiguous[segment["category_id"]],
                        "isthing": segment["category_id"] in things,
                    }
                    for segment in one["segments_info"]
                ],
            }
            for one in content["annotations"]
        ]

    DatasetCatalog.register(name, records)
    MetadataCatalog.get(name).set(
        thing_classes=names,
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={i: c for i, c in contiguous.items() if i in things},
        stuff_dataset_id_to_contiguous_id={i: c for i, c in contiguous.items() if i not in things},
        panoptic_json=str(annotations),
        panoptic_root=str(pngs),
        image_root=str(images),
        evaluator_type="coco_panoptic_seg",
    )
