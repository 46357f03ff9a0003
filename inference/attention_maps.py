"""Where a model looks: the attention of its queries to an image, and of one place to all others.

    with listening(model) as heard:
        outputs = model(images)
    maps = heard.decoder(0, queries)                   # [k, n, h, w] of the first image
    smooth = heard.over_picture(0, maps, (480, 640))   # [k, n, 480, 640]

The last layer of each is meant: what enters its attention is kept, and the weights are computed afterwards,
of the queries or places that are asked for alone. The model's answer is the same as without a listener, bit
for bit: attention with a hook does not take torch's fused kernel, so the hook is set only while the
layer is computed a second time, for the listener alone.

A cell of the feature map is drawn at the pixel on which its receptive field is centred. Padded convolutions,
as those of a ResNet, centre cell c on pixel c · stride, not on the middle of the stride's pixels: maps drawn
there would lie half a cell too far to the right and too low.

Shapes: n heads, h w the feature map of the padded batch, k queries or places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from util.nested_tensor import NestedTensor


class Attention:
    """What entered the last attentions of a model's last forward; see `listening`."""

    def __init__(self, detr: Any):
        transformer = detr.transformer
        layer = transformer.decoder.layers[-1]
        self._decoder: nn.MultiheadAttention = layer.multihead_attn
        self._encoder: nn.MultiheadAttention | None = None
        self._heard_in: dict[nn.Module, nn.MultiheadAttention] = {layer: self._decoder}
        for layer in transformer.encoder.layers[-1:]:
            self._encoder = self._heard_in[layer] = layer.self_attn
        # Whether the backbone begins with patches that do not overlap, as ConvNeXt and Swin do.
        first = next(module for module in detr.backbone.modules() if isinstance(module, nn.Conv2d))
        self._in_middle = first.kernel_size == first.stride and not any(first.padding)
        self._inputs: dict[nn.Module, dict[str, Any]] = {}
        self._grid: tuple[int, int] = (0, 0)
        self._batch: NestedTensor | None = None

    def hooks(self, detr: Any) -> list[Any]:
        """Begin to hear -> handles that end it."""

        def attention(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._inputs[module] = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs

        @torch.no_grad()
        def layer(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            handle = self._heard_in[module].register_forward_pre_hook(attention, with_kwargs=True)
            try:
                module.forward(*args, **kwargs)
            finally:
                handle.remove()

        def transformer(module: nn.Module, args: tuple) -> None:
            self._grid = args[0].shape[-2], args[0].shape[-1]

        def backbone(module: nn.Module, args: tuple) -> None:
            batch: NestedTensor = args[0]
            shape_alone = batch.tensors[:, :0].clone()  # a view would keep the images
            self._batch = NestedTensor(shape_alone, batch.mask)

        return [
            *(module.register_forward_pre_hook(layer, with_kwargs=True) for module in self._heard_in),
            detr.transformer.register_forward_pre_hook(transformer),
            detr.backbone.register_forward_pre_hook(backbone),
        ]

    @property
    def stride(self) -> int:
        """Pixels along each side of a cell of the map: a power of two; the last cell may be partly empty."""
        ratio = max(side / cells for side, cells in zip(self._canvas, self._grid, strict=True))
        return 2 ** math.ceil(math.log2(ratio))

    @property
    def _canvas(self) -> tuple[int, int]:
        if self._batch is None:
            raise ValueError("the model has not been called while this was listening")
        return self._batch.tensors.shape[-2], self._batch.tensors.shape[-1]

    @property
    def _first_centre(self) -> float:
        """Pixels from the border to the centre of the first cell."""
        return self.stride / 2 if self._in_middle else 0.5

    def image_size(self, image: int) -> tuple[int, int]:
        """(height, width) of an image of the batch as the model saw it, without padding."""
        canvas = self._canvas
        assert self._batch is not None
        if self._batch.mask is None:
            return canvas
        inside = ~self._batch.mask[image]
        return int(inside[:, 0].sum()), int(inside[0].sum())

    def decoder(self, image: int, queries: Sequence[int] | Tensor) -> Tensor:
        """Attention weights of some queries to one image of the batch, by head: float32 [k, n, h, w].

        Those of a query and head sum to 1 over the map; where the batch pads the image they are 0.
        """
        return self._weights(self._decoder, image, torch.as_tensor(queries, dtype=torch.int64))

    def encoder(self, image: int, points: Sequence[tuple[float, float]]) -> Tensor:
        """Attention weights, as `decoder` gives them, of the cells under some points.

        Args:
            points: (x, y), each in [0, 1) of the image's width and height.

        Raises:
            ValueError: a point outside, or a model without an encoder.
        """
        if self._encoder is None:
            raise ValueError("no self-attention of places: the model has no encoder (enc_layers is 0)")
        height, width = self.image_size(image)
        cells = []
        for x, y in points:
            if not (0 <= x < 1 and 0 <= y < 1):
                raise ValueError(f"the point ({x}, {y}) lies outside the image")
            cells.append(self._nearest_cell(y, height) * self._grid[1] + self._nearest_cell(x, width))
        return self._weights(self._encoder, image, torch.tensor(cells, dtype=torch.int64))

    def _nearest_cell(self, part: float, side: int) -> int:
        """The cell along one side whose centre is nearest to a place in [0, 1) of it."""
        last = math.ceil(side / self.stride) - 1  # later ones are padding
        return min(max(0, round((part * side - self._first_centre) / self.stride)), last)

    @torch.no_grad()
    def _weights(self, module: nn.MultiheadAttention, image: int, targets: Tensor) -> Tensor:
        if module not in self._inputs:
            raise ValueError("the model has not been called while this was listening")
        heard = self._inputs[module]
        padding = heard.get("key_padding_mask")
        one = slice(image, image + 1)
        weights = module.forward(
            heard["query"][targets.to(heard["query"].device), one],
            heard["key"][:, one],
            heard["value"][:, one],
            key_padding_mask=None if padding is None else padding[one],
            need_weights=True,
            average_attn_weights=False,
        )[1]  # [1, n, k, h * w]
        assert weights is not None
        return weights[0].transpose(0, 1).unflatten(-1, self._grid).float().cpu()

    def over_picture(self, image: int, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Maps [..., h, w] as they lie over the picture, smooth between the centres of cells: [..., *size].

        Args:
            maps: what `decoder` or `encoder` gave for it.
        """
        axes = []
        for pixels, cells, wanted in zip(self.image_size(image), self._grid, size, strict=True):
            seen = (torch.arange(wanted) + 0.5) * pixels / wanted  # the wanted pixels as the model saw them
            axes.append((2 * (seen - self._first_centre) / self.stride + 1) / cells - 1)  # the cells: -1 to 1
        rows, columns = axes
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)[None]
        flat = maps.reshape(1, -1, *self._grid)
        sampled = grid_sample(flat, places, mode="bicubic", padding_mode="border", align_corners=False)
        return sampled.clamp(min=0).reshape(*maps.shape[:-2], *size)


@contextmanager
def listening(model: nn.Module) -> Iterator[Attention]:
    """Hear what enters the last attentions of a DETR or DETRsegm, in evaluation, while the context lasts."""
    detr: Any = getattr(model, "detr", model)
    heard = Attention(detr)
    handles = heard.hooks(detr)
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
