"""What the annotations of a split must hold before a model can be trained or evaluated on them."""

from __future__ import annotations

from typing import Any

from util.distributed import is_main_process
from util.errors import UserError, warn


def check_labels(annotations: Any, num_classes: int) -> None:
    """Every label must have its place in the classification head.

    Raises:
        UserError: one has not; training would end in an assertion on the device.
    """
    found = annotations.first_outside(num_classes)
    if found is None:
        return
    start = (
        f"{annotations.source}: annotation {found[0]} has category id {found[1]} "
        f"({annotations.categories.get(found[1], 'not among the categories')}), and "
    )
    if found[1] < 0:
        raise UserError(f"{start}ids begin at 0: python -m doctor --fix moves it")
    raise UserError(
        f"{start}--num_classes {num_classes}, given or of the checkpoint, holds ids up to {num_classes - 1}: "
        f"train with --num_classes {annotations.highest_category_id + 1}, from other weights with --finetune"
    )


def check_objects(annotations: Any, num_queries: int) -> None:
    """There must be something to learn, and it should be possible to find all of it.

    Raises:
        UserError: no image has any object.
    """
    if not sum(annotations.objects_per_category().values()):
        raise UserError(
            f"{annotations.source}: no image has any object, so there is nothing to learn; does each "
            "annotation's image_id stand among the images' ids?"
        )
    most = annotations.most_objects()
    if most > num_queries and is_main_process():
        warn(f"an image holds {most} objects, the model can find {num_queries}: raise --num_queries")
