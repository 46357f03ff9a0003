"""DETR itself: backbone, transformer, and two heads that predict class and box of each query (paper, 3.2).

Shapes: B batch, Q queries, C classes, D width, L decoder layers, h w feature map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.coco_names import coco_is_thing, default_num_classes
from util.flags import completed
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

from .backbone import build_backbone
from .criterion import SetCriterion
from .matcher import build_matcher
from .postprocess import PostProcess
from .transformer import build_transformer

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
        self.input_proj = nn.Conv2d(backbone.num_channels, width, kernel_size=1)  # type: ignore[arg-type]
        self.backbone = backbone
        self.aux_loss = aux_loss

    def forward(self, samples: NestedTensor, other_queries: Tensor | None = None) -> dict[str, Tensor]:
        """Detect.

        Args:
            samples: a NestedTensor, a tensor [B, 3, H, W] or a list of images [3, h, w], normalised with
                ImageNet's mean and deviation.
            other_queries: in training, further groups of queries, [K - 1, Q, D]; see QueryGroups.

        Returns:
            pred_logits: [B, Q, C + 1], the last class is "no object".
            pred_boxes: [B, Q, 4], cxcywh in [0, 1] of the unpadded image.
            aux_outputs: with aux_loss, a list of L - 1 dicts of the two above, first layer first.
            group_outputs: with other queries, a list of K - 1 dicts of all the above, one for each group.
        """
        if isinstance(samples, (list, Tensor)):
            samples = nested_tensor_from_tensor_list(samples)
        features, positions = self.backbone(samples)
        src, mask = features[-1].decompose()  # [B, C, h, w], [B, h, w]
        assert mask is not None
        queries = self.query_embed.weight  # [Q, D]
        if other_queries is not None:
            queries = torch.cat([queries[None], other_queries])  # [K, Q, D]
        decoded = self.transformer(self.input_proj(src), mask, queries, positions[-1])
        hs = decoded[0]  # [L, B, Q, D]; of K groups [L, K * B, Q, D]
        if other_queries is None:
            return self._predict(hs)
        return self._predict_groups(hs, src.shape[0])

    def _predict(self, hs: Tensor) -> dict[str, Tensor]:
        """What the heads read off decoded queries, [L, B, Q, D]."""
        logits, boxes = self.class_embed(hs), self.bbox_embed(hs).sigmoid()  # [L, B, Q, C + 1], [L, B, Q, 4]
        out = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if self.aux_loss:
            out["aux_outputs"] = self._set_aux_loss(logits, boxes)
        return out

    @torch.jit.unused
    def _predict_groups(self, hs: Tensor, batch: int) -> dict[str, Tensor]:
        """The same of K groups, [L, K * B, Q, D]."""
        first, *others = (self._predict(group) for group in hs.split(batch, dim=1))
        return {**first, "group_outputs": others}  # type: ignore[dict-item]

    @torch.jit.unused
    def _set_aux_loss(self, outputs_class, outputs_coord):  # unannotated: TorchScript has no type for it
        """What earlier layers predict: [L, B, Q, C + 1], [L, B, Q, 4] -> L - 1 dicts; forks override it."""
        layers = zip(outputs_class[:-1], outputs_coord[:-1], strict=True)
        return [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in layers]


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Under autocast, too, they compute in float32: a box coordinate of bfloat16 has three decimal digits.
    """

    __constants__ = ["under_autocast"]

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        self.num_layers = num_layers
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def under_autocast(self) -> bool:
        """Whether autocast is on. TorchScript asks once, for its constant."""
        return any(map(torch.is_autocast_enabled, ("cuda", "cpu")))

    def forward(self, x: Tensor) -> Tensor:
        """[..., input_dim] -> [..., output_dim]."""
        if self.under_autocast:
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x.float())
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == self.num_layers - 1 else F.relu(layer(x))
        return x


def build(args: Any) -> tuple[nn.Module, SetCriterion, dict[str, nn.Module]]:
    """Build what the flags describe; no file is read but for the backbone's weights.

    An open `num_classes` is 250 for coco_panoptic and 91 otherwise. With `frozen_weights` the detector is
    frozen; whoever trains loads its weights.

    Args:
        args: what main's parser gives, or a checkpoint's `args`; flags that they lack have their defaults.

    Returns:
        The model, its criterion (on `args.device`; on the CPU where that is a GPU and there is none), and the
        post-processors by name: `bbox`, and with masks `segm`, and with coco_panoptic `panoptic`, which takes
        COCO's things for things until it is given another `is_thing_map`.

    Raises:
        ValueError: settings that do not fit together; see the modules.
    """
    args = completed(args)
    num_classes = args.num_classes or default_num_classes(args.dataset_file)
    model: nn.Module = DETR(
        build_backbone(args),
        build_transformer(args),
        num_classes=num_classes,
        num_queries=args.num_queries,
        aux_loss=args.aux_loss,
    )
    losses = ["labels", "boxes", "cardinality"]
    postprocessors: dict[str, nn.Module] = {"bbox": PostProcess()}
    if args.masks:
        # Here, so that who trains boxes loads no code of masks.
        from .segmentation import DETRsegm, PostProcessPanoptic, PostProcessSegm

        model = DETRsegm(model, freeze_detr=args.frozen_weights is not None)
        losses.append("masks")
        postprocessors["segm"] = PostProcessSegm()
        if args.dataset_file == "coco_panoptic":
            postprocessors["panoptic"] = PostProcessPanoptic(coco_is_thing(num_classes))
    criterion = SetCriterion(
        num_classes, build_matcher(args), loss_weights(args), args.eos_coef, losses, sync_ce=args.sync_ce
    )
    device = torch.device(args.device)
    if device.type != "cuda" or torch.cuda.is_available():
        criterion.to(device)
    return model, criterion, postprocessors


def loss_weights(args: Any) -> dict[str, float]:
    """Factor of each loss in the sum, by name; an earlier layer's, ending in _0, _1, ..., are the same."""
    weights = {"loss_ce": 1.0, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef}
    if args.masks:
        weights |= {"loss_mask": args.mask_loss_coef, "loss_dice": args.dice_loss_coef}
    earlier = range(args.dec_layers - 1) if args.aux_loss else ()
    return weights | {f"{name}_{i}": weight for i in earlier for name, weight in weights.items()}
