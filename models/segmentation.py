"""DETR with masks: a detector, and a head that draws what each query found (paper, section 4.4).

Shapes: B batch, Q queries, N queries of all images that get a mask, D width, h w the masks' size, which is a
quarter of the canvas' (the padded batch's).
"""

from typing import Any

import torch
from torch import Tensor, nn

from util.nested_tensor import NestedTensor, may_be_padded, nested_tensor_from_tensor_list

# The losses and post-processors are imported from here by users of the published code.
from .detected import Detected
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

    def forward(self, samples: NestedTensor, select: Any = None) -> dict[str, Tensor]:
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
            canvas: (height, width) in pixels of the padded batch, which the masks cover; None where it is
                known that no image is padded.
        """
        if isinstance(samples, (list, Tensor)):
            samples = nested_tensor_from_tensor_list(samples)
        out, detected = self.detr.detect(samples)
        attention = self.bbox_attention(detected.hs, detected.memory, mask=detected.mask)  # [B, Q, n, ., .]
        if not torch.jit.is_scripting():
            canvas = tuple(samples.tensors.shape[-2:]) if may_be_padded(samples) else None
            out["canvas"] = canvas  # type: ignore[assignment]
            if select is not None:
                selected = out["selected"] = select(out)
                image, query = flat_index(selected, attention.device)
                out["pred_masks"] = self._draw(detected, attention[image, query], image)[:, 0]  # [N, h, w]
                return out
        masks = self._draw(detected, attention, None)
        out["pred_masks"] = masks.view(attention.shape[:2] + masks.shape[-2:])  # [B, Q, h, w]
        return out

    def _draw(self, detected: Detected, attention: Tensor, image: Tensor | None) -> Tensor:
        """Attention maps -> mask logits [N, 1, h, w]."""
        maps = [detected.features[i].tensors for i in (2, 1, 0)]
        return self.mask_head(detected.src, attention, maps, image)


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
