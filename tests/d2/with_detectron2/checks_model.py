"""`Detr`: what the published wrapper got wrong, and what is new."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from d2.detr.masks import full_masks, roi_masks
from models.backbone import Backbone
from tests.d2.with_detectron2.tiny import OWN, config, record
from util.errors import UserError

MASKS = ["MODEL.MASK_ON", True]


def trained_on(model: torch.nn.Module, records: list) -> dict[str, torch.Tensor]:
    losses = model.train()(records)
    sum(losses.values()).backward()
    return losses


def test_what_is_for_logging_goes_to_the_event_storage() -> None:
    model = build_model(config())
    with EventStorage() as storage:
        losses = trained_on(model, [record((64, 96), 2)])
    assert set(losses) == {f"loss_{n}{s}" for n in ("ce", "bbox", "giou") for s in ("", "_0")}
    assert {"class_error", "cardinality_error", "cardinality_error_0"} <= set(storage.latest())
    trained_on(model, [record((64, 96), 2)])  # and without a storage


@pytest.mark.parametrize("own", [[], OWN])
def test_images_without_objects_train_with_masks(own: list) -> None:
    model = build_model(config(*MASKS, *own))
    some = trained_on(model, [record((64, 96), 0, masks=True), record((56, 80), 2, masks=True)])
    assert all(loss.isfinite() for loss in some.values()) and some["loss_mask"] > 0
    none = trained_on(model, [record((64, 96), 0, masks=True)])
    assert none["loss_mask"] == 0 and none["loss_ce"] > 0
    without_field = record((64, 96), 0)
    trained_on(model, [without_field])


def test_masks_of_a_padded_batch_are_those_of_single_images() -> None:
    model = build_model(config(*MASKS, "MODEL.DETR.MASK_FORMAT", "full")).eval()
    records = [record((64, 96), 1), record((56, 80), 2)]
    with torch.no_grad():
        together, alone = model(records), [model([one])[0] for one in records]
    for one, other, given in zip(together, alone, records, strict=True):
        assert one["instances"].pred_masks.shape[1:] == given["image"].shape[1:]
        assert one["instances"].pred_masks.dtype == torch.bool
        torch.testing.assert_close(
            one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor, atol=3.0, rtol=0
        )


def test_full_masks_keep_their_shape() -> None:
    """A thin cross, larger than 32 cells: through the grid it loses pixels, in full it does not."""
    logits = torch.full((1, 50, 60), -10.0)
    logits[0, 10:40:6] = 10
    logits[0, :, 20:24] = 10
    canvas, size = (200, 240), (200, 220)
    truth = torch.nn.functional.interpolate(logits[None], canvas, mode="bilinear")[0, :, :, :220] > 0

    def overlap(masks: torch.Tensor) -> float:
        return ((masks & truth).sum() / (masks | truth).sum()).item()

    assert overlap(full_masks(logits, canvas, size, size)) == 1
    boxes = torch.tensor([[0.0, 0.0, 220.0, 200.0]])
    squeezed = Instances(size, pred_boxes=Boxes(boxes), pred_masks=roi_masks(logits, canvas, size, boxes))
    assert overlap(detector_postprocess(squeezed, *size).pred_masks) < 0.96
    larger = full_masks(logits, canvas, size, (400, 440))
    assert larger.shape == (1, 400, 440)
    assert full_masks(logits[:0], canvas, size, (400, 440)).shape == (0, 400, 440)


@pytest.mark.parametrize("masks", [False, True])
def test_backbones_with_lateral_connections(masks: bool) -> None:
    options = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.MASK_ON", masks]
    model = build_model(config(*options, "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]))
    records = [record((72, 100), 2, masks), record((50, 90), 1, masks)]  # no multiples of 32
    assert model.preprocess_image(records).tensor.shape[-2:] == (96, 128)
    assert all(loss.isfinite() for loss in trained_on(model, records).values())
    with torch.no_grad():
        found = model.eval()(records)
    assert len(found[0]["instances"]) and found[0]["instances"].has("pred_masks") == masks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*MASKS, "MODEL.RESNETS.OUT_FEATURES", ["res5"]], "feature maps of three stages at least"),
        (["MODEL.DETR.MASK_FORMAT", "half"], "neither roi32 nor full"),
        (["MODEL.DETR.QUERY_GROUPS", 0], "at least 1"),
        ([*MASKS, "MODEL.DETR.QUERY_GROUPS", 2, "MODEL.DETR.FROZEN_WEIGHTS", "a.pth"], "set one of them"),
        (["MODEL.DETR.POSITION_EMBEDDING", "none"], "neither sine nor learned"),
        (["MODEL.DETR.PANOPTIC_ON", True, "DATASETS.TRAIN", ("coco_2017_train",)], "one range of classes"),
    ],
)
def test_contradictions_are_errors_of_one_line(options: list, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(config(*options))
    assert "\n" not in str(caught.value)


def test_our_own_backbone_is_real_dc5() -> None:
    options = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    options += ["MODEL.RESNETS.RES5_DILATION", 2]
    model = build_model(config(*OWN, *options)).eval()
    masked = model.detr.backbone[0]
    assert masked.feature_strides == [4, 8, 16, 16] and masked.channels == [256, 512, 1024, 2048]
    reference = Backbone("resnet50", True, True, True, weights="none").eval()
    reference.body.load_state_dict(masked.backbone.body.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = masked(ImageList(images, [(64, 90)]))
        wanted = reference.body(images.contiguous(memory_format=torch.channels_last))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for ours, theirs in zip(features.values(), wanted.values(), strict=True):
        torch.testing.assert_close(ours.tensors, theirs)
    assert features["res5"].mask.sum() == 0 and features["res2"].mask.sum() == 16


@pytest.mark.parametrize(("freeze_at", "first"), [(0, "conv1"), (1, "layer1"), (2, "layer2"), (5, None)])
def test_freeze_at_counts_stages(freeze_at: int, first: str | None) -> None:
    body = build_model(config(*OWN, "MODEL.BACKBONE.FREEZE_AT", freeze_at)).detr.backbone[0].backbone.body
    trains = [name for name, parameter in body.named_parameters() if parameter.requires_grad]
    assert (trains[0].split(".")[0] if trains else None) == first


def test_frozen_weights_of_a_box_model(tmp_path: Path) -> None:
    boxes = build_model(config())
    torch.save({"model": boxes.state_dict()}, tmp_path / "boxes.pth")
    frozen = ["MODEL.DETR.FROZEN_WEIGHTS", str(tmp_path / "boxes.pth")]
    model = build_model(config(*MASKS, *frozen))
    for name, tensor in boxes.detr.state_dict().items():
        assert torch.equal(model.detr.detr.state_dict()[name], tensor), name
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains and all(name.startswith(("detr.bbox_attention", "detr.mask_head")) for name in trains)
    with pytest.raises(UserError, match="does not fit"):
        build_model(config(*MASKS, *frozen, "MODEL.DETR.NUM_CLASSES", 5))


@pytest.fixture
def scenes() -> Iterator[str]:
    """A data set's name with a thing and two kinds of stuff in one range of classes."""
    things, stuff = {10: 0}, {20: 1, 30: 2}
    MetadataCatalog.get("scenes").set(
        thing_dataset_id_to_contiguous_id=things, stuff_dataset_id_to_contiguous_id=stuff
    )
    yield "scenes"
    MetadataCatalog.remove("scenes")


def test_panoptic_maps(scenes: str) -> None:
    options = [*MASKS, "MODEL.DETR.PANOPTIC_ON", True, "MODEL.DETR.PANOPTIC_THRESHOLD", 0.0]
    model = build_model(config(*options, "DATASETS.TRAIN", (scenes,))).eval()
    model.detr.detr.class_embed.bias.data[-1] = -9.0  # no query says "no object"
    given = {**record((64, 96), 1), "height": 100, "width": 150}
    with torch.no_grad():
        found = model([given, record((40, 60), 1)])[0]
    ids, segments = found["panoptic_seg"]
    assert ids.shape == (100, 150) and ids.min() > 0
    assert {segment["id"] for segment in segments} == set(ids.unique().tolist())
    for segment in segments:
        assert segment["isthing"] == (segment["category_id"] == 0)
        assert segment["area"] == (ids == segment["id"]).sum()
    assert set(found["instances"].pred_classes.tolist()) <= {0}
    model.panoptic.threshold = 1.0
    with torch.no_grad():
        ids, segments = model([given])[0]["panoptic_seg"]
    assert ids.sum() == 0 and segments == []


def test_learned_positions() -> None:
    model = build_model(config("MODEL.DETR.POSITION_EMBEDDING", "learned"))
    assert "detr.backbone.1.row_embed.weight" in model.state_dict()
    trained_on(model, [record((64, 96), 2)])


def test_the_published_normalisation() -> None:
    model = build_model(config())
    images = model.preprocess_image([record((64, 96), 0), record((48, 64), 0)])
    assert isinstance(images, ImageList) and images.image_sizes == [(64, 96), (48, 64)]
    pixel = (record((48, 64), 0)["image"][:, 3, 5] - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(
        [58.395, 57.12, 57.375]
    )
    torch.testing.assert_close(images.tensor[1, :, 3, 5], pixel)
    assert images.tensor[1, :, 48:].abs().max() == 0
    assert not any("pixel" in name for name in model.state_dict())
