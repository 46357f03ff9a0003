"""Transforms: geometry against torchvision and against marked pixels; tensors against PIL images."""

import random

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as v2
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.functional import pil_to_tensor

import datasets.transforms as T
from datasets.coco import make_coco_transforms
from datasets.images import image_size
from datasets.transforms import resized_size

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def scene(height=60, width=90, seed=0):
    """Coloured rectangles on black, one in each third: image, and target with boxes, masks and keypoints."""
    draw = np.random.default_rng(seed)
    pixels, masks, boxes = np.zeros((height, width, 3), np.uint8), [], []
    for k, colour in enumerate(COLOURS):
        left = k * width // 3 + int(draw.integers(0, 6))
        right = (k + 1) * width // 3 - int(draw.integers(0, 6))
        top, bottom = int(draw.integers(0, height // 2)), height - int(draw.integers(0, height // 3))
        pixels[top:bottom, left:right] = colour
        mask = np.zeros((height, width), np.uint8)
        mask[top:bottom, left:right] = 1
        masks.append(mask)
        boxes.append([left, top, right, bottom])
    corners = torch.tensor(boxes, dtype=torch.float32)
    places = (corners[:, :2] + corners[:, 2:]) / 2
    target = {
        "boxes": corners,
        "labels": torch.tensor([1, 2, 3]),
        "masks": torch.from_numpy(np.stack(masks)),
        "area": (corners[:, 2:] - corners[:, :2]).prod(1),
        "iscrowd": torch.tensor([0, 0, 0]),
        "keypoints": torch.cat([places, torch.full((3, 1), 2.0)], 1)[:, None],
        "size": torch.tensor([height, width]),
        "orig_size": torch.tensor([height, width]),
        "image_id": torch.tensor([4]),
    }
    return Image.fromarray(pixels), target


def pixels_of(image):
    return image if isinstance(image, torch.Tensor) else pil_to_tensor(image)


def check_scene(image, target, blur=1.5):
    """Each colour lies inside its box and reaches its edges; masks, keypoints and the rest agree with it."""
    height, width = image_size(image)
    assert target["size"].tolist() == [height, width]
    count = len(target["labels"])
    assert all(len(target[name]) == count for name in ("boxes", "masks", "area", "iscrowd", "keypoints"))
    assert torch.equal(target["orig_size"], torch.tensor([60, 90])) and target["image_id"].tolist() == [4]
    for k, label in enumerate(target["labels"].tolist()):
        box = target["boxes"][k]
        shown = pixels_of(image)[label - 1] > 125
        for region in (shown, target["masks"][k].bool()):
            if not region.any():
                assert (box[2:] - box[:2]).min() <= blur  # a sliver
                continue
            rows, columns = torch.where(region)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() <= blur, (label, found, box)
        x, y, seen = target["keypoints"][k, 0].tolist()
        if seen:
            at_edge = min(x, y, width - x, height - y) < blur
            assert at_edge or shown[int(y), int(x)]


def variants(image):
    return [image, pil_to_tensor(image)]


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "transform",
    [
        T.hflip,
        lambda i, t: T.crop(i, t, (10, 20, 37, 55)),
        lambda i, t: T.resize(i, t, 97, 200),
        lambda i, t: T.resize(i, t, (211, 83)),
        lambda i, t: T.resize(i, t, 31),
        lambda i, t: T.pad(i, t, (7, 3)),
        T.RandomCrop(40),
        T.RandomSizeCrop(20, 70),
        T.CenterCrop((31, 44)),
        T.RandomHorizontalFlip(1.0),
        T.RandomResize([(50, 40), 77], 120),
        T.RandomPad(9),
    ],
)
def test_a_coloured_object_stays_in_its_box(transform, seed, tensor):
    image, target = scene(seed=seed)
    random.seed(seed)
    torch.manual_seed(seed)
    check_scene(*transform(pil_to_tensor(image) if tensor else image, target))


@pytest.mark.parametrize("tensor", [False, True])
def test_the_training_pipeline_moves_objects_with_their_boxes(tensor):
    pipeline = make_coco_transforms("train", scales=[48, 64, 80, 100], max_size=133, normalize_images=False)
    seen = set()
    for seed in range(150):
        image, target = scene(seed=seed)
        random.seed(seed)
        torch.manual_seed(seed)
        image, target = pipeline(pil_to_tensor(image) if tensor else image, target)
        height, width = image_size(image)
        assert image.dtype == torch.uint8
        centre, size = target["boxes"][:, :2], target["boxes"][:, 2:]
        corners = torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor([width, height] * 2)
        check_scene(image, {**target, "boxes": corners}, blur=4)  # two resizes, each rounds
        seen.add((min(height, width), len(target["labels"])))
    assert {48, 64, 80, 89} <= {side for side, _ in seen}  # 100 would make the longer side 150
    assert {count for _, count in seen} == {2, 3}  # some crops leave an object out


@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_images_equal_torchvision(seed):
    draw = np.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 255, (47, 71, 3)).astype(np.uint8))
    corners = torch.from_numpy(np.sort(draw.uniform(0, 47, (9, 2, 2)), axis=1).reshape(9, 4)).float()
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(47, 71))
    target = {"boxes": corners, "labels": torch.arange(9)}

    flipped, result = T.hflip(image, target)
    assert torch.equal(result["boxes"], v2.horizontal_flip(boxes).as_subclass(torch.Tensor))
    assert flipped.tobytes() == v2.horizontal_flip(image).tobytes()

    resized, result = T.resize(image, target, (101, 64))
    torch.testing.assert_close(result["boxes"], v2.resize(boxes, [64, 101]).as_subclass(torch.Tensor))
    assert resized.tobytes() == v2.resize(image, [64, 101], antialias=True).tobytes()

    cropped, result = T.crop(image, target, (5, 8, 30, 22))
    expected = v2.crop(boxes, 5, 8, 30, 22).as_subclass(torch.Tensor)
    extent = (expected[:, 2:] - expected[:, :2]).clamp(min=0)
    keep = (extent > 0).all(1)
    assert 0 < keep.sum() < 9
    assert torch.equal(result["boxes"], expected[keep])
    assert torch.equal(result["labels"], torch.where(keep)[0])
    assert torch.equal(result["area"], extent[keep].prod(1))
    assert cropped.tobytes() == v2.crop(image, 5, 8, 30, 22).tobytes()


@pytest.mark.parametrize(
    "height, width, size, max_size, expected",
    [
        (480, 640, 800, 1333, (800, 1066)),
        (640, 480, 800, 1333, (1066, 800)),
        (480, 640, 480, 1333, (480, 640)),
        (333, 1000, 800, 1333, (444, 1333)),
        (1000, 251, 800, 1333, (1334, 335)),  # the rounded shorter side leads, as published
        (500, 500, 600, 1333, (600, 600)),
        (83, 122, 800, 1333, (800, 1175)),
        (100, 900, 400, None, (400, 3600)),
        (480, 640, (300, 200), None, (200, 300)),
    ],
)
def test_sizes(height, width, size, max_size, expected):
    assert resized_size(height, width, size, max_size) == expected


@pytest.mark.parametrize("size", [480, 640, 800, 333, (97, 311)])
def test_the_tensor_road_is_within_one_grey_level_of_pil(size):
    draw = np.random.default_rng(1)
    small = Image.fromarray(draw.integers(0, 255, (24, 32, 3)).astype(np.uint8))
    image = small.resize((640, 480), Image.Resampling.BICUBIC)
    ours = T.resize(pil_to_tensor(image), None, size, 1333)[0]
    theirs = pil_to_tensor(T.resize(image, None, size, 1333)[0])
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("size", [(800, 1066), (33, 91), (60, 90), (61, 89)])
def test_masks_are_interpolated_as_floats_would_be(size, by_column):
    masks = torch.from_numpy(np.random.default_rng(0).random((5, 60, 90)) > 0.5).to(torch.uint8)
    if by_column:
        masks = masks.transpose(1, 2).contiguous().transpose(1, 2)
    expected = torch.nn.functional.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    for given in (masks, masks.bool()):
        found = T.resize(image, {"masks": given}, size[::-1])[1]["masks"]
        assert found.dtype == torch.bool and torch.equal(found, expected)
    assert T.resize(image, {"masks": masks[:0]}, size[::-1])[1]["masks"].shape == (0, *size)


def test_a_crop_removes_objects_by_boxes_or_else_by_masks():
    image, target = scene()
    region = (0, 0, 60, 20)  # the first object's third
    assert T.crop(image, target, region)[1]["labels"].tolist() == [1]
    without = {k: v for k, v in target.items() if k not in ("boxes", "area")}
    result = T.crop(image, without, region)[1]
    assert result["labels"].tolist() == [1] and result["masks"].shape == (1, 60, 20) and "area" not in result
    assert T.crop(image, {"labels": target["labels"]}, region)[1]["labels"].tolist() == [1, 2, 3]
    outside = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "keypoints": torch.tensor([[[2.0, 2, 2], [9, 9, 2]]])}
    assert T.crop(image, outside, (3, 3, 20, 20))[1]["keypoints"].tolist() == [[[0, 0, 0], [6, 6, 2]]]


ALL = [
    T.RandomCrop((30, 40)), T.RandomSizeCrop(20, 50), T.CenterCrop((20, 20)), T.RandomHorizontalFlip(1.0),
    T.RandomResize([30, 40], max_size=70), T.RandomPad(8), T.ToTensor(), T.ToByteTensor(), T.NormalizeBoxes(),
    T.RandomSelect(T.RandomPad(3), T.RandomCrop(10)),
]  # fmt: skip


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_no_target_is_needed_and_nothing_of_the_caller_is_edited(transform):
    image, target = scene()
    for given in variants(image):
        before = pixels_of(given).clone()
        copies = {name: value.clone() for name, value in target.items()}
        random.seed(0)
        torch.manual_seed(0)
        result, moved = transform(given, target)
        assert moved is target or set(moved) == set(target)
        assert all(torch.equal(target[name], copies[name]) for name in target)
        assert torch.equal(pixels_of(given), before)
        random.seed(0)
        torch.manual_seed(0)
        alone, none = transform(given)
        assert none is None and torch.equal(pixels_of(alone), pixels_of(result))


def test_normalisation_of_pixels_and_boxes():
    image, target = scene()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = v2.normalize(v2.to_dtype(v2.to_image(image), torch.float32, scale=True), mean, std)
    published, result = T.Compose([T.ToTensor(), T.Normalize(mean, std)])(image, target)
    bytes_first, same = T.Normalize(mean, std)(pil_to_tensor(image), target)
    for pixels in (published, bytes_first):
        assert pixels.dtype == torch.float32 and pixels.is_contiguous()
        torch.testing.assert_close(pixels, torch.as_tensor(expected), rtol=0, atol=2e-6)
    left, top, right, bottom = target["boxes"].unbind(1)
    centre = [(left + right) / 2 / 90, (top + bottom) / 2 / 60]
    cxcywh = torch.stack([*centre, (right - left) / 90, (bottom - top) / 60], 1)
    torch.testing.assert_close(result["boxes"], cxcywh)
    assert torch.equal(result["boxes"], same["boxes"])
    assert torch.equal(T.NormalizeBoxes()(image, target)[1]["boxes"], result["boxes"])
    assert T.Normalize(mean, std)(published)[1] is None


def test_probabilities():
    image, _ = scene()
    mirrored = T.hflip(image, None)[0].tobytes()
    random.seed(0)
    flips = sum(T.RandomHorizontalFlip(0.3)(image)[0].tobytes() == mirrored for _ in range(1000))
    assert 240 < flips < 360
    select = T.RandomSelect(T.CenterCrop((1, 1)), T.CenterCrop((2, 2)), 0.3)
    assert 240 < sum(select(image)[0].height == 1 for _ in range(1000)) < 360


def test_random_crops_reach_every_place_and_size():
    image = torch.arange(5 * 6, dtype=torch.uint8).reshape(1, 5, 6).repeat(3, 1, 1)
    torch.manual_seed(0)
    corners = {int(T.RandomCrop((3, 4))(image)[0][0, 0, 0]) for _ in range(200)}
    assert corners == {row * 6 + column for row in range(3) for column in range(3)}
    random.seed(0)
    shapes = {image_size(T.RandomSizeCrop(2, 9)(image)[0]) for _ in range(500)}
    assert shapes == {(h, w) for h in range(2, 6) for w in range(2, 7)}
    assert image_size(T.RandomSizeCrop(20, 30)(image)[0]) == (5, 6)  # a smaller picture is taken whole
    with pytest.raises(ValueError, match="does not fit"):
        T.RandomCrop(9)(image)


def test_random_erasing_leaves_the_target():
    image, target = T.ToTensor()(*scene())
    erased, same = T.RandomErasing(p=1.0, value=0.5)(image, target)
    assert same is target and (erased == 0.5).any() and not (image == 0.5).any()
