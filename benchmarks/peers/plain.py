"""The straightforward reference of benchmarks.reference, with this project's weights."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.transforms.functional as F
from torch import Tensor

from benchmarks.peers.ours import Ours
from benchmarks.reference import criterion, engine, postprocess
from benchmarks.reference.data import MEAN, STD
from benchmarks.reference.detector import Detector, pad_batch
from benchmarks.reference.segmenter import Segmenter
from benchmarks.settings import Settings
from models.postprocess import coco_is_thing

Batch = tuple[Tensor, Tensor]


class Plain:
    """Always in float32."""

    def __init__(self, settings: Settings, masks: bool = False):
        self.device = torch.device(settings.device)
        args = settings.flags(masks=masks)
        self.model = (Segmenter if masks else Detector)(args)
        self.model.load_state_dict(
            Ours(Settings(settings.folder, tiny=settings.tiny), masks).model.state_dict()
        )
        self.model.to(self.device)
        self.optimizer = engine.build_optimizer(self.model)
        self.is_thing = coco_is_thing(args.num_classes)

    def batch(self, images: list[Tensor]) -> Batch:
        """See Peer."""
        pixels, mask = pad_batch([F.normalize(image / 255, MEAN, STD) for image in images])
        return pixels.to(self.device), mask.to(self.device)

    def objects(self, targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """See Peer."""
        return [{name: value.to(self.device) for name, value in target.items()} for target in targets]

    def forward(self, batch: Batch) -> dict[str, Any]:
        """See Peer."""
        return self.model.train()(*batch)

    def loss(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> Tensor:
        """See Peer."""
        return criterion.weighted_sum(criterion.losses(outputs, targets))

    def criterion(self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """See Peer."""
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        return self.loss({**layers[-1], "aux_outputs": layers[:-1]}, targets)

    def update(self) -> None:
        """See Peer."""
        engine.update(self.model, self.optimizer)

    def train_step(self, batch: Batch, targets: list[dict[str, Tensor]]) -> None:
        """See Peer."""
        engine.train_step(self.model.train(), self.optimizer, batch, targets)

    @torch.no_grad()
    def infer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See Peer."""
        outputs = self.model.eval()(*batch)
        return outputs["pred_logits"], outputs["pred_boxes"]

    def detections(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """See Peer."""
        return postprocess.detections({"pred_logits": logits, "pred_boxes": boxes}, sizes)

    @torch.no_grad()
    def panoptic(self, batch: Batch, size: tuple[int, int]) -> list[dict[str, Any]]:
        """See Peer; `png_string` and `segments_info` of each picture."""
        sizes = [size] * len(batch[0])
        return postprocess.panoptic(self.model.eval()(*batch), sizes, sizes, self.is_thing)
