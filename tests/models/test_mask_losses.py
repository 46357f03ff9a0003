"""The losses of masks: a few at a time or all at once, on canvases that are rounded up."""

import pytest
import torch
from torch import Tensor, nn

import models.mask_losses


def straight_mask_losses(masks: Tensor, wanted: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Both losses of all masks at once, by their formulas, divided by 3."""
    true = torch.stack(
        [nn.functional.pad(m, (0, size[1] - m.shape[1], 0, size[0] - m.shape[0])) for m in wanted]
    )
    logits = nn.functional.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    p, t = logits.sigmoid(), true.float()
    right, weight = torch.where(true, p, 1 - p), torch.where(true, 0.25, 0.75)
    focal = (-weight * (1 - right) ** 2 * right.log()).mean((1, 2)).sum() / 3
    overlap, total = (p * t).sum((1, 2)), p.sum((1, 2)) + t.sum((1, 2))
    return focal, (1 - (2 * overlap + 1) / (total + 1)).sum() / 3


@pytest.mark.parametrize("pixels", [1, 2 * 40 * 56, 1 << 30])
def test_mask_losses_do_not_depend_on_how_many_are_computed_at_once(
    pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.mask_losses, "PIXELS_AT_ONCE", pixels)
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(5, 10, 14, generator=generator, requires_grad=True)
    sizes = [(40, 50)] * 3 + [(37, 56)] * 2
    wanted = [torch.rand(size, generator=generator) > 0.6 for size in sizes]
    found = models.mask_losses.mask_losses(masks, wanted, (40, 56), (40, 56), 3)
    expected = straight_mask_losses(masks, wanted, (40, 56))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            torch.autograd.grad(a, masks, retain_graph=True)[0],
            torch.autograd.grad(b, masks, retain_graph=True)[0],
        )
