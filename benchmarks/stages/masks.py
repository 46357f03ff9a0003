"""The segmenter: R50 with the mask head over 100 queries, 250 classes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Work
from benchmarks.peers import build_peer
from benchmarks.settings import Settings
from benchmarks.stages import ALL, Stage
from benchmarks.workloads import OBJECTS, byte_images, targets

SIZE = (480, 640)


def _step(settings: Settings, side: str) -> Work:
    """Detector and mask head together, one picture."""
    size = settings.image_size(*SIZE)
    peer = build_peer(side, settings, masks=True)
    batch = peer.batch(byte_images(1, *size))
    wanted = peer.objects(targets(1, OBJECTS, *size, masks=True))
    return Work(lambda: peer.train_step(batch, wanted))


def _panoptic(settings: Settings, side: str) -> Work:
    """From a batch of one picture to its PNG and its segments."""
    size = settings.image_size(*SIZE)
    peer = build_peer(side, settings, masks=True)
    batch = peer.batch(byte_images(1, *size))
    return Work(lambda: peer.panoptic(batch, size))


def _classes_apart(a: list[Any], b: list[Any]) -> float:
    """The share of classes that only one side has found.

    Pixels are compared in the tests, by a small model: the masks of a random R50 lie closer together than
    rounding, so that either may win a pixel.
    """
    found, wanted = ({s["category_id"] for one in side for s in one["segments_info"]} for side in (a, b))
    return len(found ^ wanted) / max(len(found | wanted), 1)


def _classes(result: Any) -> np.ndarray:
    with Image.open(io.BytesIO(result["png_string"])) as image:
        ids = np.array(image).astype(np.int64) @ (1, 256, 65536)
    of_id = {segment["id"]: segment["category_id"] for segment in result["segments_info"]}
    return np.vectorize(lambda one: of_id.get(one, -1))(ids)


STAGES = [
    Stage(
        "panoptic",
        "panoptic inference, 1 x 480x640",
        _panoptic,
        ALL,
        target=2.5,
        on_device=True,
        difference=_classes_apart,
        tolerance=0.1,  # a class of a few pixels
    ),
    Stage(
        "step-masks",
        "training step with masks, 1 x 480x640",
        _step,
        ALL,
        target=2,
        rounds=3,
        on_device=True,
    ),
    Stage(
        "step-masks-memory",
        "memory of that step",
        _step,
        ALL,
        target=2,
        rounds=1,
        unit="bytes",
    ),
]
