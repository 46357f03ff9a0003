"""DETR with masks: a detector, a head that draws what each query found, and what is made of it (paper, 4.4).

Shapes: B batch, Q queries, N queries of all images that get a mask, D width, h w the masks' size, which is a
quarter of the canvas' (the padded batch's).
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

from .losses import flat_index

# The losses are imported from here by users of the published code, and replaced here (models/criterion.py).
from .mask_head import MaskHeadSmallConv, MHAttentionMap
from .mask_losses import dice_loss, sigmoid_focal_loss
from .mask_sampling import resampled
from .segment_maps import logit, panoptic_maps, panoptic_queries
from .selection import Outputs, Selection

__all__ = [
    "DETRsegm",
    "MHAttentionMap",
    "MaskHeadSmallConv",
    "PostProcessPanoptic",
    "PostProcessSegm",
    "dice_loss",
    "sigmoid_focal_loss",
]

FPN_STAGES = 3  # the head grows over the backbone's maps at strides 16, 8 and 4
CHANNELS = [256, 512, 1024, 2048]  # of the published ResNets' stages, where a backbone does not tell its own
MASKS_AT_ONCE = 16  # so many are enlarged together; all of an image's at once would be large


class DETRsegm(nn.Module):
    """A DETR that also gives masks.

    Args:
        detr: the detector. Its backbone gives every stage's map.
        freeze_detr: train the mask head alone. The statistics of the backbone's norms stay as they are.

    Raises:
        ValueError: the backbone gives one map alone, or has too few stages; or the widths do not fit (see
            MaskHeadSmallConv).
    """

    def __init__(self, detr: Any, freeze_detr: bool = False):
        super().__init__()
        self.detr = detr
        self.freeze_detr = freeze_detr
        if freeze_detr:
            detr.requires_grad_(False)
        body = detr.backbone[0]
        if not getattr(body, "return_interm_layers", True):
            raise ValueError("masks need the maps of all stages: a backbone with return_interm_layers=True")
        channels = getattr(body, "channels", CHANNELS)
        if len(channels) < FPN_STAGES:
            raise ValueError(
                f"masks need a backbone of at least {FPN_STAGES} stages, and this one has {len(channels)}"
            )
        width, heads = detr.transformer.d_model, detr.transformer.nhead
        self.bbox_attention = MHAttentionMap(width, width, heads)  # type: ignore[arg-type]
        fpn_widths = channels[FPN_STAGES - 1 :: -1]  # coarse to fine
        self.mask_head = MaskHeadSmallConv(width + heads, fpn_widths, width)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "DETRsegm":
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.freeze_detr:
            self.detr.backbone.eval()
        return self

    def forward(
        self, samples: NestedTensor, select: Any | None = None, other_queries: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Detect and draw.

        Args:
            samples: as DETR takes them.
            select: a function of the outputs so far (`pred_logits`, `pred_boxes`, `aux_outputs`) that gives
                for each image the queries to draw, int64 [n]; models.selection holds some. None: all.
                Where nothing is selected, the head runs on an empty batch, so that its gradients are zero
                rather than absent, and DistributedDataParallel's processes stay in step.
            other_queries: as DETR takes them; the first group alone gets masks.

        Returns:
            What DETR gives, and
            pred_masks: logits; [B, Q, h, w], or with `select` [N, h, w], those of all selected queries, the
                first image's first.
            selected: with `select`, what it gave.
        """
        if isinstance(samples, (list, Tensor)):
            samples = nested_tensor_from_tensor_list(samples)
        detr = self.detr
        features, positions = detr.backbone(samples)
        last, mask = features[-1].decompose()
        assert mask is not None
        src = detr.input_proj(last)  # [B, D, h, w]
        queries = detr.query_embed.weight  # [Q, D]
        if other_queries is not None:
            queries = torch.cat([queries[None], other_queries])  # [K, Q, D]
        decoded = detr.transformer(src, mask, queries, positions[-1])
        hs, memory = decoded[0], decoded[1]  # [L, B, Q, D], of K groups [L, K * B, Q, D]; [B, D, h, w]
        if other_queries is None:
            logits, boxes = detr.class_embed(hs), detr.bbox_embed(hs).sigmoid()
            out = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
            if detr.aux_loss:
                out["aux_outputs"] = detr._set_aux_loss(logits, boxes)
        else:
            out = detr._predict_groups(hs, src.shape[0])
            hs = hs[:, : src.shape[0]]

        attention = self.bbox_attention(hs[-1], memory, mask=mask)  # [B, Q, n, h, w]
        maps = [features[i].tensors for i in (2, 1, 0)]  # coarse to fine
        if select is not None:
            return self._draw_selected(out, select, src, attention, maps)
        masks = self.mask_head(src, attention, maps)
        out["pred_masks"] = masks.view(attention.shape[:2] + masks.shape[-2:])  # [B, Q, h, w]
        return out

    @torch.jit.unused
    def _draw_selected(
        self, out: dict[str, Tensor], select: Any, src: Tensor, attention: Tensor, maps: list[Tensor]
    ) -> dict[str, Tensor]:
        selected = select(out)
        image, query = flat_index(selected, attention.device)
        masks = self.mask_head(src, attention[image, query], maps, image)  # [N, 1, h, w]
        return {**out, "selected": selected, "pred_masks": masks[:, 0]}


class PostProcessSegm(nn.Module):
    """Adds each query's mask, at the image's original size, to what PostProcess gives.

    Args:
        threshold: least probability of a pixel that belongs to a mask.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    @torch.no_grad()
    def forward(
        self,
        results: Sequence[Mapping[str, Tensor]],
        outputs: Outputs,
        orig_target_sizes: Any,
        max_target_sizes: Any,
    ) -> list[dict[str, Tensor]]:
        """Add masks to the results of a batch.

        Args:
            results: what PostProcess gives.
            outputs: `pred_masks` [B, Q, h, w], or those of a selection.
            orig_target_sizes: (height, width) of the original images, [B, 2].
            max_target_sizes: those of the images as the model saw them, without padding, [B, 2].

        Returns:
            The results, and `masks` uint8 [Q, 1, height, width], 0 or 1, on the host. With a selection, all
            entries are those of the selected queries alone.
        """
        drawn = outputs.get("selected")
        if drawn is None:
            queries = [torch.arange(outputs["pred_logits"].shape[1])] * len(results)
        else:
            queries = drawn
            pairs = zip(results, queries, strict=True)
            results = [{k: v[chosen.to(v.device)] for k, v in result.items()} for result, chosen in pairs]
        samples = resampled(outputs, queries, max_target_sizes, orig_target_sizes)
        with_masks = []
        for result, (masks, to_size) in zip(results, samples, strict=True):
            parts = [to_size(part.float()) > logit(self.threshold) for part in masks.split(MASKS_AT_ONCE)]
            with_masks.append({**result, "masks": torch.cat(parts)[:, None].to(torch.uint8).cpu()})
        return with_masks


class PostProcessPanoptic(nn.Module):
    """Turns outputs into the panoptic format of COCO: a picture of ids, and what each id is.

    Args:
        is_thing_map: category id -> whether it is a thing. Queries of other classes make no segment.
        threshold: least probability of a segment's class.
        merge_always: as in panoptic_maps; by default as published.
    """

    def __init__(self, is_thing_map: Mapping[int, bool], threshold: float = 0.85, merge_always: bool = False):
        super().__init__()
        self.is_thing_map = dict(is_thing_map)
        self.threshold = threshold
        self.merge_always = merge_always

    def select(self, outputs: Outputs) -> Selection:
        """The queries whose masks this reads, for `DETRsegm.forward(samples, select=...)`."""
        return panoptic_queries(outputs, self.is_thing_map, self.threshold)[0]

    def forward(
        self, outputs: Outputs, processed_sizes: Any, target_sizes: Any = None
    ) -> list[dict[str, Any]]:
        """Post-process a batch.

        Args:
            outputs: `pred_logits` [B, Q, C + 1] and `pred_masks`, [B, Q, h, w] or those of a selection.
            processed_sizes: (height, width) of each image as the model saw it, without padding: [B, 2] or
                pairs.
            target_sizes: the wanted sizes; None: the processed ones.

        Returns:
            For each image `png_string`, a PNG file whose colours are ids (R + 256 G + 65536 B), and
            `segments_info`, for each id a dict of `id`, `category_id`, `isthing` and `area` in pixels.
        """
        maps = panoptic_maps(
            outputs, self.is_thing_map, processed_sizes, target_sizes, self.threshold, self.merge_always
        )
        results = []
        for ids, segments in maps:
            channels = (
                ids.to(torch.int32).cpu().contiguous().view(torch.uint8).unflatten(-1, (-1, 4))[..., :3]
            )
            with io.BytesIO() as file:
                Image.fromarray(channels.numpy().copy()).save(file, format="PNG")
                results.append({"png_string": file.getvalue(), "segments_info": segments})
        return results
