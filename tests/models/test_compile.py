"""--compile: the same function within rounding, in a number of graphs that does not grow with the sizes."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch._dynamo as dynamo

import main
from models.compilation import CANVAS_MULTIPLE, compile_model, graphs_compiled, warm_up
from tests import mask_model
from tests.helpers import TINY, Refused, run
from tests.reference.settings import build
from tests.stand_in import CPU, weights_of
from tests.test_main_flags import resolved
from util.amp import Precision
from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

FLAGS = f"{TINY} --backbone_stages 2 --dec_layers 1 --dropout 0"


def images(*sizes: tuple[int, int]) -> NestedTensor:
    return nested_tensor_from_tensor_list(mask_model.images(sizes))


# --- Without compiling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FLAGS, f"{FLAGS} --backbone_norm batch --dropout 0.1"])
@pytest.mark.parametrize("kind", ["off", "bf16"])
def test_warming_up_leaves_no_trace(flags: str, kind: str) -> None:
    model = build(flags, seed=0)[0]
    before, drawn = weights_of(model), torch.get_rng_state()
    warm_up(model, 2, Precision(kind, CPU))
    torch.testing.assert_close(weights_of(model), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_batches_are_rounded_up_and_evaluated_ones_are_not(coco_root: Path) -> None:
    words = ("--coco_path", coco_root, "--batch_size", 2)
    plain, rounded = (main.build_data_loaders(resolved(*words, *more)) for more in ((), ("--compile",)))
    assert plain[0] is not None and rounded[0] is not None
    for loader in (plain[0], rounded[0]):
        loader.dataset.set_epoch(0)  # type: ignore[attr-defined]
    for (one, _), (other, _) in zip(plain[0], rounded[0], strict=True):
        height, width = other.tensors.shape[2:]
        assert height % CANVAS_MULTIPLE == width % CANVAS_MULTIPLE == 0
        assert one.sizes == other.sizes
        padded, unpadded = one.to(CPU), other.to(CPU)
        h, w = padded.tensors.shape[2:]
        assert torch.equal(unpadded.tensors[:, :, :h, :w], padded.tensors)
        assert torch.equal(unpadded.mask[:, :h, :w], padded.mask)
        assert unpadded.mask[:, h:].all() and unpadded.mask[:, :, w:].all()
    for (one, _), (other, _) in zip(plain[1], rounded[1], strict=True):
        assert one.tensors.shape == other.tensors.shape


def test_names_stay_and_copies_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.compilation._try_out", lambda device: None)
    for flags in (FLAGS, f"{FLAGS} --backbone_stages 4 --masks --hidden_dim 128 --nheads 8"):
        model = build(flags, seed=0)[0]
        names = list(model.state_dict())
        compile_model(model, CPU)
        detector = getattr(model, "detr", model)
        assert list(model.state_dict()) == names
        parts = detector.backbone[0].body, detector.transformer
        assert all(part._compiled_call_impl is not None for part in parts)
        assert copy.deepcopy(detector.transformer)._compiled_call_impl is None


def test_a_machine_that_cannot_compile_is_reported_with_what_it_lacks(
    coco_root: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def broken(function: object) -> object:
        def fails(*args: object) -> None:
            raise RuntimeError(
                "backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found"
            )

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="No working C.. compiler found.*install a C.. compiler"):
        compile_model(build(FLAGS, seed=0)[0], CPU)
    refused(
        ["--coco_path", coco_root, "--epochs", 1, "--compile"], "--compile", "compiler", "apt install g++"
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", [FLAGS, f"{FLAGS} --backbone_norm batch"])
def test_nothing_breaks_a_graph(flags: str) -> None:
    """One for the backbone and one for the transformer: a call that dynamo cannot follow would make more."""
    model = build(flags, seed=0)[0].train()
    dynamo.reset()
    dynamo.utils.counters.clear()
    for part in (model.backbone[0].body, model.transformer):
        part.compile(dynamic=True, backend="eager")
    model(images((128, 192), (192, 128)))
    assert not dynamo.utils.counters["graph_break"]
    assert graphs_compiled() == 2


# --- In earnest ------------------------------------------------------------------------------------------


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.slow
def test_outputs_and_gradients_agree_and_graphs_are_few() -> None:
    plain = build(FLAGS, seed=0)[0].train()
    compiled = copy.deepcopy(plain)
    compile_model(compiled, CPU)
    assert graphs_compiled() == 0, "the trial does not count"
    warm_up(compiled, 2, Precision("off", CPU))
    made = graphs_compiled()
    assert made == 2, "the backbone's and the transformer's"
    for sizes in (((64, 128), (128, 64)), ((128, 128), (128, 128)), ((192, 128), (64, 320))):
        gradients = []
        for model in (plain, compiled):
            model.zero_grad()
            out = model(images(*sizes))
            (out["pred_logits"].pow(2).sum() + out["pred_boxes"].pow(2).sum()).backward()
            flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            gradients.append((out["pred_logits"].detach(), out["pred_boxes"].detach(), torch.cat(flat)))
        assert all(relative(ours, exact) < 1e-4 for exact, ours in zip(*gradients, strict=True))
    assert graphs_compiled() == made, "training makes no graph after its start"
    for model in (plain, compiled):
        model.eval()
    with torch.no_grad():
        for sizes in (((64, 96), (97, 64)), ((131, 67), (64, 64)), ((65, 193), (300, 64))):
            exact, ours = plain(images(*sizes)), compiled(images(*sizes))
            for name in ("pred_logits", "pred_boxes"):
                assert relative(ours[name], exact[name]) < 1e-4
    assert graphs_compiled() <= made + 5, "for evaluation"


@pytest.mark.slow
def test_a_compiled_run_counts_its_graphs(coco_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The same graphs as above, mostly: they are made anew, but torch finds their kernels on the disk.
    torch._dynamo.reset()
    words = ("--backbone_stages", 2, "--dec_layers", 1, "--dropout", 0, "--epochs", 1, "--no_report")
    assert run("--coco_path", coco_root, *words, "--compile") == 0
    counted = re.search(r"^--compile: (\d+) graphs compiled$", capsys.readouterr().out, re.M)
    assert counted is not None and 2 <= int(counted[1]) <= 8
