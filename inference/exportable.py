"""A trained model as one function of tensors, the form in which it leaves PyTorch.

Shapes: B batch, Q queries, C classes, H W of the (padded) images, h w of the masks, a quarter of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.postprocess import scored_boxes
from models.segmentation import DETRsegm
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

AXES: dict[str, dict[int, str]] = {
    "images": {0: "batch", 2: "height", 3: "width"},
    "mask": {0: "batch", 1: "height", 2: "width"},
    "sizes": {0: "batch"},
}
"""Names of the axes that may have any length, by input."""


class Exportable(nn.Module):
    """A copy of a model, on the CPU and in evaluation mode, whose inputs and outputs are tensors alone.

    Args:
        model: DETR or DETRsegm.
        postprocess: give scores, labels and boxes in pixels in place of logits and relative boxes.
    """

    def __init__(self, model: nn.Module, postprocess: bool = False):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        self.masks = isinstance(model, DETRsegm)
        self.postprocess = postprocess
        detector = self.model.detr if self.masks else self.model
        detector.aux_loss = False  # type: ignore[assignment, union-attr]
        self.eval()

    @property
    def output_names(self) -> list[str]:
        """The keys of what forward gives, in their order."""
        names = ["scores", "labels", "boxes"] if self.postprocess else ["pred_logits", "pred_boxes"]
        return names + ["pred_masks"] * self.masks

    def forward(
        self, images: Tensor, mask: Tensor | None = None, sizes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Detect.

        Args:
            images: [B, 3, H, W], normalised with ImageNet's mean and deviation, zero where padded.
            mask: bool [B, H, W], True where padded; None: nothing is.
            sizes: int64 (height, width) [B, 2] in which boxes are wanted, with `postprocess` alone.

        Returns:
            pred_logits [B, Q, C + 1] and pred_boxes [B, Q, 4] as DETR gives them; or with `postprocess`
            scores [B, Q], labels [B, Q] and boxes [B, Q, 4], xyxy in pixels, as PostProcess does. Of a mask
            model also pred_masks [B, Q, h, w], logits that cover the padded image.
        """
        if mask is None:
            mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        found = self.model(NestedTensor(images, mask))
        out: dict[str, Tensor] = {}
        if self.postprocess:
            assert sizes is not None
            scores, labels, boxes = scored_boxes(found["pred_logits"], found["pred_boxes"], sizes)
            out["scores"], out["labels"], out["boxes"] = scores, labels, boxes
        else:
            out["pred_logits"], out["pred_boxes"] = found["pred_logits"], found["pred_boxes"]
        if self.masks:
            out["pred_masks"] = found["pred_masks"]
        return out


def example_inputs(
    images: Sequence[tuple[int, int]], with_mask: bool, with_sizes: bool, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of forward by name, in its order: smooth random images.

    Args:
        images: (height, width) of each; without `with_mask` all the same.
        with_mask: give the mask of their padding.
        with_sizes: give sizes in which boxes are wanted, which are not the images' own.
        seed: of the random numbers; torch's own are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for size in images:
        coarse = torch.randn(1, 3, 6, 6, generator=generator)
        picture = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
        pictures.append(picture + 0.2 * torch.randn(3, *size, generator=generator))
    tensors, mask = nested_tensor_from_tensor_list(pictures).decompose()
    inputs = {"images": tensors}
    if with_mask:
        inputs["mask"] = mask
    if with_sizes:
        inputs["sizes"] = torch.randint(100, 2000, (len(images), 2), generator=generator)
    return inputs
