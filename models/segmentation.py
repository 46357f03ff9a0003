"""DETR with masks: a detector, and a head that draws what each query found (paper, section 4.4).

Shapes: B batch, Q queries, N queries of all images that get a mask, D width, h w the masks' size, which is a
quarter of the canvas' (the padded batch's).
"""

from typing import Any

import torch
from torch import Tensor, nn

from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

# The losses and post-processors are imported from here by users of the published code.
from .losses import dice_loss, sigmoid_focal_loss
from .mask_head import MaskHeadSmallConv, MHAttentionMap
from .postprocess import PostProcessPanoptic, PostProcessSegm
from .selection import flat_index

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
        width, heads = detr.transformer.d_model, detr.transformer.nhead
        self.bbox_attention = MHAttentionMap(width, width, heads)  # type: ignore[arg-type]
        self.mask_head = MaskHeadSmallConv(width + heads, _fpn_widths(detr.backbone), width)  # type: ignore

    def train(self, mode: bool = True) -> "DETRsegm":
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.freeze_detr:
            self.detr.backbone.eval()
        return self

    def forward(self, samples: NestedTensor, select: Any | None = None) -> dict[str, Tensor]:
        """Detect and draw.

        Args:
            samples: as DETR takes them.
            select: a function of the outputs so far (`pred_logits`, `pred_boxes`, `aux_outputs`) that gives
                for each image the queries to draw, int64 [n]; models.selection holds some. None: all.
                Where nothing is selected, the head runs on an empty batch, so that its gradients are zero
                rather than absent, and DistributedDataParallel's processes stay in step.

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
        decoded = detr.transformer(src, mask, detr.query_embed.weight, positions[-1])
        hs, memory = decoded[0], decoded[1]  # [L, B, Q, D], [B, D, h, w]
        logits, boxes = detr.class_embed(hs), detr.bbox_embed(hs).sigmoid()
        out = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if detr.aux_loss:
            out["aux_outputs"] = detr._set_aux_loss(logits, boxes)

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


def _fpn_widths(backbone: Any) -> list[int]:
    """Channels of the maps that the head grows over, coarse to fine."""
    body = backbone[0]
    if not getattr(body, "return_interm_layers", True):
        raise ValueError("masks need the maps of all stages: a backbone with return_interm_layers=True")
    channels = getattr(body, "channels", CHANNELS)
    if len(channels) < FPN_STAGES:
        raise ValueError(
            f"masks need a backbone of at least {FPN_STAGES} stages, and this one has {len(channels)}"
        )
    return channels[FPN_STAGES - 1 :: -1]
