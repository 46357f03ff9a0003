"""The panoptic data set: targets against brute force, matching by image id, and errors."""

import json
import pickle
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets import build_dataset, coco, get_coco_api_from_dataset
from datasets.coco_panoptic import CocoPanoptic, find_panoptic_files, segment_masks
from datasets.labels import read_categories, read_things
from datasets.panoptic_png import encode_png, read_ids
from util.box_ops import masks_to_boxes
from util.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CATEGORIES = [
    {"id": 9, "name": "nine", "isthing": 1},
    {"id": 2, "name": "two", "isthing": 0},
    {"id": 200, "name": "absent", "isthing": 0},
]
IDS = (50, 40, 30, 20, 10, 700000000001)  # of images, in the order of the file


def draw_map(draw, height, width, count):
    """A map of `count` segments and void, whose ids take all three channels, and their records."""
    ids = np.zeros((height, width), np.int32)
    segments = (draw.choice((1 << 24) - 1, count, replace=False) + 1).tolist()
    for segment in segments:
        top, left = draw.integers(0, (height - 9, width - 9))
        region = ids[top : top + draw.integers(5, 30), left : left + draw.integers(5, 30)]
        region[draw.random(region.shape) > 0.2] = segment
    present = [segment for segment in segments if (ids == segment).any()]
    records = [
        {"id": segment, "category_id": (9, 2)[place % 2], "area": int((ids == segment).sum()),
         "iscrowd": int(place == 1), "bbox": [0, 0, 1, 1]}
        for place, segment in enumerate(present)
    ]  # fmt: skip
    return ids, records


def write_panoptic(root, suffix=".jpg"):
    """Pictures, PNGs and files of both splits; annotations and images in different orders."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        content: dict[str, list] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for folder in (f"{split}2017", f"panoptic_{split}2017", "annotations"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for place, image_id in enumerate(IDS):
            height, width = 60 - 3 * place, 70 + 5 * place
            small = Image.fromarray(draw.integers(0, 255, (4, 5, 3)).astype(np.uint8))
            picture = small.resize((width, height), Image.Resampling.BICUBIC)
            picture.save(root / f"{split}2017" / f"{image_id}{suffix}")
            ids, records = draw_map(draw, height, width, (7, 0, 1, 4, 5, 6)[place])
            name = f"pan{image_id}.png"
            (root / f"panoptic_{split}2017" / name).write_bytes(encode_png(ids))
            listed = {"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width}
            content["images"].append(listed)
            entry = {"image_id": image_id, "file_name": name, "segments_info": records}
            content["annotations"].insert(place // 2, entry)
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    return root


def arguments(root, **more):
    values = {"dataset_file": "coco_panoptic", "coco_path": str(root), "coco_panoptic_path": str(root)}
    sizes = {"scales": [32, 48], "eval_scale": 40, "max_size": 80, "crop": True}
    return Namespace(**{**values, **sizes, "masks": True, "seed": 42, **more})


def plain(root, split="val", **more):
    return CocoPanoptic(*find_panoptic_files(root, root, split), **more)


def edit(root, change, split="val"):
    path = root / "annotations" / f"panoptic_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def equal_targets(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def equal(one, other):
    return torch.equal(one[0], other[0]) and equal_targets(one[1], other[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_panoptic(tmp_path_factory.mktemp("panoptic"))


# ---- targets


def test_targets_against_brute_force(root):
    dataset = plain(root)
    content = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    entries = {entry["image_id"]: entry for entry in content["annotations"]}
    assert dataset.ids == sorted(IDS) and len(dataset) == 6
    for index, image_id in enumerate(dataset.ids):
        image, target = dataset[index]
        place = IDS.index(image_id)
        assert image.mode == "RGB" and image.size == (70 + 5 * place, 60 - 3 * place)
        assert dataset.get_height_and_width(index) == (image.height, image.width)
        entry = entries[image_id]
        ids = read_ids(root / "panoptic_val2017" / entry["file_name"])
        records = entry["segments_info"]
        masks = np.array([ids == record["id"] for record in records]).reshape(-1, *ids.shape)
        assert target["masks"].dtype == torch.uint8 and np.array_equal(target["masks"].numpy(), masks)
        assert torch.equal(target["boxes"], masks_to_boxes(torch.from_numpy(masks)))
        expected = {
            "boxes": target["boxes"],
            "masks": target["masks"],
            "labels": torch.tensor([record["category_id"] for record in records], dtype=torch.int64),
            "image_id": torch.tensor([image_id]),
            "area": torch.tensor([float(record["area"]) for record in records]),
            "iscrowd": torch.tensor([record["iscrowd"] for record in records], dtype=torch.int64),
            "orig_size": torch.tensor(ids.shape),
            "size": torch.tensor(ids.shape),
        }
        assert target.keys() == expected.keys()
        for name, value in expected.items():
            assert target[name].dtype == value.dtype and torch.equal(target[name], value), name
    assert sum(int(target["iscrowd"].sum()) for _, target in dataset) == 4  # they stay objects
    assert min(len(target["labels"]) for _, target in dataset) == 0


def test_without_masks(root):
    for (_, target), (_, expected) in zip(plain(root, return_masks=False), plain(root), strict=True):
        assert "masks" not in target
        assert all(torch.equal(value, expected[name]) for name, value in target.items())
    assert "masks" not in build_dataset("val", arguments(root, masks=False))[0][1]


@pytest.mark.parametrize("normalize_images, dtype", [(True, torch.float32), (False, torch.uint8)])
def test_images_and_masks_after_the_transforms(root, normalize_images, dtype):
    image, target = build_dataset("train", arguments(root), normalize_images)[0]
    assert image.dtype == dtype and target["masks"].dtype == torch.bool
    assert target["masks"].shape == (len(target["labels"]), *image.shape[1:])


def test_a_forks_own_coco_py_gives_the_transforms(root, monkeypatch):
    monkeypatch.delattr(coco, "transforms_of")  # as in the published file
    monkeypatch.setattr(coco, "make_coco_transforms", lambda image_set: lambda *pair: (image_set, pair[1]))
    assert build_dataset("val", arguments(root))[0][0] == "val"


def test_a_segment_may_have_id_0():
    ids = np.array([[0, 5], [5, 5]], np.int32)
    assert segment_masks(ids, [5, 0]).int().tolist() == [[[0, 1], [1, 1]], [[1, 0], [0, 0]]]
    assert segment_masks(ids, [5]).int().tolist() == [[[0, 1], [1, 1]]]
    assert segment_masks(np.zeros((4, 6), np.int32), []).shape == (0, 4, 6)


# ---- what a data set is asked for


def test_draws_follow_from_seed_epoch_and_index(root):
    dataset = build_dataset("train", arguments(root))
    random.seed(0)
    torch.manual_seed(0)
    assert len({tuple(dataset[0][0].shape) for _ in range(12)}) > 1
    dataset.set_epoch(3)
    items = list(DataLoader(dataset, batch_size=None, num_workers=2))
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(equal(item, dataset[i]) and equal(item, copy[i]) for i, item in enumerate(items))
    assert equal(dataset[-1], items[5])
    with pytest.raises(IndexError):
        dataset[6]
    dataset.set_epoch(4)
    assert not all(equal(item, dataset[i]) for i, item in enumerate(items))


def test_categories_things_and_counts(root):
    args = arguments(root)
    assert list(read_categories(args).items()) == [(2, "two"), (9, "nine"), (200, "absent")]
    assert list(read_things(args).items()) == [(2, False), (9, True), (200, False)]
    dataset = build_dataset("val", args)
    assert dataset.is_thing == read_things(args, ["val"])
    labels = torch.cat([target["labels"] for _, target in dataset]).tolist()
    counts = dataset.annotations.objects_per_category
    assert counts == {2: labels.count(2), 9: labels.count(9), 200: 0} and min(counts[2], counts[9]) > 0


def test_the_published_view_of_the_file(root):
    dataset = plain(root)
    assert [image["id"] for image in dataset.coco["images"]] == dataset.ids
    assert dataset.coco["categories"] == CATEGORIES and dataset.coco is dataset.coco
    assert get_coco_api_from_dataset(dataset) is None
    assert [entry["image_id"] for entry in dataset.coco["annotations"]] == dataset.ids
    assert dataset.img_folder == root / "val2017" and dataset.ann_folder == root / "panoptic_val2017"
    assert dataset.ann_file == root / "annotations" / "panoptic_val2017.json"
    other = plain(root)
    before = dataset[1][1]
    dataset.coco["annotations"][1]["segments_info"][0]["category_id"] = 77
    dataset.coco["images"][1]["height"] = 3
    assert dataset[1][1]["labels"][0] == 77 and dataset.get_height_and_width(1)[0] == 3
    for another in (other, plain(root)):
        assert equal_targets(another[1][1], before) and another.coco is not dataset.coco


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_of_one_ending_listed_with_another(root, suffix, tmp_path):
    write_panoptic(tmp_path, suffix)  # the file says .jpg
    for (image, _), (expected, _) in zip(plain(tmp_path), plain(root), strict=True):
        assert image.size == expected.size
    edit(tmp_path, lambda content: content["images"][0].update(file_name="50.png"))
    assert plain(tmp_path)[4][0].size == (70, 60)


# ---- errors


def other_size(root):
    (root / "panoptic_val2017" / "pan30.png").write_bytes(encode_png(np.ones((5, 6), np.int32)))


def drop_segment(root):
    edit(root, lambda c: next(e for e in c["annotations"] if e["image_id"] == 30)["segments_info"].pop())


def add_segment(root):
    more = {"id": 4711, "category_id": 2, "area": 1, "iscrowd": 0}
    edit(
        root, lambda c: next(e for e in c["annotations"] if e["image_id"] == 30)["segments_info"].append(more)
    )


ITEM_FAULTS = {
    "no picture": (
        lambda root: (root / "val2017" / "30.jpg").unlink(), r"30.jpg \(image id 30\): cannot be read"),
    "no PNG": (lambda root: (root / "panoptic_val2017" / "pan30.png").unlink(),
        "cannot read the panoptic PNG .*pan30.png: No such file"),
    "damaged PNG": (lambda root: (root / "panoptic_val2017" / "pan30.png").write_bytes(b"\x89PNG no more"),
        "cannot read the panoptic PNG .*pan30.png"),
    "size": (other_size, "pan30.png has 5 x 6 pixels, but image 30 has 54 x 80"),
    "unknown in the file": (drop_segment, "pan30.png does not fit .*json: segment .* is in the PNG, and not"),
    "unknown in the PNG": (
        add_segment, "pan30.png does not fit .*json: segment 4711 is in the JSON, and not"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ITEM_FAULTS)
def test_an_item_that_cannot_be_used_is_named(tmp_path, fault):
    write_panoptic(tmp_path)
    damage, message = ITEM_FAULTS[fault]
    damage(tmp_path)
    for dataset in (plain(tmp_path), build_dataset("val", arguments(tmp_path))):
        dataset[1]
        with pytest.raises(UserError, match=message):
            dataset[2]


def test_a_wrong_folder_is_described(root, tmp_path):
    (tmp_path / "train2017").mkdir()
    cases: tuple[tuple[tuple[Any, Any], str], ...] = (
        ((None, root), "--coco_path is missing: the folder that holds train2017"),
        ((root, ""), "--coco_panoptic_path is missing: the folder that holds panoptic_train2017 and annot"),
        ((root, tmp_path / "nowhere"), "--coco_panoptic_path .*nowhere: there is no such folder"),
        ((root / "annotations", root), "--coco_path .*: no train2017 there; the folder holds panoptic_train"),
        (
            (tmp_path, tmp_path),
            "no panoptic_train2017 and no annotations/panoptic_train2017.json there; the ",
        ),
    )
    for paths, message in cases:
        with pytest.raises(UserError, match=message):
            find_panoptic_files(*paths, "train")
        with pytest.raises(UserError, match=message):
            read_things(arguments(root, coco_path=paths[0], coco_panoptic_path=paths[1]))


# ---- real data


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
@pytest.mark.parametrize("name", ["coco_panoptic", "panopticapi_samples"])
def test_real_photographs(name):
    for image_set in ("train", "val"):
        args = arguments(SHARED / name, scales=[96], eval_scale=96, max_size=160)
        if not (SHARED / name / f"{image_set}2017").is_dir():
            continue
        dataset = build_dataset(image_set, args, False)
        dataset.set_epoch(0)
        for index in range(0, len(dataset), max(1, len(dataset) // 12)):
            image, target = dataset[index]
            segments = dataset.annotations.annotations[index]["segments_info"]
            assert target["masks"].shape == (len(target["labels"]), *image.shape[1:])
            assert target["masks"].sum(0).max() <= 1  # no pixel belongs to two
            if image_set == "val":
                assert target["labels"].tolist() == [segment["category_id"] for segment in segments]
                share = target["masks"].flatten(1).sum(1) / target["masks"][0].numel()
                areas = torch.tensor([float(segment["area"]) for segment in segments])
                pixels = areas / target["orig_size"].prod()
                assert (share - pixels).abs().max() < 0.01
