"""DETR itself: a backbone, a transformer, and two heads that read boxes off its queries (paper, 3.2).

Shapes: B batch, Q queries, C classes, D width, L decoder layers, h w feature map.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from util.amp import full_precision
from util.nested_tensor import NestedTensor, may_be_padded, nested_tensor_from_tensor_list

# SetCriterion and PostProcess are imported from here by users of the published code.
from .criterion import SetCriterion
from .detected import Detected
from .pointwise import PointwiseConv2d
from .postprocess import PostProcess
from .transformer import Transformer

__all__ = ["DETR", "MLP", "PostProcess", "SetCriterion", "build"]


class DETR(nn.Module):
    """Detects at most Q objects in an image, all at once.

    Args:
        backbone: a Joiner: features and their position embeddings.
        transformer: a Transformer; its d_model is D.
        num_classes: highest category id + 1 (COCO: 91). The heads add one class, "no object".
        num_queries: Q, the most objects that can be found in an image.
        aux_loss: in training, also give what each earlier decoder layer predicts.
    """

    def __init__(
        self,
        backbone: nn.Module,
        transformer: nn.Module,
        num_classes: int,
        num_queries: int,
        aux_loss: bool = False,
    ):
        super().__init__()
        self.num_queries = num_queries
        self.transformer = transformer
        width: int = transformer.d_model  # type: ignore[assignment]
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.bbox_embed = MLP(width, width, 4, 3)
        self.query_embed = nn.Embedding(num_queries, width)
        self.input_proj = PointwiseConv2d(backbone.num_channels, width)  # type: ignore[arg-type]
        self.backbone = backbone
        self.aux_loss = aux_loss

    def forward(self, samples: NestedTensor) -> dict[str, Tensor]:
        """Detect.

        Args:
            samples: a NestedTensor, a tensor [B, 3, H, W] or a list of images [3, h, w], normalised with
                ImageNet's mean and deviation.

        Returns:
            pred_logits: [B, Q, C + 1], the last class is "no object".
            pred_boxes: [B, Q, 4], cxcywh in [0, 1] of the unpadded image.
            aux_outputs: with aux_loss, a list of L - 1 dicts of the two above, first layer first.
        """
        if isinstance(samples, (list, Tensor)):
            samples = nested_tensor_from_tensor_list(samples)
        return self.detect(samples)[0]

    def detect(self, samples: NestedTensor) -> tuple[dict[str, Tensor], Detected]:
        """What `forward` gives, together with what a mask head needs of how it came about."""
        features, pos = self.backbone(samples)
        last = features[-1]
        mask = last.mask if self._needs_mask(last) else None
        src = self.input_proj(last.tensors)  # [B, D, h, w]
        # [L, B, Q, D], [B, D, h, w], and whatever else a transformer of a user's own may give
        decoded = self.transformer(src, mask, self.query_embed.weight, pos[-1])
        hs, memory = decoded[0], decoded[1]
        logits, boxes = self._read_off(hs)  # [L, B, Q, C + 1], [L, B, Q, 4]
        out = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if self.aux_loss:
            out["aux_outputs"] = self._earlier_layers(logits, boxes)
        return out, Detected(features, src, mask, hs[-1], memory)

    def _needs_mask(self, last: NestedTensor) -> bool:
        """No padding, no mask: attention is faster without. A transformer of a user's own always gets one."""
        if not torch.jit.is_scripting():
            return may_be_padded(last) or type(self.transformer).forward is not Transformer.forward
        return last.padded

    def _read_off(self, hs: Tensor) -> tuple[Tensor, Tensor]:
        """The heads: [L, B, Q, D] -> logits, boxes. In float32 under autocast too: boxes need the digits."""
        if not torch.jit.is_scripting():
            hs, precision = full_precision(hs)
            with precision:
                return self.class_embed(hs), self.bbox_embed(hs).sigmoid()
        return self.class_embed(hs), self.bbox_embed(hs).sigmoid()

    @torch.jit.unused
    def _earlier_layers(self, logits, boxes):  # unannotated: TorchScript has no type for it
        return [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], boxes[:-1], strict=True)]


def build(args: Any) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    """`models.build_model`, by the name that forks of the published code import from here."""
    from . import build_model

    return build_model(args)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        self.num_layers = num_layers
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """[..., input_dim] -> [..., output_dim]."""
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == self.num_layers - 1 else relu(layer(x))
        return x
