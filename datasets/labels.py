"""Which categories the data has, and what it must hold before a model can be trained or evaluated on it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from datasets.annotations import AnnotationFile, load_annotations
from datasets.layouts import find_split
from util.distributed import is_main_process
from util.errors import UserError, warn


def read_categories(args: Namespace, image_sets: Iterable[str] = ("train", "val")) -> dict[int, str]:
    """The categories, id -> name by id, that the annotation files of some splits declare; no image is read.

    Raises:
        UserError: a file is missing or faulty.
    """
    parts = (annotations.categories.items() for annotations in _annotations(args, image_sets))
    return dict(sorted(chain.from_iterable(parts)))


def read_things(args: Namespace, image_sets: Iterable[str] = ("train", "val")) -> dict[int, bool]:
    """Category id -> whether it is one of things, by id, from the panoptic files of some splits.

    Raises:
        UserError: a file is missing or faulty.
    """
    parts = (annotations.is_thing.items() for annotations in _annotations(args, image_sets))
    return dict(sorted(chain.from_iterable(parts)))


def _annotations(args: Namespace, image_sets: Iterable[str]) -> Iterator[Any]:
    for image_set in image_sets:
        if args.dataset_file == "coco_panoptic":
            from datasets.panoptic_annotations import PanopticAnnotations, find_panoptic_files

            file = find_panoptic_files(args.coco_path, args.coco_panoptic_path, image_set)[2]
            yield load_annotations(file, PanopticAnnotations)
        else:
            yield load_annotations(find_split(args.coco_path, image_set, args.dataset_file).annotations)


def check_labels(annotations: AnnotationFile, num_classes: int) -> None:
    """Every label must have its place in the classification head.

    Raises:
        UserError: one has not; training would end in an assertion on the device.
    """
    used = annotations.first_ids  # category id -> an object's id
    outside = [category for category in used if not 0 <= category < num_classes]
    if not outside:
        return
    category = outside[0]
    start = (
        f"{annotations.source}: annotation {used[category]} has category id {category} "
        f"({annotations.categories.get(category, 'not among the categories')}), and "
    )
    if category < 0:
        raise UserError(f"{start}ids begin at 0: python -m doctor --fix moves it")
    highest = max([*annotations.categories, *used])
    raise UserError(
        f"{start}--num_classes {num_classes}, given or of the checkpoint, holds ids up to {num_classes - 1}: "
        f"train with --num_classes {highest + 1}, from other weights with --finetune"
    )


def check_objects(annotations: AnnotationFile, num_queries: int) -> None:
    """There must be something to learn, and it should be possible to find all of it.

    Raises:
        UserError: no image has any object.
    """
    most = annotations.most_objects
    if not most:
        raise UserError(
            f"{annotations.source}: no image has any object, so there is nothing to learn; does each "
            "annotation's image_id stand among the images' ids?"
        )
    if most > num_queries and is_main_process():
        warn(f"an image holds {most} objects, the model can find {num_queries}: raise --num_queries")
