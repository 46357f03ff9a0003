"""The cases by name, and the stored values of each."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tests.reference import criterion, data, evaluation, model, panoptic, randomness, training
from tests.reference.compare import Values
from tests.reference.settings import LEARNED, MASKS, NO_AUX, SMALL, SMALL_R50, SMALL_R101

STORED_FILE = Path(__file__).with_name("reference.npz")
MATCHED_BATCHES = range(len(criterion.MATCHED_BATCHES))
KEY_PREFIXES = {"train": "training"} | {f"match{i}": "matching" for i in MATCHED_BATCHES}


class Case(NamedTuple):
    """`compute(seed, empty_folder)` gives the values."""

    compute: Callable[[int, Path], Values]


def models(device: str = "cpu") -> dict[str, Case]:
    """One case for each setting, with the number of objects in each of its two images."""
    settings = {
        "post_norm": (SMALL, (3, 5)),
        "pre_norm": (f"{SMALL} --pre_norm", (3, 5)),
        "learned": (LEARNED, (3, 5)),
        "no_aux": (NO_AUX, (3, 5)),
        "dc5": (f"{SMALL_R50} --dilation", (3, 5)),
        "resnet101": (SMALL_R101, (3, 5)),
        "crowded": (SMALL, (20, 0)),  # more objects than queries
        "single": (SMALL, (1, 0)),
        "empty": (SMALL, (0, 0)),
        "segm": (MASKS, (3, 5)),
        "panoptic": (f"{MASKS} --dataset_file coco_panoptic", (3, 5)),
        "segm_crowded": (MASKS, (17, 2)),
        "segm_empty": (MASKS, (0, 0)),
    }

    def case(name: str, flags: str, counts: tuple[int, int]) -> Case:
        return Case(
            lambda seed, _: model.forward_and_loss(name, flags, counts, seed, device),
        )

    return {name: case(name, flags, counts) for name, (flags, counts) in settings.items()}


def _merges() -> dict[str, Case]:
    def case(kind: str) -> Case:
        return Case(lambda seed, _: panoptic.merge(kind, seed))

    return {f"merge_{kind}": case(kind) for kind in panoptic.KINDS}


def _initial(seed: int, folder: Path) -> Values:
    return {
        **randomness.initial_values("initial/post_norm", SMALL, seed),
        **randomness.initial_values("initial/learned", LEARNED, seed),
    }


CASES: dict[str, Case] = {
    **models(),
    **_merges(),
    "functions": Case(lambda seed, _: criterion.box_functions(seed)),
    "mask_functions": Case(lambda seed, _: criterion.mask_losses(seed)),
    "matching": Case(lambda seed, _: criterion.matching(seed)),
    "extension": Case(lambda seed, _: criterion.extension(seed)),
    "training": Case(lambda seed, _: training.train_three_epochs(seed)),
    "whole_run": Case(training.whole_run),
    "hub": Case(lambda seed, _: model.hub("hub", model.DETECTION_ENTRY_POINTS, seed)),
    "hub_panoptic": Case(lambda seed, _: model.hub("hub_panoptic", model.PANOPTIC_ENTRY_POINTS, seed)),
    "script": Case(lambda seed, _: model.scripted(seed)),
    "coco_eval": Case(lambda seed, _: evaluation.coco_figures(seed)),
    "initial": Case(_initial),
    "initial_masks": Case(lambda seed, _: randomness.initial_values("initial_masks", MASKS, seed)),
    "dropout": Case(lambda seed, _: randomness.dropout(seed)),
    "targets": Case(lambda seed, folder: data.targets("targets", "", seed, folder)),
    "targets_masks": Case(lambda seed, folder: data.targets("targets_masks", "--masks", seed, folder)),
    "targets_panoptic": Case(
        lambda seed, folder: data.targets(
            "targets_panoptic", "--masks --dataset_file coco_panoptic", seed, folder
        ),
    ),
}


def published_state(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a published file by the name of its torch.hub entry point, without their numbers."""
    case = "hub_panoptic" if name.endswith("panoptic") else "hub"
    lines = [str(line).split(" ", 1) for line in stored_values()[1][case][f"{case}/{name}/keys"]]
    sizes = {key: [int(number) for number in re.findall(r"\d+", shape)] for key, shape in lines}
    return {key: torch.empty(size, device="meta") for key, size in sizes.items()}


@functools.cache
def stored_values() -> tuple[int, dict[str, Values]]:
    """The seed of the stored streams, and the stored values of each case."""
    by_case: dict[str, Values] = {}
    with np.load(STORED_FILE) as stored:
        seed = int(stored["seed"])
        for key in stored.files:
            prefix = key.partition("/")[0]
            if key != "seed":
                by_case.setdefault(KEY_PREFIXES.get(prefix, prefix), {})[key] = stored[key]
    return seed, by_case
