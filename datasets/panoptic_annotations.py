"""A COCO panoptic file packed in NumPy arrays, for the reasons that datasets.annotations gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.annotation_file import AnnotationFile, load_once, read_json, small_number


class Segments(NamedTuple):
    """The segments of an image, in the file's order; views of the packed arrays, each [N]."""

    ids: np.ndarray  # int32, the numbers in the image's PNG
    category_ids: np.ndarray  # int32
    areas: np.ndarray  # float64, square pixels
    crowds: np.ndarray  # int8, 0 or 1


class PanopticAnnotations(AnnotationFile):
    """The images, segments and categories of a COCO panoptic file.

    Images are in the order of their ids, whatever the order of the file's images and annotations, which
    belong together by image_id, one to one.

    Attributes:
        is_thing: category id -> whether it is one of things, by id.
        source, categories, image_ids, heights, widths: see AnnotationFile.

    Raises:
        UserError: a section or a value is missing; an id is no integer, occurs twice, or is not between 0
            and 2^24 - 1 where it is a segment's; a category is unknown; an image has no annotation, or an
            annotation no image.
    """

    form = "panoptic"

    def __init__(self, content: dict[str, Any], source: str | Path):
        super().__init__(content, source)
        kinds = self._column(content["categories"], "isthing", "category")
        is_thing = {
            record["id"]: bool(kind) for record, kind in zip(content["categories"], kinds, strict=True)
        }
        self.is_thing: dict[int, bool] = {category: is_thing[category] for category in self.categories}
        self._pack_annotations(content["annotations"])

    @property
    def num_annotations(self) -> int:
        """Segments in the file, crowds included."""
        return len(self._segments.ids)

    @property
    def highest_category_id(self) -> int:
        """Over the categories listed; 0 where there are none."""
        return max(self.categories, default=0)

    def objects_per_category(self) -> dict[int, int]:
        """Category id -> number of its segments, crowds included, for they are trained on as well."""
        used, counts = np.unique(self._segments.category_ids, return_counts=True)
        found = dict(zip(used.tolist(), counts.tolist(), strict=True))
        return {category: found.get(category, 0) for category in self.categories}

    def first_outside(self, num_classes: int) -> tuple[int, int] | None:
        """(segment id, category id) of the first with a category not from 0 to num_classes - 1."""
        return self._first_outside(self._segments.ids, self._segments.category_ids, num_classes)

    def most_objects(self) -> int:
        """The most segments in one image."""
        return int(np.diff(self._starts).max(initial=0))

    def png_name(self, index: int) -> str:
        """The PNG of the image at `index` (0 to num_images - 1), below the folder of PNGs."""
        return self._png_names[index].decode()

    def segments_of(self, index: int) -> Segments:
        """The segments of the image at `index`."""
        rows = slice(self._starts[index], self._starts[index + 1])
        return Segments(*(column[rows] for column in self._segments))

    def _read_coco(self) -> dict[str, Any]:
        """The JSON object itself, its images sorted by id."""
        content = read_json(self.source)
        return {**content, "images": sorted(content["images"], key=lambda image: image["id"])}

    @property
    def _segments(self) -> Segments:
        """Those of all images, one image's after the other's."""
        return Segments(
            self._segment_ids, self._segment_categories, self._segment_areas, self._segment_crowds
        )

    # ---- packing

    def _pack_annotations(self, annotations: list[dict[str, Any]]) -> None:
        image_ids = np.array(self._ids(annotations, "annotation", "image_id"), dtype=np.int64)
        for image_id in np.setdiff1d(image_ids, self.image_ids)[:1]:
            raise self._fault(f"an annotation belongs to image {image_id}, which the file does not list")
        for image_id in np.setdiff1d(self.image_ids, image_ids)[:1]:
            raise self._fault(f"image {image_id} has no annotation: add one, or take the image off the list")
        order = np.argsort(image_ids)
        names = [str(name).encode() for name in self._column(annotations, "file_name", "annotation")]
        self._png_names = np.array(names, dtype=np.bytes_)[order]
        lists = self._column(annotations, "segments_info", "annotation")
        for image_id, segments in zip(image_ids, lists, strict=True):
            if not isinstance(segments, list):
                raise self._fault(f"image {image_id}: segments_info must be a list, not {segments!r:.60}")
        lengths = np.array([len(lists[place]) for place in order], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])  # [images + 1] into the segments
        records = [record for place in order for record in lists[place]]
        columns = self._pack_segments(records, np.repeat(self.image_ids, lengths))
        self._segment_ids, self._segment_categories, self._segment_areas, self._segment_crowds = columns

    def _pack_segments(self, records: list[Any], owners: np.ndarray) -> Segments:
        """Segments of all images; `owners` [S] are the ids of their images, ascending."""
        ids = np.array(self._numbers(records, owners, "id", (int,)), dtype=np.int64)
        category_ids = np.array(self._numbers(records, owners, "category_id", (int,)), dtype=np.int64)
        areas = np.array(self._numbers(records, owners, "area", (int, float)), dtype=np.float64)
        crowds = np.array([small_number(record.get("iscrowd"), 128) for record in records], dtype=np.int8)
        for row in np.flatnonzero((ids < 0) | (ids >= 1 << 24))[:1]:
            raise self._fault(f"image {owners[row]}: segment id {ids[row]} is not in 0 to 2^24 - 1")
        for row in np.flatnonzero(~np.isin(category_ids, list(self.categories)))[:1]:
            name = f"image {owners[row]}: segment {ids[row]}"
            raise self._fault(f"{name} has category {category_ids[row]}, which the file does not list")
        places = np.searchsorted(self.image_ids, owners) << 24 | ids
        values, counts = np.unique(places, return_counts=True)
        for place in values[counts > 1][:1]:
            image_id = self.image_ids[place >> 24]
            raise self._fault(f"image {image_id}: segment id {place & 0xFFFFFF} occurs more than once")
        return Segments(ids.astype(np.int32), category_ids.astype(np.int32), areas, crowds)

    def _numbers(self, records: list[Any], owners: np.ndarray, key: str, types: tuple[type, ...]) -> list:
        try:
            values = [record.get(key) for record in records]
        except AttributeError:
            place = next(i for i, record in enumerate(records) if not isinstance(record, dict))
            what = f"image {owners[place]}: a segment is no object but"
            raise self._fault(f"{what} {records[place]!r:.60}") from None
        for place, value in enumerate(values):
            if type(value) not in types:
                wanted = "a number" if float in types else "an integer"
                what = f"image {owners[place]}: '{key}' of a segment"
                raise self._fault(f"{what} must be {wanted}, not {value!r:.60}")
        return values


def load_panoptic_annotations(path: str | Path) -> PanopticAnnotations:
    """The packed annotations of a file; read once in a process as long as the file does not change.

    Raises:
        UserError: the file is missing, is no JSON, or PanopticAnnotations refuses what it holds.
    """
    return load_once(path, PanopticAnnotations)
