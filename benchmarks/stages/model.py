"""The detector: R50 with the published defaults, in training and in inference."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measure import Work
from benchmarks.peers import build_peer
from benchmarks.settings import Settings
from benchmarks.stages import ALL, BOTH, Stage
from benchmarks.workloads import OBJECTS, byte_images, layer_outputs, targets

TRAINING_SIZE = (480, 640)
INFERENCE_SIZE = (800, 1066)
ROUNDING = 1e-3  # what outputs may differ by


class _Training:
    """A peer with a batch of two pictures and their objects."""

    def __init__(self, settings: Settings, side: str):
        size = settings.image_size(*TRAINING_SIZE)
        self.peer = build_peer(side, settings)
        self.batch = self.peer.batch(byte_images(2, *size))
        self.targets = self.peer.objects(targets(2, OBJECTS, *size))

    def loss(self) -> torch.Tensor:
        return self.peer.loss(self.peer.forward(self.batch), self.targets)


def _forward(settings: Settings, side: str) -> Work:
    of = _Training(settings, side)

    def run() -> None:
        of.peer.forward(of.batch)

    return Work(run, items=2)


def _backward(settings: Settings, side: str) -> Work:
    of = _Training(settings, side)
    return Work(lambda loss: loss.backward(), before=of.loss, items=2)


def _optimizer(settings: Settings, side: str) -> Work:
    of = _Training(settings, side)
    of.loss().backward()
    return Work(of.peer.update)


def _step(settings: Settings, side: str) -> Work:
    of = _Training(settings, side)
    return Work(lambda: of.peer.train_step(of.batch, of.targets), items=2)


def _criterion(settings: Settings, side: str) -> Work:
    """Matching, losses and their gradient: 6 layers, 16 images, 20 objects in each."""
    peer = build_peer(side, settings)
    images, objects = settings.pick(16, 2), settings.pick(20, 3)
    wanted = peer.objects(targets(images, objects, 64, 64))
    queries, layers = settings.pick(100, 12), settings.pick(6, 2)
    logits, boxes = layer_outputs(layers, images, queries, 91, settings.device)

    def run() -> list[float]:
        loss = peer.criterion(logits, boxes, wanted)
        gradients = torch.autograd.grad(loss, (logits, boxes))
        return [loss.item(), *(g.abs().sum().item() for g in gradients)]

    return Work(run, items=images)


def _inference(settings: Settings, side: str, images: int) -> Work:
    peer = build_peer(side, settings)
    batch = peer.batch(byte_images(images, *settings.image_size(*INFERENCE_SIZE)))
    return Work(lambda: peer.infer(batch), items=images)


def _postprocess(settings: Settings, side: str) -> Work:
    peer = build_peer(side, settings)
    logits, boxes = (x.detach() for x in layer_outputs(1, 8, 100, 91, settings.device))
    sizes = torch.tensor([INFERENCE_SIZE] * 8, device=settings.device)
    return Work(lambda: peer.detections(logits[0], boxes[0], sizes), items=8)


def _outputs_apart(a: Any, b: Any) -> float:
    return max(float((x.float() - y.float()).abs().max()) for x, y in zip(a, b, strict=True))


def _relative(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def _detections_apart(a: Any, b: Any) -> float:
    keys = ("scores", "labels", "boxes")
    return max(_outputs_apart([x[k] for k in keys], [y[k] for k in keys]) for x, y in zip(a, b, strict=True))


STAGES = [
    Stage(
        "inference",
        "inference, 1 x 800x1066",
        lambda settings, side: _inference(settings, side, 1),
        ALL,
        target=1.9,
        bf16_target=3.5,
        on_device=True,
        difference=_outputs_apart,
        tolerance=ROUNDING,
    ),
    Stage(
        "inference-8",
        "inference, 8 x 800x1066",
        lambda settings, side: _inference(settings, side, settings.pick(8, 2)),
        ALL,
        rounds=3,
        on_device=True,
        difference=_outputs_apart,
        tolerance=ROUNDING,
    ),
    Stage("forward", "forward in training, 2 x 480x640", _forward, ALL, on_device=True),
    Stage(
        "criterion",
        "criterion, 6 layers x 16 images x 20 objects",
        _criterion,
        ALL,
        target=4,
        on_device=True,
        difference=_relative,
        tolerance=1e-4,
    ),
    Stage("backward", "backward, 2 x 480x640", _backward, BOTH, on_device=True),
    Stage("optimizer", "clipping and AdamW", _optimizer, BOTH, on_device=True),
    Stage(
        "step",
        "training step, 2 x 480x640",
        _step,
        ALL,
        target=1.35,
        bf16_target=2.2,
        on_device=True,
    ),
    Stage(
        "step-memory",
        "memory of that step",
        _step,
        ALL,
        target=1 / 0.8,
        rounds=3,  # what the C library's allocator leaves unused differs from run to run
        unit="bytes",
    ),
    Stage(
        "postprocess",
        "post-processing, 8 images",
        _postprocess,
        ALL,
        on_device=True,
        difference=_detections_apart,
        tolerance=ROUNDING,
    ),
]
