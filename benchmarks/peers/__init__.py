"""The models that are compared, each behind the same few calls.

A peer is built with `build(settings, masks)`; its methods are those of `Peer`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from benchmarks.settings import Settings

CONFIDENT = 15  # queries that make a segment in panoptic inference, some 11 segments a picture on COCO
CERTAIN = 12.0  # the logit of their class


class Peer(Protocol):
    """What can be asked of a model, with its losses, its optimizer and its post-processing."""

    def batch(self, images: list[Tensor]) -> Any:
        """Pictures uint8 [3, h, w] as the model takes them, on the device."""

    def objects(self, targets: list[dict[str, Tensor]]) -> Any:
        """Targets as the losses take them, on the device."""

    def forward(self, batch: Any) -> Any:
        """Outputs for training, with gradients."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """What is minimised."""

    def criterion(self, logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
        """The same for outputs of all layers, [L, B, Q, C + 1] and [L, B, Q, 4]."""

    def update(self) -> None:
        """Clip the gradients and change the weights."""

    def train_step(self, batch: Any, targets: Any) -> None:
        """All of a step."""

    def infer(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, C + 1] and boxes [B, Q, 4], without gradients."""

    def detections(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Scores, labels and boxes in pixels of each image."""

    def panoptic(self, batch: Any, size: tuple[int, int]) -> list[Any]:
        """From a batch of pictures of one size to their segments, without gradients."""


def build_peer(side: str, settings: Settings, masks: bool = False) -> Peer:
    """The peer that goes by a name: ours, reference or hf; with `masks` a panoptic segmenter."""
    if side == "ours":
        from benchmarks.peers.ours import Ours

        return Ours(settings, masks)
    if side == "reference":
        from benchmarks.peers.plain import Plain

        return Plain(settings, masks)
    if side == "hf":
        from benchmarks.peers.hf import Transformers

        return Transformers(settings, masks)
    raise ValueError(f"{side!r} is none of ours, reference, hf")
