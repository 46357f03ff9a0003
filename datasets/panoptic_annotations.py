"""COCO's panoptic files: where they lie, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.annotations import AnnotationFile, PackedRecords, is_number
from datasets.layouts import LAYOUTS, PANOPTIC, folder_of, inside, is_integer


class PanopticAnnotations(AnnotationFile):
    """A COCO panoptic file.

    Whatever the order of the file's images and annotations, they belong together by image_id, one to one.
    Crowds are counted, for they are trained on as well.

    Attributes:
        annotations: the records of the annotations, one for each image, in the order of image ids.
        is_thing: category id -> whether it is one of things, by id.

    Raises:
        UserError: a section or a value is missing; an id is no integer, occurs twice, or is not between 0
            and 2^24 - 1 where it is a segment's; a category is unknown; an image has no annotation, or an
            annotation no image.
    """

    form = "panoptic"

    def __init__(self, content: dict[str, Any], source: str | Path):
        super().__init__(content, source)
        self._check(content["categories"], "category", "isthing", lambda _: True, "0 or 1")
        is_thing = {category["id"]: bool(category["isthing"]) for category in content["categories"]}
        self.is_thing: dict[int, bool] = {category: is_thing[category] for category in self.categories}
        self._check_ids(content["annotations"], "annotation", "image_id")
        self._check(content["annotations"], "annotation", "file_name", lambda _: True, "a path")
        annotations = sorted(content["annotations"], key=lambda annotation: annotation["image_id"])
        listed, annotated = set(self.image_ids.tolist()), {one["image_id"] for one in annotations}
        for image_id in sorted(annotated - listed)[:1]:
            raise self._fault(f"an annotation belongs to image {image_id}, which the file does not list")
        for image_id in sorted(listed - annotated)[:1]:
            raise self._fault(f"image {image_id} has no annotation: add one, or take the image off the list")

        def is_colour(value: Any) -> bool:
            return is_integer(value) and 0 <= value < 1 << 24

        def is_listed(value: Any) -> bool:
            return is_integer(value) and value in self.categories

        for annotation in annotations:
            image, segments = f"image {annotation['image_id']}", annotation.get("segments_info")
            if not isinstance(segments, list):
                raise self._fault(f"{image}: segments_info must be a list, not {segments!r:.60}")
            kind = f"{image}, segment"
            self._check(segments, kind, "id", is_colour, "an integer from 0 to 2^24 - 1")
            self._check_ids(segments, kind)
            self._check(segments, kind, "category_id", is_listed, "a category that the file lists")
            self._check(segments, kind, "area", is_number, "a number")
        self._count(annotation["segments_info"] for annotation in annotations)
        self.annotations = PackedRecords(annotations)


def find_panoptic_files(
    coco_path: str | Path | None, panoptic_path: str | Path | None, image_set: str
) -> tuple[Path, Path, Path]:
    """The image folder, the folder of PNGs and the panoptic file of an image set in COCO's layout.

    Raises:
        UserError: there is none; the message says what was looked for and what lies there.
    """
    pictures, _ = LAYOUTS["coco"].splits[image_set]
    root = folder_of("--coco_path", coco_path, pictures)
    (img_folder,) = inside("--coco_path", root, [pictures])
    names = PANOPTIC.splits[image_set]
    root = folder_of("--coco_panoptic_path", panoptic_path, " and ".join(names))
    ann_folder, ann_file = inside("--coco_panoptic_path", root, names)
    return img_folder, ann_folder, ann_file
