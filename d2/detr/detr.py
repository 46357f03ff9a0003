"""DETR as a meta-architecture of detectron2.

Shapes: B batch, Q queries, C classes, N objects of an image, H W image, h w masks.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.functional import pad

from datasets.coco import convert_coco_poly_to_mask
from models.query_groups import QueryGroups
from models.segmentation import DETRsegm, PostProcessPanoptic
from util.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from util.errors import UserError

from .backbone import MaskedBackbone
from .build import build_criterion, build_detector, load_frozen_weights
from .masks import full_masks, roi_masks, segments_of, things_of

__all__ = ["Detr", "MaskedBackbone"]


@META_ARCH_REGISTRY.register()
class Detr(nn.Module):
    """DETR: boxes; masks with `MODEL.MASK_ON`; things and stuff, and with masks their maps, with
    `MODEL.DETR.PANOPTIC_ON`.

    Args:
        cfg: detectron2's configuration with the keys of add_detr_config.

    Raises:
        UserError: keys of the configuration contradict each other, or FROZEN_WEIGHTS do not fit.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cfg: Any):
        super().__init__()
        settings = cfg.MODEL.DETR
        if settings.MASK_FORMAT not in ("roi32", "full"):
            raise UserError(f"MODEL.DETR.MASK_FORMAT {settings.MASK_FORMAT}: neither roi32 nor full")
        if settings.QUERY_GROUPS < 1:
            raise UserError(f"MODEL.DETR.QUERY_GROUPS {settings.QUERY_GROUPS}: at least 1")
        if settings.QUERY_GROUPS > 1 and settings.FROZEN_WEIGHTS:
            raise UserError(
                "MODEL.DETR.QUERY_GROUPS trains a detector, and FROZEN_WEIGHTS freezes it: set one of them"
            )
        self.num_classes = settings.NUM_CLASSES
        self.mask_on = cfg.MODEL.MASK_ON
        self.mask_format = settings.MASK_FORMAT
        self.panoptic_on = settings.PANOPTIC_ON
        masked_backbone = MaskedBackbone(cfg)
        self.size_divisibility = masked_backbone.backbone.size_divisibility
        detector = build_detector(cfg, masked_backbone)
        self.detr: nn.Module = detector
        if self.mask_on:
            if len(masked_backbone.channels) < 3:
                raise UserError(
                    "MODEL.MASK_ON needs feature maps of three stages at least, and the backbone gives "
                    f"{len(masked_backbone.channels)}: set MODEL.RESNETS.OUT_FEATURES "
                    "\"['res2','res3','res4','res5']\""
                )
            if settings.FROZEN_WEIGHTS:
                load_frozen_weights(detector, settings.FROZEN_WEIGHTS)
            self.detr = DETRsegm(detector, freeze_detr=bool(settings.FROZEN_WEIGHTS))
        if self.panoptic_on:
            self.is_thing = things_of(cfg)
            self.panoptic = PostProcessPanoptic(self.is_thing, settings.PANOPTIC_THRESHOLD)
        self.criterion = build_criterion(cfg)
        self.query_groups = settings.QUERY_GROUPS
        self.seed = cfg.SEED
        if self.query_groups > 1:
            # Of QueryGroups the table alone: the model that it wraps has its place, self.detr, already.
            self.other_queries = QueryGroups(self.detr, self.query_groups, self.seed).others
        # Not in the state_dict: a checkpoint holds weights, the configuration how pixels are normalised.
        for name, values in (("pixel_mean", cfg.MODEL.PIXEL_MEAN), ("pixel_std", cfg.MODEL.PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.to(torch.device(cfg.MODEL.DEVICE))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As torch's; groups of queries that a trained detector lacks start as noisy copies of its own."""
        result = super().load_state_dict(state_dict, *args, **options)
        is_trained = any(name.endswith("query_embed.weight") for name in state_dict)
        if self.query_groups > 1 and is_trained and "other_queries.weight" not in state_dict:
            copies = QueryGroups(self.detr, self.query_groups, self.seed, starts_trained=True).others
            self.other_queries.load_state_dict(copies.state_dict())
        return result

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: for each image a dict with `image` [3, H, W], in INPUT.FORMAT, 0 to 255; in
                training `instances`, as DetrDatasetMapper gives them; otherwise perhaps `height` and
                `width`, the size in which results are wanted.

        Returns:
            In training a dict of losses, weighted, whose sum is to be minimised. What is for logging alone,
            `class_error` and `cardinality_error` of each layer, goes to detectron2's event storage.
            Otherwise for each image a dict of
            `instances`: pred_boxes, scores, pred_classes, and with MASK_ON pred_masks, bool [N, H, W];
            `panoptic_seg`, with PANOPTIC_ON and MASK_ON: the map of ids, int32 [H, W], 0 where no segment
            is, and for each segment a dict of `id`, `isthing`, `category_id` (contiguous) and `area`.
            With PANOPTIC_ON the instances are those of things alone.
        """
        images = self.preprocess_image(batched_inputs)
        if self.training:
            return self.losses(images, batched_inputs)
        output = self.detr(images)
        canvas = images.tensor.shape[-2:]
        mask_pred = output["pred_masks"] if self.mask_on else None
        found = self.inference(
            output["pred_logits"], output["pred_boxes"], mask_pred, images.image_sizes, canvas
        )
        sizes = [
            (record.get("height", size[0]), record.get("width", size[1]))
            for record, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        results = []
        for instances, size in zip(found, sizes, strict=True):
            seen = instances.image_size
            instances = detector_postprocess(instances, *size)
            if self.panoptic_on:
                things = [self.is_thing.get(i, False) for i in instances.pred_classes.tolist()]
                instances = instances[torch.tensor(things, dtype=torch.bool, device=self.device)]
            if instances.has("mask_logits"):
                instances.pred_masks = full_masks(instances.mask_logits, canvas, seen, size)
                instances.remove("mask_logits")
            results.append({"instances": instances})
        if self.panoptic_on and self.mask_on:
            maps = self.panoptic(output, images.image_sizes, sizes)
            for result, panoptic_map in zip(results, maps, strict=True):
                result["panoptic_seg"] = segments_of(panoptic_map, self.device)
        return results

    def losses(self, images: ImageList, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The weighted losses of a batch; see forward."""
        targets = self.prepare_targets([record["instances"].to(self.device) for record in batched_inputs])
        options = {}
        if self.query_groups > 1:
            by_group = self.other_queries.weight.unflatten(0, (self.query_groups - 1, -1))  # [K - 1, Q, D]
            options["other_queries"] = by_group
        select = None
        if self.mask_on:
            # Masks cover the padded batch, and so do those that they are compared with.
            height, width = images.tensor.shape[-2:]
            for target in targets:
                h, w = target["masks"].shape[-2:]
                target["masks"] = pad(target["masks"], (0, width - w, 0, height - h))
            # Only queries that are matched with an object get a mask, unless the criterion is user-defined.
            select = self.criterion.matched_queries(targets)
        if select is None:
            losses = self.criterion(self.detr(images, **options), targets)
        else:
            outputs = self.detr(images, select=select, **options)
            losses = self.criterion(outputs, targets, matches=select.matches)
        for_logging = {name: value for name, value in losses.items() if not name.startswith("loss")}
        numbers = torch.stack([value.detach().float() for value in for_logging.values()])
        with contextlib.suppress(AssertionError):  # no trainer keeps an event storage
            get_event_storage().put_scalars(**dict(zip(for_logging, numbers.tolist(), strict=True)))
        weights = self.criterion.weight_dict
        return {k: value * weights.get(k, 1.0) for k, value in losses.items() if k not in for_logging}

    def prepare_targets(self, targets: Sequence[Instances]) -> list[dict[str, Tensor]]:
        """Instances of a batch -> what the criterion reads.

        Returns:
            For each image `labels` [N], `boxes` [N, 4] (cxcywh in [0, 1]), and with MASK_ON `masks`
            [N, H, W], 0 or 1.
        """
        prepared = []
        for instances in targets:
            height, width = instances.image_size
            boxes = instances.gt_boxes.tensor
            scale = torch.tensor([width, height, width, height], dtype=torch.float, device=boxes.device)
            target = {"labels": instances.gt_classes, "boxes": box_xyxy_to_cxcywh(boxes / scale)}
            if self.mask_on:
                if not len(instances):
                    masks = torch.zeros((0, height, width), dtype=torch.uint8)
                elif isinstance(instances.gt_masks, BitMasks):
                    masks = instances.gt_masks.tensor
                else:
                    masks = convert_coco_poly_to_mask(instances.gt_masks.polygons, height, width)
                target["masks"] = masks.to(self.device)
            prepared.append(target)
        return prepared

    def inference(
        self,
        box_cls: Tensor,
        box_pred: Tensor,
        mask_pred: Tensor | None,
        image_sizes: Sequence[tuple[int, int]],
        canvas: Sequence[int] | None = None,
    ) -> list[Instances]:
        """A detection for each query, in the size of the image as the model saw it.

        Args:
            box_cls: logits [B, Q, C + 1].
            box_pred: cxcywh in [0, 1], [B, Q, 4].
            mask_pred: logits [B, Q, h, w], or None without masks.
            image_sizes: (height, width) of each image without its padding.
            canvas: (height, width) of the padded batch, which masks cover; None: the largest sizes.

        Returns:
            For each image pred_boxes, scores and pred_classes, the most probable class other than "no
            object"; and with masks either pred_masks, bool [Q, 1, 32, 32] within the boxes, or, in
            MASK_FORMAT full, mask_logits [Q, h, w].
        """
        canvas = canvas or [max(sides) for sides in zip(*image_sizes, strict=True)]
        all_scores, all_classes = box_cls.float().softmax(-1)[..., :-1].max(-1)  # [B, Q]
        results = []
        for i, size in enumerate(image_sizes):
            result = Instances(tuple(size))
            result.pred_boxes = Boxes(box_cxcywh_to_xyxy(box_pred[i].float()))
            result.pred_boxes.scale(scale_x=size[1], scale_y=size[0])
            if mask_pred is not None and self.mask_format == "full":
                result.mask_logits = mask_pred[i]
            elif mask_pred is not None:
                result.pred_masks = roi_masks(mask_pred[i], canvas, size, result.pred_boxes.tensor)
            result.scores = all_scores[i]
            result.pred_classes = all_classes[i]
            results.append(result)
        return results

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise images and pad them to one canvas, [B, 3, H, W]."""
        images = [self.normalizer(record["image"].to(self.device)) for record in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def normalizer(self, image: Tensor) -> Tensor:
        """An image [3, H, W], 0 to 255, in units of PIXEL_STD from PIXEL_MEAN."""
        return (image - self.pixel_mean) / self.pixel_std
