"""The mask model: its head, what it stands on, freezing, errors, and training in two stages."""

from pathlib import Path

import pytest
import torch

from engine import train_one_epoch
from models.mask_head import MaskHeadSmallConv, MHAttentionMap
from models.segmentation import DETRsegm
from tests.helpers import load, read_log, run
from tests.mask_model import build, images, targets
from util.nested_tensor import nested_tensor_from_tensor_list

# --- The head --------------------------------------------------------------------------------------------


def test_first_convolution_equals_that_of_concatenated_channels() -> None:
    """The image's share and the attention's share add up to what one convolution of both gives."""
    torch.manual_seed(0)
    head = MaskHeadSmallConv(136, [24, 16, 8], 128)
    x, maps = torch.randn(2, 128, 5, 7), torch.randn(2, 3, 8, 5, 7)
    image = torch.tensor([0, 0, 0, 1, 1, 1])
    whole = head.lay1(torch.cat([x[image], maps.flatten(0, 1)], dim=1))
    torch.testing.assert_close(head._first_layer(x, maps.flatten(0, 1), image), whole, rtol=1e-4, atol=1e-5)


def test_attention_map_is_one_distribution_over_all_heads_and_unpadded_cells() -> None:
    torch.manual_seed(0)
    attention = MHAttentionMap(16, 16, 4)
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[1, :, 3:] = True
    q, k = torch.randn(2, 6, 16), torch.randn(2, 16, 3, 5)
    maps = attention(q, k, mask)
    assert maps.shape == (2, 6, 4, 3, 5)
    torch.testing.assert_close(maps.flatten(2).sum(-1), torch.ones(2, 6))
    assert not maps[1, ..., 3:].any()
    # one value by hand: query 2 of image 0, head 1, cell (2, 4)
    scores = torch.einsum(
        "d,dhw->hw",
        attention.q_linear(q)[0, 2, 4:8] / 2,
        attention.k_linear(k[0].movedim(0, -1))[..., 4:8].movedim(-1, 0),
    )
    ratio = maps[0, 2, 1, 2, 4] / maps[0, 2, 1, 0, 0]
    torch.testing.assert_close(ratio, (scores[2, 4] - scores[0, 0]).exp())


# --- The model around it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", ["", "--backbone resnet34", "--backbone_stages 3", "--backbone resnet50 --dilation"]
)
def test_head_fits_every_backbone(flags: str) -> None:
    model, _, _ = build(flags)
    with torch.no_grad():
        masks = model.eval()([torch.randn(3, 57, 83)])["pred_masks"]
    assert masks.shape == (1, 9, 15, 21)  # a quarter, rounded up twice
    assert masks.isfinite().all()


def test_frozen_detector_does_not_train() -> None:
    """Neither its weights nor the statistics of its norms change; the head's weights do."""
    model, criterion, _ = build("--frozen_weights somewhere.pth --backbone_norm batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    batches = [(nested_tensor_from_tensor_list(images()), targets(3, 2))]
    train_one_epoch(model, criterion, batches, optimizer, torch.device("cpu"), 0, 0.1)
    assert model.training and not model.detr.backbone.training
    for name, value in model.state_dict().items():
        if name.startswith("detr."):
            assert torch.equal(value, before[name]), name
    assert sum(not torch.equal(v, before[k]) for k, v in model.state_dict().items()) == len(trained) == 32


def test_build_model_wires_masks() -> None:
    model, criterion, postprocessors = build("--mask_loss_coef 3 --dice_loss_coef 4")
    assert isinstance(model, DETRsegm) and not model.freeze_detr
    assert list(postprocessors) == ["bbox", "segm"]
    assert criterion.losses == ["labels", "boxes", "cardinality", "masks"]
    assert criterion.weight_dict["loss_mask"] == 3 and criterion.weight_dict["loss_dice"] == 4
    _, _, postprocessors = build("--dataset_file coco_panoptic")
    things = postprocessors["panoptic"].is_thing_map
    assert list(things) == list(range(250)) and [i for i in things if things[i]] == list(range(91))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hidden_dim 64", r"hidden_dim \(64\) must be a multiple of 128"),
        ("--hidden_dim 128 --nheads 4", r"hidden_dim \+ nheads \(132\) of 8"),
        ("--backbone_stages 2", "at least 3 stages, and this one has 2"),
    ],
)
def test_settings_that_do_not_fit(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(flags)


def test_backbone_without_inner_maps() -> None:
    detector = build()[0].detr
    detector.backbone[0].return_interm_layers = False
    with pytest.raises(ValueError, match="return_interm_layers=True"):
        DETRsegm(detector)


# --- Through main.py -------------------------------------------------------------------------------------


def test_two_stages(coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes first; then the mask head alone over the frozen detector; then evaluation."""
    boxes, masks, again, alone = (tmp_path / name for name in ("boxes", "masks", "again", "alone"))
    wide = "--hidden_dim 128 --nheads 8 --backbone_stages 3 --epochs 1"
    words = ["--coco_path", coco_root, *wide.split(), "--output_dir"]
    assert run(*words, boxes) == 0
    detector = load(boxes / "checkpoint.pth")["model"]
    capsys.readouterr()
    assert run(*words, masks, "--masks", "--frozen_weights", boxes / "checkpoint.pth") == 0
    assert "bbox_attention 33,024, mask_head 291,449\n" in capsys.readouterr().out  # all that trains
    trained = load(masks / "checkpoint.pth")["model"]
    for name, value in detector.items():
        assert torch.equal(trained[f"detr.{name}"], value), name
    line = read_log(masks)[-1]
    assert len(line["test_coco_eval_bbox"]) == len(line["test_coco_eval_masks"]) == 12
    assert line["n_parameters"] == 33_024 + 291_449
    curves = [torch.load(masks / "eval" / f"latest{k}.pth", weights_only=False) for k in ("", "_segm")]
    assert curves[0]["precision"].shape == curves[1]["precision"].shape
    # A mask model's checkpoint serves as a frozen detector as well.
    assert run(*words, again, "--masks", "--frozen_weights", masks / "checkpoint.pth") == 0
    assert run(*words, alone, "--masks", "--eval", "--resume", masks / "checkpoint.pth") == 0
    assert (alone / "eval.pth").exists() and (alone / "eval_segm.pth").exists()
