"""The COCO data set: targets, masks against pycocotools, randomness by (seed, epoch, index), and errors."""

import json
import pickle
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
import torchvision
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Subset

import datasets.transforms as T
from datasets import build_dataset, get_coco_api_from_dataset
from datasets.coco import (
    CocoDetection,
    ConvertCocoPolysToMask,
    convert_coco_poly_to_mask,
    make_coco_transforms,
)
from datasets.coco_eval import CocoEvaluator
from tests.helpers import annotation, write_instances, write_pictures
from util.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = {1: "c1", 2: "c2", 3: "c3"}


def record(ann_id, image_id, bbox, category_id=3, **more):
    return {**annotation(ann_id, image_id, category_id, bbox), **more}


def write_coco(root, annotations=None, count=6):
    """`count` pictures of different sizes, ids 10, 20, …; three objects each where none are given."""
    sizes = [(70 + 5 * i, 60 - 3 * i) for i in reversed(range(count))]  # width, height
    made = [
        record(3 * i + j + 1, 10 * (count - i), [3 + 15 * j, 5 + j, 20, 25], category_id=j + 1)
        for i in range(count)
        for j in range(3)
    ]
    for split in ("train", "val"):
        images = write_pictures(root / f"{split}2017", sizes, 10, step=10)[::-1]
        write_instances(root, split, images, made if annotations is None else annotations, NAMES)
    return root


def arguments(root, **more):
    values = {"dataset_file": "coco", "coco_path": str(root), "masks": False, "scales": None, "crop": True}
    return Namespace(**{**values, "eval_scale": 800, "max_size": 1333, "seed": 42, **more})


def small(root, **more):
    return arguments(root, scales=[32, 48], eval_scale=40, max_size=80, **more)


def equal(one, other):
    same = [torch.equal(one[1][name], other[1][name]) for name in one[1]]
    return torch.equal(one[0], other[0]) and all(same)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


# ---- targets


def test_validation_targets(root):
    dataset = build_dataset("val", small(root, masks=True))
    assert len(dataset) == 6 and dataset.ids == [10, 20, 30, 40, 50, 60]
    image, target = dataset[-1]  # 70 x 60
    assert image.dtype == torch.float32 and image.shape == (3, 40, 46)
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in target.items()}
    assert kinds == {
        "boxes": (torch.float32, (3, 4)), "labels": (torch.int64, (3,)), "image_id": (torch.int64, (1,)),
        "area": (torch.float32, (3,)), "iscrowd": (torch.int64, (3,)), "orig_size": (torch.int64, (2,)),
        "size": (torch.int64, (2,)), "masks": (torch.bool, (3, 40, 46)),
    }  # fmt: skip
    assert target["image_id"].tolist() == [60] and target["labels"].tolist() == [1, 2, 3]
    assert target["orig_size"].tolist() == [60, 70] and target["size"].tolist() == [40, 46]
    expected = torch.tensor([13 / 70, 17.5 / 60, 20 / 70, 25 / 60])
    torch.testing.assert_close(target["boxes"][0], expected)
    torch.testing.assert_close(target["area"][0], torch.tensor(500 * (40 / 60) * (46 / 70)))


def test_bytes_and_floats_are_the_same_picture(root):
    for image_set in ("train", "val"):
        floats, raw = (build_dataset(image_set, small(root), normalize) for normalize in (True, False))
        for dataset in (floats, raw):
            dataset.set_epoch(1)
        for i in range(3):
            assert raw[i][0].dtype == torch.uint8 and raw[i][0].shape[0] == 3
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            pixels = (raw[i][0] / 255 - mean[:, None, None]) / std[:, None, None]
            torch.testing.assert_close(floats[i][0], pixels, rtol=0, atol=1e-5)
            assert all(torch.equal(raw[i][1][name], value) for name, value in floats[i][1].items())


def plain(root, transforms=None, masks=False, kind=CocoDetection):
    return kind(root / "val2017", root / "annotations" / "instances_val2017.json", transforms, masks)


class Sees:
    """A user-defined transform, which asks PIL for the size."""

    def __init__(self):
        self.seen = []

    def __call__(self, image, target=None):
        self.seen.append((type(image), image.size))
        return image, target


def test_a_list_without_the_first_transform_stays_pil_to_the_end(root):
    image, target = plain(root)[0]
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    assert target["boxes"][0].tolist() == [3, 5, 23, 30] and "masks" not in target
    sees = Sees()
    others: list[Any] = [T.RandomHorizontalFlip(1.0), T.RandomResize([50]), T.RandomSizeCrop(30, 40)]
    dataset = plain(root, T.Compose([sees, *others, sees]), masks=True)
    image, target = dataset[0]
    assert isinstance(image, Image.Image) and [kind for kind, _ in sees.seen] == [Image.Image] * 2
    assert target["masks"].shape[1:] == (image.height, image.width) and image.size == sees.seen[1][1]
    dataset._transforms = T.Compose([T.ToByteTensor(), *others])  # what is replaced counts
    image, target = dataset[0]
    assert image.dtype == torch.uint8 and target["masks"].shape[1:] == image.shape[1:]


@pytest.mark.parametrize("image_set", ["train", "val"])
def test_bytes_and_pil_images_give_the_same_item(root, image_set):
    folder, file = root / f"{image_set}2017", root / "annotations" / f"instances_{image_set}2017.json"
    fast = build_dataset(image_set, small(root, masks=True))
    first, *others, normalize = make_coco_transforms(image_set, [32, 48], 40, 80).transforms
    assert isinstance(first, T.ToByteTensor)
    slow = CocoDetection(folder, file, T.Compose([*others, T.ToTensor(), normalize]), True, seed=42)
    for dataset in (fast, slow):
        dataset.set_epoch(0)
    for i in range(6):
        (image, target), (expected, wanted) = fast[i], slow[i]
        levels = 3 if image_set == "train" else 1  # each resize may differ by one, the next may magnify it
        assert (image - expected).abs().max() < (levels + 0.01) / 255 / 0.224
        assert target["masks"].dtype == wanted["masks"].dtype == torch.bool
        assert all(torch.equal(target[name], wanted[name]) for name in wanted)


# ---- what forks build on


def test_inside_super_gives_a_pil_image_and_the_annotations(root):
    seen = []

    class Published(CocoDetection):
        """Overrides as the published class does: torchvision's item, prepared and transformed here."""

        def __getitem__(self, idx):
            image, annotations = super(CocoDetection, self).__getitem__(idx)
            seen.append((image, annotations))
            image, target = self.prepare(image, {"image_id": self.ids[idx], "annotations": annotations})
            return self._transforms(image, target)  # type: ignore[misc]

    val = make_coco_transforms("val", eval_scale=40, max_size=80)
    assert equal(plain(root, val, kind=Published)[1], plain(root, val)[1])
    given, annotations = seen[0]
    assert isinstance(given, Image.Image) and given.size == (90, 48)
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    assert annotations == [a for a in content["annotations"] if a["image_id"] == 20]


def test_a_subclass_gets_image_and_target_from_super(root):
    class Own(CocoDetection):
        def __getitem__(self, idx):
            image, target = super().__getitem__(idx)
            return image + 1, {**target, "index": idx}

    val = make_coco_transforms("val", eval_scale=40, max_size=80)
    (image, target), (expected, wanted) = plain(root, val, kind=Own)[2], plain(root, val)[2]
    assert torch.equal(image, expected + 1) and target.pop("index") == 2
    assert all(torch.equal(target[name], wanted[name]) for name in wanted)
    assert isinstance(plain(root), torchvision.datasets.CocoDetection)


@pytest.mark.parametrize("asked", [False, True])
def test_load_image_and_load_target_may_be_overridden(root, asked):
    class Own(CocoDetection):
        def _load_image(self, id):
            return super()._load_image(id).convert("L").convert("RGB")

        def _load_target(self, id):
            return [one for one in super()._load_target(id) if one["category_id"] != 2]

    dataset = plain(root, T.ToByteTensor(), kind=Own)
    assert not asked or dataset.coco
    image, target = dataset[0]
    assert torch.equal(image[0], image[2]) and target["labels"].tolist() == [1, 3]


def test_prepare_and_ids_count_when_they_are_replaced(root):
    dataset = plain(root)

    def prepare(image, target):
        return image, {"names": [one["category_id"] for one in target["annotations"]], **target}

    dataset.prepare = prepare
    dataset.ids = [60, 20]
    assert len(dataset) == 2
    image, target = dataset[0]
    assert image.size == (70, 60) and target["image_id"] == 60 and target["names"] == [1, 2, 3]
    assert dataset.get_height_and_width(1) == (48, 90)
    with pytest.raises(IndexError):
        dataset[2]


def test_edits_of_coco_reach_items_and_no_other_data_set(root):
    edited, other = (build_dataset("val", small(root)) for _ in range(2))
    before = other[0]
    assert equal(edited[0], before)
    coco = edited.coco
    assert isinstance(coco, COCO) and edited.coco is coco and other.coco is not coco
    for one in coco.imgToAnns[10]:
        one["category_id"] = 3
    coco.imgToAnns[10].pop()
    coco.imgs[20]["file_name"] = coco.imgs[60]["file_name"]
    assert edited[0][1]["labels"].tolist() == [3, 3]
    assert edited[1][1]["orig_size"].tolist() == [60, 70]
    assert edited.image_path(1).name == coco.imgs[60]["file_name"]
    for another in (other, build_dataset("val", small(root))):
        assert equal(another[0], before) and another[1][1]["orig_size"].tolist() == [48, 90]
    for workers in (0, 1):
        loaded = list(DataLoader(edited, batch_size=None, num_workers=workers))
        assert loaded[0][1]["labels"].tolist() == [3, 3]


def test_edits_of_coco_reach_evaluation(root):
    dataset = build_dataset("val", small(root))
    for one in dataset.coco.imgToAnns[10]:
        one["category_id"] = 3
    boxes = torch.tensor([one["bbox"] for one in dataset.coco.imgToAnns[10]], dtype=torch.float32)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    evaluator = CocoEvaluator(get_coco_api_from_dataset(dataset), ["bbox"])
    evaluator.update({10: {"scores": torch.ones(3), "labels": torch.tensor([3, 3, 3]), "boxes": boxes}})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    assert [row["AP"] for row in evaluator.per_class()] == [None, None, pytest.approx(1)]


def test_another_coco_may_be_set(root):
    dataset, other = plain(root), COCO()
    other.dataset = {
        "images": [{"id": 10, "file_name": f"{60:012d}.jpg"}],
        "annotations": [record(1, 10, [1, 2, 30, 40], category_id=2)],
        "categories": [{"id": 2}],
    }
    other.createIndex()
    dataset.coco = other
    image, target = dataset[0]
    assert image.size == (70, 60) and target["labels"].tolist() == [2]
    assert get_coco_api_from_dataset(dataset) is other


# ---- what ConvertCocoPolysToMask makes


def test_what_is_dropped_and_what_is_clamped():
    annotations = [
        record(1, 5, [-4, -3, 20, 20]),
        record(2, 5, [40, 30, 100, 100], category_id=8),
        record(3, 5, [5, 5, 0, 9]),
        record(4, 5, [60, 5, 10, 10]),  # wholly outside
        record(5, 5, [5, 5, 10, 10], iscrowd=1),
        {key: value for key, value in record(6, 5, [1, 2, 3, 4]).items() if key != "iscrowd"},
    ]
    image = Image.new("RGB", (50, 40))
    given = {"image_id": 5, "annotations": annotations}
    for picture in (image, torch.zeros(3, 40, 50, dtype=torch.uint8)):
        same, target = ConvertCocoPolysToMask(True)(picture, given)
        assert same is picture and given == {"image_id": 5, "annotations": annotations}
        assert target["boxes"].tolist() == [[0, 0, 16, 17], [40, 30, 50, 40], [1, 2, 4, 6]]
        assert target["labels"].tolist() == [3, 8, 3] and target["iscrowd"].tolist() == [0, 0, 0]
        assert target["masks"].shape == (3, 40, 50) and target["masks"].flatten(1).any(1).all()
        torch.testing.assert_close(target["area"], torch.tensor([400.0, 10000, 12]))
    empty = ConvertCocoPolysToMask(True)(image, {"image_id": 5, "annotations": annotations[2:5]})[1]
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 40, 50)
    assert empty["labels"].dtype == torch.int64 and empty["area"].shape == (0,)


def test_keypoints():
    with_points = record(1, 5, [1, 1, 9, 9], keypoints=[2, 3, 2, 0, 0, 0])
    given = {"image_id": 5, "annotations": [record(2, 5, [2, 2, 9, 9]), with_points]}
    target = ConvertCocoPolysToMask()(Image.new("RGB", (50, 40)), given)[1]
    assert target["keypoints"].tolist() == [[[0, 0, 0], [0, 0, 0]], [[2, 3, 2], [0, 0, 0]]]


def test_masks_equal_pycocotools():
    draw = np.random.default_rng(0)
    height, width = 37, 53
    corners = ((3,), (4, 5), (9, 3, 3))  # of the polygons of each object
    polygons = [[draw.uniform(0, 37, 2 * k).tolist() for k in counts] for counts in corners]
    runs = {"size": [height, width], "counts": [500, 300, 400, height * width - 1200]}
    compressed = pycocotools.mask.frPyObjects(runs, height, width)
    as_text = {**compressed, "counts": compressed["counts"].decode()}
    segmentations = [*polygons, runs, compressed, as_text]
    masks = convert_coco_poly_to_mask(segmentations, height, width)
    assert masks.dtype == torch.uint8 and masks.shape == (6, height, width)
    for mask, polygon in zip(masks, polygons, strict=False):
        parts = pycocotools.mask.decode(pycocotools.mask.frPyObjects(polygon, height, width))  # [h, w, parts]
        assert np.array_equal(mask.numpy(), parts.any(2))
    for mask in masks[3:]:
        assert np.array_equal(mask.numpy(), pycocotools.mask.decode(compressed))
    assert convert_coco_poly_to_mask([], 5, 6).shape == (0, 5, 6)


# ---- randomness


def test_draws_follow_from_seed_epoch_and_index_for_any_number_of_workers(root):
    dataset = build_dataset("train", small(root))

    def epoch(number, workers):
        dataset.set_epoch(number)
        return list(DataLoader(dataset, batch_size=None, num_workers=workers))

    first = epoch(0, 0)
    for workers in (1, 2):
        assert all(equal(*pair) for pair in zip(first, epoch(0, workers), strict=True))
    second = epoch(1, 0)
    assert sum(equal(*pair) for pair in zip(first, second, strict=True)) < 4
    other = build_dataset("train", small(root, seed=43))
    other.set_epoch(0)
    assert sum(equal(first[i], other[i]) for i in range(6)) < 4
    dataset.set_epoch(0)
    state = random.getstate(), torch.get_rng_state()
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(equal(item, first[3]) for item in (dataset[3], dataset[-3], copy[3]))
    assert state[0] == random.getstate() and torch.equal(state[1], torch.get_rng_state())


def test_the_epoch_reaches_persistent_workers(root):
    dataset = build_dataset("train", small(root))
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    for number in (0, 5, 0):
        dataset.set_epoch(number)
        assert all(equal(item, dataset[i]) for i, item in enumerate(loader))


# ---- transforms of the data set


def shapes_drawn(transforms, height, width, count=300):
    random.seed(0)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return [tuple(transforms(image)[0].shape[1:]) for _ in range(count)]


def test_published_scales():
    shapes = shapes_drawn(make_coco_transforms("train", normalize_images=False), 480, 640, 150)
    whole = {min(shape) for shape in shapes if abs(max(shape) / min(shape) - 4 / 3) < 0.003}
    assert {*range(480, 801, 32)} <= whole and max(map(max, shapes)) <= 1334
    assert make_coco_transforms("val")(torch.zeros(3, 30, 40))[0].shape == (3, 800, 1066)
    with pytest.raises(ValueError, match="'train' or 'val'"):
        make_coco_transforms("test")


def test_the_cropping_branch_scales_with_the_largest_side():
    def sizes(transforms):
        select = next(t for t in transforms.transforms if isinstance(t, T.RandomSelect))
        branch = select.transforms2
        assert isinstance(branch, T.Compose)
        resize, crop, last = map(vars, branch.transforms)
        return resize["sizes"], (crop["min_size"], crop["max_size"]), last["sizes"]

    assert sizes(make_coco_transforms("train")) == ([400, 500, 600], (384, 600), [*range(480, 801, 32)])
    assert sizes(make_coco_transforms("train", [96, 128])) == ([64, 80, 96], (61, 96), [96, 128])
    assert sizes(make_coco_transforms("train", [1])) == ([1, 1, 1], (1, 1), [1])


# ---- errors, and the doors to the data set


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([], "annotation 77 has no segmentation.*without --masks"),
        (None, "annotation 77 has no segmentation"),
        ([[1, 2]], "segmentation of annotation 77 gives no mask"),
        ({"size": [3, 3], "counts": [9]}, "annotation 77 gives no mask of 60 x 70"),
    ],
)
def test_an_object_without_a_mask_is_named(tmp_path, segmentation, message):
    write_coco(tmp_path, [record(77, 10, [1, 2, 30, 40], segmentation=segmentation)], count=1)
    assert len(build_dataset("val", small(tmp_path))[0][1]["labels"]) == 1
    with pytest.raises(UserError, match=message):
        build_dataset("val", small(tmp_path, masks=True))[0]


def test_ground_truth_for_the_evaluator(root):
    dataset = build_dataset("val", small(root))
    coco = get_coco_api_from_dataset(Subset(Subset(dataset, [0, 1, 2]), [1]))
    assert coco is dataset.coco and sorted(coco.imgs) == dataset.ids
    assert get_coco_api_from_dataset([1, 2]) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
@pytest.mark.parametrize("name, masks", [("bccd", False), ("balloon", True), ("coco_panoptic", True)])
def test_real_photographs(name, masks):
    for image_set in ("train", "val"):
        dataset = build_dataset(image_set, small(SHARED / name, masks=masks), False)
        dataset.set_epoch(0)
        for index in range(0, len(dataset), max(1, len(dataset) // 12)):
            image, target = dataset[index]
            crowds = [a["iscrowd"] for a in dataset.coco.imgToAnns[dataset.ids[index]]]
            assert len(target["labels"]) <= len(crowds) - sum(crowds)
            corners = target["boxes"][:, :2] - target["boxes"][:, 2:] / 2
            assert (corners > -1e-6).all() and (target["boxes"] <= 1).all()
            assert (target["boxes"][:, 2:] > 0).all()
            assert not masks or target["masks"].shape == (len(corners), *image.shape[1:])
