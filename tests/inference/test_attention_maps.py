"""Attention that is heard: the weights that hooks see, drawn where the features look, and on objects."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.attention_maps import listening
from inference.trained import load_trained
from tests.helpers import ROOT, TINY_MODEL
from tests.mask_model import SMALL as SMALL_MASKS
from tests.mask_model import images
from tests.reference.settings import build
from util.nested_tensor import nested_tensor_from_tensor_list

FLAGS = {
    "boxes": TINY_MODEL,
    "pre-norm": f"{TINY_MODEL} --pre_norm",
    "dilation": f"{TINY_MODEL} --backbone resnet50 --dilation",
    "two stages": f"{TINY_MODEL} --backbone_stages 2",
    "masks": SMALL_MASKS,
}
SIZES = ((64, 96), (96, 64))  # of mask_model's images: one batch of them is padded to 96 x 96


def built(name: str = "boxes", more: str = "") -> Any:
    return build(f"{FLAGS[name]} {more}", seed=0)[0].eval()


@torch.no_grad()
def hooked(model: Any, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """As the published notebooks do it: the decoder's [B, Q, h * w] and the encoder's [B, h * w, h * w]."""
    transformer = getattr(model, "detr", model).transformer
    modules = transformer.decoder.layers[-1].multihead_attn, transformer.encoder.layers[-1].self_attn
    seen: dict[Any, Tensor] = {}
    handles = [m.register_forward_hook(lambda m, i, out: seen.update({m: out[1]})) for m in modules]
    model(inputs)
    for handle in handles:
        handle.remove()
    return seen[modules[0]], seen[modules[1]]


@pytest.mark.parametrize("name", FLAGS)
@torch.no_grad()
def test_weights_are_those_that_hooks_see(name: str) -> None:
    model = built(name)
    decoder, encoder = hooked(model, images())
    with listening(model) as heard:
        model(images())
    queries = [5, 0, 3]
    for image, (height, width) in enumerate(SIZES):
        assert heard.image_size(image) == (height, width)
        maps = heard.decoder(image, queries)
        torch.testing.assert_close(maps.mean(1).flatten(1), decoder[image, queries], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(maps.sum((-1, -2)), torch.ones(maps.shape[:2]))
        stride = heard.stride
        assert (stride, maps.shape[-1]) == (96 // maps.shape[-1], 96 // stride)
        assert (maps[..., height // stride :, :] == 0).all() and (maps[..., width // stride :] == 0).all()
        row, column = 1, 1  # the cell centred on the pixel (stride, stride)
        point = ((stride + 0.5) / width, (stride + 0.5) / height)
        (found,) = heard.encoder(image, [point])
        cell = row * maps.shape[-1] + column
        torch.testing.assert_close(found.mean(0).flatten(), encoder[image, cell], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["boxes", "pre-norm", "masks"])
def test_a_model_that_is_heard_gives_the_same_and_is_left_as_it_was(name: str) -> None:
    model = built(name)
    with torch.no_grad():
        expected = model(images())
        with listening(model):
            found = model(images())
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[key], value), key
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["boxes", "dilation", "two stages"])
def test_cells_are_drawn_where_features_look(name: str) -> None:
    """The pixels that change a feature lie around the one at which its cell is drawn."""
    model = built(name)
    side, place = 384, 192
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with listening(model) as heard:
        features = model.backbone(nested_tensor_from_tensor_list([image]))[0][-1].tensors
        heard._grid = tuple(features.shape[-2:])
    cell = place // heard.stride
    (slope,) = torch.autograd.grad(features[0, :, cell, cell].sum(), image)
    weights = slope.abs().sum(0)
    pixels = torch.arange(side) + 0.5
    centre = (weights.sum(0) * pixels).sum() / weights.sum()
    one = torch.zeros(features.shape[-2:])
    one[cell, cell] = 1
    drawn = heard.over_picture(0, one, (side, side))
    assert drawn.shape == (side, side) and divmod(int(drawn.argmax()), side) == (place, place)
    assert abs(centre - place) < heard.stride / 4  # the middle of the cell's pixels is stride / 2 away
    twice = heard.over_picture(0, one, (2 * side, side // 2))  # of another shape than the model saw
    row, column = divmod(int(twice.argmax()), side // 2)
    assert abs(row - 2 * place) <= 1 and abs(column - place // 2) <= 1


def test_backbones_that_cut_patches_have_their_centres_in_the_middle() -> None:
    model = built()
    with torch.no_grad(), listening(model) as heard:
        model(images())
    assert heard._first_centre == 0.5
    model.backbone.insert(0, nn.Conv2d(3, 3, 4, 4))
    with listening(model) as patches:
        patches._grid, patches._batch = heard._grid, heard._batch
    assert patches._first_centre == 16


def test_padding_is_left_out_of_the_picture() -> None:
    model = built()
    with torch.no_grad(), listening(model) as heard:
        model(images())
    columns = torch.tensor([[10.0, 20, 30]]).expand(3, 3)  # image 1 is 96 x 64: two columns of cells
    drawn = heard.over_picture(1, columns, (96, 64))
    assert drawn[0, 0] == pytest.approx(10) and 15 < drawn[0, 32] < 25 and drawn.max() < 30.5
    torch.testing.assert_close(drawn, drawn[:1].expand(96, 64))


def test_mistakes_are_refused() -> None:
    model = built()
    with listening(model) as heard:
        with pytest.raises(ValueError, match="has not been called"):
            heard.decoder(0, [1])
        with torch.no_grad():
            model(images())
    for point in ((1.0, 0.5), (0.5, -0.1)):
        with pytest.raises(ValueError, match="outside"):
            heard.encoder(0, [point])
    model = built("boxes", "--enc_layers 0")
    with torch.no_grad(), listening(model) as heard:
        model(images())
    with pytest.raises(ValueError, match="no encoder"):
        heard.encoder(0, [(0.5, 0.5)])


@pytest.mark.slow
@pytest.mark.parametrize("run", ["demo", "demo-panoptic"])
def test_a_trained_model_looks_at_its_objects(run: str) -> None:
    """Inside the box lies at least three times the attention that its area would have by chance."""
    from inference.pictures import find_pictures, read_pictures
    from inference.predicting import predict

    path, folder = ROOT / run / "run" / "checkpoint.pth", ROOT / "data/shapes/val2017"
    if not path.exists() or not folder.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is not there: `make {run}` trains it")
    trained = load_trained(path)
    ratios = []
    reads = (r for b in read_pictures(find_pictures([folder])[:40], 96, 96) for r in b)
    for read in reads:
        assert read.picture is not None and read.image is not None
        height, width = read.picture.shape[1:]
        with listening(trained.model) as heard:
            (found,) = predict(trained, [read.image], [(height, width)], 0.9, "boxes")
        maps = heard.over_picture(0, heard.decoder(0, found.queries).mean(1), (height, width))
        for seen, box in zip(maps, found.boxes.round().long().clamp(min=0).tolist(), strict=True):
            x0, y0, x1, y1 = box
            inside = seen[y0:y1, x0:x1]
            ratios.append(float(inside.sum() / seen.sum()) / (inside.numel() / seen.numel()))
    assert sum(ratio >= 3 for ratio in ratios) >= 2
    assert float(torch.tensor(ratios).median()) >= 3
