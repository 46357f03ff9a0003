"""transformers' DetrForObjectDetection and DetrForSegmentation, with random weights, offline."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
import torchvision.transforms.functional as F
from torch import Tensor

from benchmarks.peers import CERTAIN, CONFIDENT
from benchmarks.peers.confident import make_confident, spread_queries
from benchmarks.reference import engine
from benchmarks.reference.data import MEAN, STD
from benchmarks.reference.detector import pad_batch
from benchmarks.settings import Settings
from benchmarks.workloads import byte_images
from util.errors import UserError

Batch = tuple[Tensor, Tensor]
TRAINED_STAGES = (1, 2, 3)  # of four, counted from 0, as published


def _transformers() -> Any:
    """The library. It takes this project's folder `datasets` for the library of that name.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers.utils.import_utils as utils
    except ImportError as error:
        raise UserError("--against hf: pip install -r benchmarks/requirements.txt") from error
    if "transformers.models.detr.modeling_detr" not in sys.modules:
        utils.is_datasets_available = lambda: False
    import transformers

    return transformers


class Transformers:
    """Always in float32, with auxiliary losses, which its own default leaves out."""

    def __init__(self, settings: Settings, masks: bool = False):
        library = _transformers()
        library.logging.set_verbosity_error()
        self.device = torch.device(settings.device)
        args = settings.flags(masks=masks)
        backbone: dict[str, Any] = {
            "out_features": ["stage1", "stage2", "stage3", "stage4"] if masks else ["stage4"]
        }
        if settings.tiny:  # ResNet-18
            backbone |= {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
        config = library.DetrConfig(
            use_timm_backbone=False,
            backbone_config=library.ResNetConfig(**backbone),
            num_labels=args.num_classes,
            num_queries=args.num_queries,
            d_model=args.hidden_dim,
            encoder_layers=args.enc_layers,
            decoder_layers=args.dec_layers,
            encoder_ffn_dim=args.dim_feedforward,
            decoder_ffn_dim=args.dim_feedforward,
            encoder_attention_heads=args.nheads,
            decoder_attention_heads=args.nheads,
            dropout=args.dropout,
            auxiliary_loss=True,
        )
        torch.manual_seed(0)
        kind = library.DetrForSegmentation if masks else library.DetrForObjectDetection
        self.model = kind(config).to(self.device)
        for name, parameter in self.model.named_parameters():
            # The library looks for timm's names, and freezes all of a ResNet of its own.
            if "backbone" in name:
                parameter.requires_grad_(any(f"stages.{stage}." in name for stage in TRAINED_STAGES))
        self.processor = library.DetrImageProcessor()
        self.optimizer = engine.build_optimizer(self.model)
        if masks:
            batch = self.batch(byte_images(1, *settings.image_size(480, 640)))
            head = self.model.detr.class_labels_classifier
            embedding = self.model.detr.model.query_position_embeddings.weight
            spread_queries(embedding, self.model.mask_head.conv1.conv.weight, args.nheads)
            queries = min(CONFIDENT, args.num_queries // 2)
            make_confident(head, lambda: self.model.eval()(*batch), queries, CERTAIN)

    def batch(self, images: list[Tensor]) -> Batch:
        """See Peer."""
        pixels, mask = pad_batch([F.normalize(image / 255, MEAN, STD) for image in images])
        return pixels.to(self.device), (~mask).long().to(self.device)

    def objects(self, targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """See Peer."""
        names = {"labels": "class_labels"}
        return [{names.get(k, k): v.to(self.device) for k, v in target.items()} for target in targets]

    def forward(self, batch: Batch) -> Any:
        """See Peer; without labels the library predicts from the last layer alone."""
        return self.model.train()(*batch)

    def loss(self, outputs: Any, targets: list[dict[str, Tensor]]) -> Tensor:
        """Not to be had: the library computes it inside its forward.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("transformers computes the loss inside its forward")

    def criterion(self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """See Peer."""
        return self.model.loss_function(
            logits[-1], targets, self.device, boxes[-1], self.model.config, logits, boxes
        )[0]

    def update(self) -> None:
        """See Peer."""
        engine.update(self.model, self.optimizer)

    def train_step(self, batch: Batch, targets: list[dict[str, Tensor]]) -> None:
        """See Peer."""
        outputs = self.model.train()(*batch, labels=targets)
        self.optimizer.zero_grad()
        outputs.loss.backward()
        self.update()

    @torch.no_grad()
    def infer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See Peer."""
        outputs = self.model.eval()(*batch)
        return outputs.logits, outputs.pred_boxes

    def detections(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """See Peer."""
        outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        return self.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)

    @torch.no_grad()
    def panoptic(self, batch: Batch, size: tuple[int, int]) -> list[dict[str, Any]]:
        """See Peer; `segmentation` and `segments_info` of each picture."""
        outputs = self.model.eval()(*batch)
        stuff = set(range(91, self.model.config.num_labels))
        return self.processor.post_process_panoptic_segmentation(
            outputs, threshold=0.85, label_ids_to_fuse=stuff, target_sizes=[size] * len(batch[0])
        )
