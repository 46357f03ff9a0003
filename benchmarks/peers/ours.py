"""This project."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import CERTAIN, CONFIDENT
from benchmarks.peers.confident import make_confident, spread_queries
from benchmarks.settings import Settings
from benchmarks.workloads import byte_images
from engine import train_one_epoch
from main import build_optimizer
from models import build_model
from util.amp import Precision
from util.nested_tensor import ByteBatch, NestedTensor


class Ours:
    """The model, criterion and post-processors that main.py builds from the same flags."""

    def __init__(self, settings: Settings, masks: bool = False):
        self.settings = settings
        self.device = torch.device(settings.device)
        self.precision = Precision(settings.amp, self.device)
        self.args = settings.flags(masks=masks)
        torch.manual_seed(0)
        self.model, self.criterion_, self.postprocessors = build_model(self.args)
        self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, self.args)
        self.masks = masks
        if masks:
            self._make_confident()
        if settings.compile:
            self.model.compile(dynamic=True)

    def _make_confident(self) -> None:
        height, width = self.settings.image_size(480, 640)
        batch = self.batch(byte_images(1, height, width))
        model: Any = self.model.eval()
        spread_queries(model.detr.query_embed.weight, model.mask_head.lay1.weight, self.args.nheads)
        queries = min(CONFIDENT, self.args.num_queries // 2)
        make_confident(model.detr.class_embed, lambda: model(batch), queries, CERTAIN)

    def batch(self, images: list[Tensor]) -> NestedTensor:
        """See Peer."""
        return ByteBatch(images).to(self.device)

    def objects(self, targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """See Peer."""
        return [{name: value.to(self.device) for name, value in target.items()} for target in targets]

    def forward(self, batch: NestedTensor) -> dict[str, Any]:
        """See Peer."""
        self.model.train()
        with self.precision.autocast():
            outputs = self.model(batch)
        return self.precision.outputs(outputs)

    def loss(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> Tensor:
        """See Peer."""
        self.criterion_.train()
        losses = self.criterion_(outputs, targets)
        weights: dict[str, float] = self.criterion_.weight_dict  # type: ignore[assignment]
        return torch.stack([losses[name] * weights[name] for name in losses if name in weights]).sum()

    def criterion(self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """See Peer."""
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        return self.loss({**layers[-1], "aux_outputs": layers[:-1]}, targets)

    def update(self) -> None:
        """See Peer."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_max_norm)
        self.optimizer.step()

    def train_step(self, batch: NestedTensor, targets: list[dict[str, Tensor]]) -> None:
        """See Peer; an epoch of one step, its printed line included."""
        with contextlib.redirect_stdout(io.StringIO()):
            train_one_epoch(
                self.model,
                self.criterion_,
                [(batch, targets)],
                self.optimizer,
                self.device,
                0,
                self.args.clip_max_norm,
                precision=self.precision,
            )

    @torch.no_grad()
    def infer(self, batch: NestedTensor) -> tuple[Tensor, Tensor]:
        """See Peer."""
        self.model.eval()
        with self.precision.autocast():
            outputs = self.precision.outputs(self.model(batch))
        return outputs["pred_logits"], outputs["pred_boxes"]

    def detections(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """See Peer."""
        return self.postprocessors["bbox"]({"pred_logits": logits, "pred_boxes": boxes}, sizes)

    @torch.no_grad()
    def panoptic(self, batch: NestedTensor, size: tuple[int, int]) -> list[dict[str, Any]]:
        """See Peer; `png_string` and `segments_info` of each picture."""
        self.model.eval()
        sizes = [size] * len(batch.tensors)
        postprocess: Any = self.postprocessors["panoptic"]
        with self.precision.autocast():
            outputs = self.model(batch, select=self.precision.outside(postprocess.select))
        return postprocess(self.precision.outputs(outputs), sizes, sizes)
