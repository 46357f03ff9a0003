"""Padded batches: pixels and mask."""

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from util.nested_tensor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ByteBatch,
    NestedTensor,
    collate_bytes,
    collate_fn,
    nested_tensor_from_tensor_list,
)

SIZES = ((5, 9), (8, 4), (8, 9))
PADDED = [SIZES, ((5, 9), (5, 4)), ((3, 9), (5, 9))]  # both ways, to the right alone, below alone


def byte_images(sizes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=draw, dtype=torch.uint8) for size in sizes]


def expected_mask(sizes):
    height, width = (max(edge) for edge in zip(*sizes, strict=True))
    rows = torch.arange(height)[:, None]
    return torch.stack([(rows >= h) | (torch.arange(width) >= w) for h, w in sizes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("sizes", PADDED)
def test_images_are_padded_with_zeros_below_and_to_the_right(sizes, dtype):
    images = [image.to(dtype) for image in byte_images(sizes)]
    batch = nested_tensor_from_tensor_list(images)
    mask = expected_mask(sizes)
    assert batch.tensors.shape == (len(sizes), 3, *mask.shape[1:]) and batch.tensors.dtype == dtype
    assert torch.equal(batch.decompose()[1], mask)
    assert batch.tensors.is_contiguous(memory_format=torch.channels_last)
    for i, image in enumerate(images):
        height, width = image.shape[1:]
        assert torch.equal(batch.tensors[i, :, :height, :width], image)
        assert batch.tensors[i].sum() == image.sum()  # nothing else


@pytest.mark.parametrize("form", [list, torch.stack])
def test_images_of_one_size_are_unpadded(form):
    images = [torch.rand(3, 6, 7) for _ in range(2)]
    tensors, mask = nested_tensor_from_tensor_list(form(images)).decompose()
    assert torch.equal(tensors, torch.stack(images))
    assert mask.shape == (2, 6, 7) and not mask.any()


@pytest.mark.parametrize("shapes", [[(3, 4, 4), (4, 4)], [(1, 3, 4, 4)]])
def test_what_is_no_image_is_refused(shapes):
    with pytest.raises(ValueError, match=r"must be \[C, h, w\]"):
        nested_tensor_from_tensor_list([torch.zeros(shape) for shape in shapes])


def test_channels_are_padded_too():
    rgb, rgbd = torch.rand(3, 4, 4), torch.rand(4, 3, 5)
    tensors, mask = nested_tensor_from_tensor_list([rgb, rgbd]).decompose()
    assert tensors.shape == (2, 4, 4, 5) and mask.shape == (2, 4, 5)
    assert torch.equal(tensors[0, :3, :, :4], rgb) and not tensors[0, 3].any()
    assert torch.equal(tensors[1, :, :3], rgbd)


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1] * 2])
def test_moving_a_batch_keeps_the_mask(sizes):
    batch = nested_tensor_from_tensor_list(byte_images(sizes))
    moved = batch.to("meta")
    assert all(each.is_meta for each in moved.decompose())
    for there, here in zip(
        batch.to(torch.device("cpu"), non_blocking=True).decompose(), batch.decompose(), strict=True
    ):
        assert torch.equal(there, here)
    assert NestedTensor(batch.tensors, None).to("meta").mask is None


@pytest.mark.parametrize("sizes", [*PADDED, SIZES[:1] * 2])
def test_bytes_normalised_on_the_device_equal_floats_normalised_first(sizes):
    images = byte_images(sizes)
    normalised = [
        transforms.normalize(image.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD)) for image in images
    ]
    published = nested_tensor_from_tensor_list(normalised)
    batch = ByteBatch(images).to("cpu", non_blocking=True)
    torch.testing.assert_close(batch.tensors, published.tensors, atol=2e-6, rtol=0)
    mask = expected_mask(sizes)
    assert torch.equal(batch.decompose()[1], mask)
    assert not batch.tensors.masked_select(mask[:, None]).any()  # padding is zero, not normalised zero
    assert batch.tensors.is_contiguous(memory_format=torch.channels_last)


def test_bytes_can_be_moved_twice():
    batch = ByteBatch(byte_images(SIZES))
    assert torch.equal(batch.to("cpu").tensors, batch.to("cpu").tensors)
    assert batch.tensors.dtype == torch.uint8


@pytest.mark.parametrize("collate", [collate_fn, collate_bytes])
def test_collating_keeps_images_and_targets_in_order(collate):
    images = byte_images(SIZES)
    batch, targets = collate([(image, {"id": i}) for i, image in enumerate(images)])
    assert targets == ({"id": 0}, {"id": 1}, {"id": 2})
    for canvas, image in zip(batch.tensors, images, strict=True):
        assert torch.equal(canvas[:, : image.shape[1], : image.shape[2]], image)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
def test_tracing_records_the_padding_for_other_sizes():
    """What ONNX export relies on: the recorded graph pads images that it was not traced with."""

    def decomposed(first, second):
        return nested_tensor_from_tensor_list([first, second]).decompose()

    traced = torch.jit.trace(decomposed, (torch.rand(3, 4, 6), torch.rand(3, 5, 3)))
    images = [torch.rand(3, 9, 2), torch.rand(3, 7, 8)]
    expected = nested_tensor_from_tensor_list(images).decompose()
    for recorded, computed in zip(traced(*images), expected, strict=True):
        assert torch.equal(recorded, computed)
