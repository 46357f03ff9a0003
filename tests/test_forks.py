"""What forks of the published code, and notebooks, do with its parts: put in their own, and call ours."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import datasets.coco
import datasets.transforms as T
import engine
import main
from datasets import build_dataset
from models import build_model
from tests.helpers import ROOT, TINY, python
from tests.reference.settings import build as build_small
from tests.stand_in import CPU, make_batch, make_criterion, make_detector
from tests.test_contract import PUBLISHED_FLAGS
from util.errors import UserError
from util.flags import completed, get_args_parser
from util.misc import NestedTensor, init_distributed_mode, nested_tensor_from_tensor_list
from util.nested_tensor import collate_bytes


def published(**more: Any) -> Namespace:
    """What the published parser gives: fewer flags than ours."""
    return Namespace(**{**PUBLISHED_FLAGS, "backbone": "resnet18", "device": "cpu", **more})


# --- Settings ------------------------------------------------------------------------------------------


def test_published_settings_build_model_and_data(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.backbone._load_weights", lambda *_: None)  # nothing is fetched
    args = published(coco_path=str(coco_root))
    before = vars(args).copy()
    model, criterion, postprocessors = build_model(args)
    assert len(model.state_dict()["class_embed.bias"]) == 92 and set(postprocessors) == {"bbox"}
    assert vars(args) == before, "settings of others are left alone"
    build_model(vars(args))  # as this project's checkpoints hold them
    assert len(build_dataset("val", args)) == 4
    init_distributed_mode(args)
    assert args.distributed is False


class DataOfAFork(torchvision.datasets.CocoDetection):
    """Tells what the published data set tells: its length, its items, and `coco`."""

    def __init__(self, image_set: str, args: Namespace) -> None:
        self.items = BUILD(image_set, args)
        self.coco = self.items.coco

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


BUILD = datasets.coco.build


def test_main_with_settings_data_and_loops_of_a_fork(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = engine.train_one_epoch, engine.evaluate
    monkeypatch.setattr(datasets.coco, "build", DataOfAFork)
    monkeypatch.setattr(
        engine, "train_one_epoch", lambda m, c, data, o, d, e, x=0: train(m, c, data, o, d, e, x)
    )
    monkeypatch.setattr(engine, "evaluate", lambda m, c, p, data, b, d, out: test(m, c, p, data, b, d, out))
    ours = vars(get_args_parser().parse_args(TINY.split()))
    keep = {name: ours[name] for name in (*PUBLISHED_FLAGS, "backbone_weights", "scales", "eval_scale")}
    args = Namespace(**keep | {"coco_path": str(coco_root), "output_dir": str(tmp_path), "epochs": 1})
    main.main(args)
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint.pth", "log.txt"}
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="^--ema: .*after_step"):
        main.main(Namespace(**{**vars(args), "ema": 0.5, "output_dir": ""}))


def test_a_device_that_is_left_open_is_one() -> None:
    args = get_args_parser().parse_args([])
    assert torch.device(args.device).type == "cuda"  # as published
    assert completed(args).device is args.device
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    _, criterion, _ = build_model(get_args_parser().parse_args(TINY.replace("--device cpu", "").split()))
    assert criterion.empty_weight.device.type == kind


# --- Images --------------------------------------------------------------------------------------------

NORMALISED = T.Compose(
    [T.RandomResize([64]), T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)


def test_images_that_are_normalised_already_stay_as_they_are(
    coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own transforms in the place of make_coco_transforms."""
    monkeypatch.setattr(datasets.coco, "make_coco_transforms", lambda *args: NORMALISED)
    seen: list[Tensor] = []
    forward = engine._forward

    def watched(model: Any, criterion: Any, samples: NestedTensor, *rest: Any) -> Any:
        seen.append(samples.tensors)
        return forward(model, criterion, samples, *rest)

    monkeypatch.setattr(engine, "_forward", watched)
    args = main.get_args_parser().parse_args([*TINY.split(), "--coco_path", str(coco_root), "--epochs", "1"])
    main.main(args)
    expected = build_dataset("val", args)[0][0]
    assert any(torch.equal(batch[0], expected) for batch in seen)


def test_images_of_floats_go_the_published_road() -> None:
    images = [torch.rand(3, 30, 40), torch.rand(3, 32, 20)]
    samples, _ = collate_bytes([(image, {}) for image in images])
    expected = nested_tensor_from_tensor_list(images)
    for found, wanted in zip(samples.decompose(), expected.decompose(), strict=True):
        assert torch.equal(found, wanted)
    wide, _ = collate_bytes([(image, {}) for image in images], multiple=32)
    assert wide.tensors.shape == (2, 3, 32, 64) and torch.equal(wide.tensors[..., :40], expected.tensors)
    assert bool(wide.mask[:, :, 40:].all())
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.uint8"):
        collate_bytes([(images[0], {}), (images[1].byte(), {})])


@pytest.mark.parametrize("change", ["edited", "replaced", "moved"])
def test_a_mask_that_is_changed_afterwards_counts(change: str) -> None:
    model = build_small(TINY, 0)[0].eval()
    image = torch.rand(3, 64, 128)
    batch = nested_tensor_from_tensor_list([image])
    mask = torch.zeros(1, 64, 128, dtype=torch.bool)
    mask[..., 64:] = True
    if change == "replaced":
        batch.mask = mask
    else:
        batch.decompose()[1][..., 64:] = True
    batch = batch.to("cpu") if change == "moved" else batch
    with torch.no_grad():
        found, expected = model(batch), model(NestedTensor(batch.tensors, mask))  # in one memory layout
    assert torch.equal(found["pred_logits"], expected["pred_logits"])


# --- Parts of the model --------------------------------------------------------------------------------


def test_inside_a_project_that_has_models_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "detr").symlink_to(ROOT)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    script = (
        "import sys; sys.path.append('detr'); from detr.models.detr import build, SetCriterion; import models"
    )
    script += f"; build({vars(get_args_parser().parse_args(TINY.split()))}); print(models.__file__)"
    done = python("-c", script, cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path / "models" / "__init__.py")], done.stderr


# --- Parts of a step -----------------------------------------------------------------------------------


class CriterionOfAFork(nn.Module):
    """Adds a plain number, and a loss that is a vector of one."""

    weight_dict = {"loss_ce": 1.0, "loss_own": 2.0, "loss_plain": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.criterion = make_criterion()

    def forward(self, outputs: Any, targets: Any) -> dict[str, Any]:
        losses = self.criterion(outputs, targets)
        return {"loss_ce": losses["loss_ce"], "loss_own": losses["loss_ce"][None], "loss_plain": 0.5, "n": 3}


def test_a_criterion_may_give_numbers_and_vectors_of_one() -> None:
    model, batch = make_detector(), make_batch(3, 2, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stats = engine.train_one_epoch(model, CriterionOfAFork(), [batch], optimizer, CPU, 0)
    assert stats["loss_own"] == pytest.approx(2 * stats["loss_ce"])
    assert stats["loss"] == pytest.approx(3 * stats["loss_ce"] + 0.5) and stats["n_unscaled"] == 3


def test_boxes_are_evaluated_without_the_resized_size() -> None:
    model, (samples, targets) = make_detector(), make_batch(3, 2, seed=0)
    bare = [{name: value for name, value in target.items() if name != "size"} for target in targets]
    from models.postprocess import PostProcess
    from tests.test_evaluate import ground_truth

    truth = ground_truth([(samples, targets)])
    _, evaluator = engine.evaluate(
        model, make_criterion(), {"bbox": PostProcess()}, [(samples, bare)], truth, CPU, ""
    )
    assert evaluator is not None and len(evaluator.img_ids) == len(targets)
