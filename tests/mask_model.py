"""A small mask model, images and targets for it, and the comparison of gradients."""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

import main
from models import build_model

SMALL = (
    "--device cpu --backbone resnet18 --backbone_weights none --hidden_dim 128 --nheads 8"
    " --dim_feedforward 64 --enc_layers 1 --dec_layers 2 --num_queries 9 --dropout 0 --masks "
)
SIZES = ((64, 96), (96, 64))


def build(flags: str = "", **changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Model, criterion and post-processors, always with the same random weights."""
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(parents=[main.get_args_parser()])
    return build_model(parser.parse_args((SMALL + flags).split()), **changes)


def images(sizes: Any = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def target(count: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Objects that are their boxes: rectangles."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(count, 2, generator=generator) * 0.4 + 0.1
    centres = sides / 2 + torch.rand(count, 2, generator=generator) * (1 - sides)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask, (x, y), (w, h) in zip(masks, centres.tolist(), sides.tolist(), strict=True):
        rows = slice(int((y - h / 2) * height), int((y + h / 2) * height))
        mask[rows, int((x - w / 2) * width) : int((x + w / 2) * width)] = True
    labels = torch.randint(1, 91, (count,), generator=generator)
    return {"labels": labels, "boxes": torch.cat([centres, sides], 1), "masks": masks}


def targets(*counts: int, sizes: Any = SIZES) -> list[dict[str, Tensor]]:
    return [target(n, h, w, seed) for seed, (n, (h, w)) in enumerate(zip(counts, sizes, strict=True))]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def weighted(losses: dict[str, Tensor], criterion: Any) -> Tensor:
    return torch.stack(
        [v * criterion.weight_dict[k] for k, v in losses.items() if k in criterion.weight_dict]
    ).sum()


def assert_same_gradients(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        other = b[name]
        assert (value is None) == (other is None), name
        if name == "mask_head.lay5.bias":
            continue  # the norm after it takes each channel's mean away: its gradient is rounding alone
        if value is not None and other is not None:
            scale = float(value.abs().max()) or 1.0
            difference = float((value - other).abs().max()) / scale
            assert difference < 1e-4, f"{name}: differs by {difference} of its largest value"
