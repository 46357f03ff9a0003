"""The benchmarks: the reference computes what this project computes, and every stage runs and is reported.

No test looks at how long anything took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import floors, fresh, measure, memory, profile, report, run, stages, timing, workloads
from benchmarks.machine import Rates, describe
from benchmarks.peers import Peer, build_peer
from benchmarks.reference import engine
from benchmarks.reference.evaluation import panoptic_quality
from benchmarks.settings import Settings
from benchmarks.stages.masks import _classes
from datasets.panoptic_png import encode_png
from tests.datasets.panoptic_scenes import CATEGORIES, random_scene, straightforward_figures
from tests.helpers import ROOT
from util.errors import UserError


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(tmp_path_factory.mktemp("benchmarks"), tiny=True, threads=1)


def without_dropout(peer: Any) -> Any:
    for module in peer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return peer


@pytest.fixture(params=[False, True], ids=["boxes", "masks"])
def pair(request: pytest.FixtureRequest, settings: Settings) -> tuple[Any, Any, bool]:
    """This project's model and the reference with its weights, both without dropout."""
    ours, reference = (without_dropout(build_peer(s, settings, request.param)) for s in stages.BOTH)
    return ours, reference, request.param


def padded_images() -> list[torch.Tensor]:
    """Two pictures, the second of which is padded in a batch."""
    first, second = workloads.byte_images(2, 64, 96)
    return [first, second[:, :48, :70]]


# --- The reference computes what this project computes -------------------------------------------------


def test_reference_has_the_same_parameters(pair: tuple[Any, Any, bool]) -> None:
    ours, reference, _ = pair
    for values in ("state_dict", "named_parameters"):
        one, other = (dict(getattr(peer.model, values)()) for peer in (ours, reference))
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    trains = [[p.requires_grad for _, p in sorted(x.model.named_parameters())] for x in (ours, reference)]
    assert trains[0] == trains[1]


def test_reference_gives_the_same_outputs(pair: tuple[Any, Any, bool]) -> None:
    ours, reference, masks = pair
    found, expected = (peer.forward(peer.batch(padded_images())) for peer in (ours, reference))
    for key in ("pred_logits", "pred_boxes", "pred_masks")[: 2 + masks]:
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(found[key] / scale, expected[key] / scale, rtol=0, atol=2e-5)
    for a, b in zip(found["aux_outputs"], expected["aux_outputs"], strict=True):
        torch.testing.assert_close(a["pred_boxes"], b["pred_boxes"], rtol=0, atol=1e-5)


def test_reference_gives_the_same_losses_gradients_and_steps(pair: tuple[Any, Any, bool]) -> None:
    ours, reference, masks = pair
    targets = workloads.targets(2, 3, 64, 96, masks)
    losses = []
    for peer in (ours, reference):
        loss = peer.loss(peer.forward(peer.batch(padded_images())), peer.objects(targets))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    gradients = {name: p.grad for name, p in reference.model.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        expected = gradients[name]
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None and name != "mask_head.lay5.bias":  # the norm takes that away: rounding alone
            scale = expected.abs().max().item()
            assert (parameter.grad - expected).abs().max().item() <= 1e-3 * scale, name
    for peer in (ours, reference):
        peer.train_step(peer.batch(padded_images()), peer.objects(targets))
    after = dict(reference.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        # A first step of AdamW moves each weight by the learning rate in its gradient's direction.
        changed = (parameter - after[name]).abs() > 1e-6
        assert changed.float().mean() < 0.02 or name == "mask_head.lay5.bias", name


def test_a_reference_step_gives_every_loss_by_name(settings: Settings) -> None:
    ours, reference = (without_dropout(build_peer(side, settings)) for side in stages.BOTH)
    targets = workloads.targets(2, 3, 64, 96)
    outputs = ours.forward(ours.batch(padded_images()))
    expected = {name: value.item() for name, value in ours.criterion_(outputs, targets).items()}
    batch = reference.batch(padded_images())
    logged = engine.train_step(reference.model.train(), reference.optimizer, batch, targets)
    assert logged == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_reference_makes_the_same_panoptic_pictures(settings: Settings) -> None:
    results = []
    for side in stages.BOTH:
        peer = build_peer(side, settings, masks=True)
        results.append(peer.panoptic(peer.batch(workloads.byte_images(1, 64, 96)), (64, 96))[0])
    assert len(results[0]["segments_info"]) >= 4
    assert (_classes(results[0]) != _classes(results[1])).mean() < 0.002
    for one, other in zip(*(result["segments_info"] for result in results), strict=True):
        assert (one["category_id"], one["isthing"]) == (other["category_id"], other["isthing"])
        assert one["area"] == pytest.approx(other["area"], abs=10)


def test_reference_drops_small_segments_as_ours(settings: Settings) -> None:
    """Stuff that is merged, and a segment of 4 pixels, which the published rule answers by not merging."""
    from benchmarks.reference import postprocess
    from models.postprocess import PostProcessPanoptic

    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(1, 6, 16, 24, generator=generator)
    masks[0, 5] = -20.0
    masks[0, 5, 3, 4] = 30.0
    logits = torch.zeros(1, 6, 10)
    for query, label in enumerate((1, 7, 7, 2, 8, 3)):
        logits[0, query, label] = 15.0
    outputs = {"pred_logits": logits, "pred_masks": masks}
    is_thing = {label: label < 5 for label in range(10)}
    size = (64, 96)
    (found,) = PostProcessPanoptic(is_thing)(outputs, [size], [(32, 48)])
    (expected,) = postprocess.panoptic(outputs, [size], [(32, 48)], is_thing)
    assert found["segments_info"] == expected["segments_info"]
    assert (_classes(found) == _classes(expected)).all()


@pytest.mark.parametrize("name", ["loading", "loading-masks", "dataset", "dataset-masks", "coco", "pq"])
def test_data_and_evaluation_agree(name: str, settings: Settings) -> None:
    stage = stages.all_stages()[name]
    works = [stage.build(settings, side) for side in stages.BOTH]
    results = [work.run(*([work.before()] if work.before else [])) for work in works]
    assert stage.difference is not None
    assert stage.difference(*results) <= stage.tolerance


def test_a_difference_is_seen(settings: Settings) -> None:
    stage = stages.all_stages()["loading-masks"]
    work = stage.build(settings, "ours")
    assert work.before is not None and stage.difference is not None
    batches = work.run(work.before())
    changed = [(pixels + 0.2, targets) for pixels, targets in batches]
    assert stage.difference(changed, batches) > stage.tolerance
    changed = [(pixels, [{**t, "masks": ~t["masks"]} for t in targets]) for pixels, targets in batches]
    assert stage.difference(changed, batches) == float("inf")


def test_reference_panoptic_quality_is_the_definitions(tmp_path: Path) -> None:
    """On scenes with crowds, void and unknown ids, by one process and by two."""
    scenes = [random_scene(seed) for seed in range(12)]
    sides: dict[str, list[dict[str, Any]]] = {"truth": [], "found": []}
    for number, scene in enumerate(scenes):
        for side, ids, records in zip(sides, scene[:2], scene[2:], strict=True):
            folder = tmp_path / side
            folder.mkdir(exist_ok=True)
            (folder / f"{number}.png").write_bytes(encode_png(ids))
            sides[side].append({"image_id": number, "file_name": f"{number}.png", "segments_info": records})
    for side, entries in sides.items():
        content = {"annotations": entries, "categories": CATEGORIES}
        (tmp_path / f"{side}.json").write_text(json.dumps(content))
    expected = straightforward_figures(scenes)
    truth, predicted = ((tmp_path / f"{side}.json", tmp_path / side) for side in sides)
    found = panoptic_quality(*truth, *predicted)
    assert found == pytest.approx({name: expected[name]["pq"] for name in found}, abs=1e-12)


# --- transformers --------------------------------------------------------------------------------------


def test_transformers_has_the_same_criterion(settings: Settings) -> None:
    pytest.importorskip("transformers")
    ours, theirs = (build_peer(side, settings) for side in ("ours", "hf"))
    logits, boxes = workloads.layer_outputs(2, 2, 12, 91, "cpu")
    targets = workloads.targets(2, 3, 64, 96)
    losses = [peer.criterion(logits, boxes, peer.objects(targets)).item() for peer in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_transformers_trains_as_much(settings: Settings) -> None:
    """Left alone it freezes the whole backbone."""
    pytest.importorskip("transformers")
    counts = []
    for side in ("ours", "hf"):
        peer: Any = build_peer(side, settings)
        counts.append(sum(p.numel() for p in peer.model.parameters() if p.requires_grad))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_transformers_does_what_a_peer_does(masks: bool, settings: Settings) -> None:
    pytest.importorskip("transformers")
    peer: Peer = build_peer("hf", settings, masks)
    batch = peer.batch(padded_images())
    peer.train_step(batch, peer.objects(workloads.targets(2, 3, 64, 96, masks)))
    logits, boxes = peer.infer(batch)
    assert logits.shape[:2] == boxes.shape[:2] == (2, 12)
    assert [len(found["scores"]) for found in peer.detections(logits, boxes, torch.tensor([[64, 96]] * 2))]
    if masks:
        (found,) = peer.panoptic(peer.batch(workloads.byte_images(1, 64, 96)), (64, 96))
        assert found["segmentation"].shape == (64, 96) and found["segments_info"]


def test_without_transformers_the_message_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install -r benchmarks/requirements.txt"):
        build_peer("hf", settings)


# --- Measuring -----------------------------------------------------------------------------------------


def test_sides_take_turns_and_preparation_is_not_measured() -> None:
    calls: list[str] = []

    def clock(function: Any, *prepared: Any) -> tuple[float, Any]:
        calls.append(f"{function.__name__}{prepared}")
        return 1.0 + len(calls), function(*prepared)

    def a(value: int) -> int:
        return value + 1

    def b() -> int:
        return 2

    works = {"a": measure.Work(a, before=lambda: 41), "b": measure.Work(b)}
    found = measure.measure(works, 2, clock, shortest=0)  # type: ignore[arg-type]
    assert calls == ["a(41,)", "b()", "a(41,)", "b()", "a(41,)", "b()"]
    assert [found[side].result for side in "ab"] == [42, 2]
    assert found["a"].seconds == [4.0, 6.0] and found["b"].seconds == [5.0, 7.0]


def test_quick_work_is_repeated_within_a_round() -> None:
    calls = []
    found = measure.measure(
        {"a": measure.Work(lambda: calls.append(1))},
        1,
        lambda run, *prepared: (0.03, run()),  # type: ignore[arg-type]
        shortest=0.1,
    )
    assert len(calls) == 2 + 4
    assert found["a"].seconds == [pytest.approx(0.03)]


def test_ratios_are_of_medians_and_of_rounds() -> None:
    assert measure.Compared([1.0, 2.0, 4.0], [3.0, 8.0, 4.0]).ratios == (2.0, 1.0, 4.0)


def test_results_are_compared_in_float32_with_the_reference(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: Settings, side: str) -> measure.Work:
        return measure.Work(lambda: len(side), items=3)

    stage = stages.Stage("made-up", "", build, difference=lambda ours, theirs: theirs - ours)
    monkeypatch.setattr(stages, "all_stages", lambda: {"made-up": stage})
    found = timing.compare("made-up", settings, "reference", 2)
    assert (found.items, found.difference) == (3, 5) and len(found.ours) == len(found.theirs) == 2
    assert timing.compare("made-up", replace(settings, amp="bf16"), "reference", 1).difference is None
    assert timing.compare("made-up", settings, "hf", 1).difference is None


def test_floors_count_operations_and_bytes() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    found = floors.floors(lambda: (a @ b).relu_(), Rates(1000.0, 500.0, 100.0))
    assert found.operations == 2 * 8 * 16 * 4
    assert found.bytes == 4 * (8 * 16 + 16 * 4 + 8 * 4) + 4 * 2 * 8 * 4
    assert found.of_operations == pytest.approx(found.operations / 1000)
    assert found.kernel_by_kernel == pytest.approx(max(1.024, 4 * (128 + 64 + 32) / 100) + 256 / 100)


def test_floors_count_an_expanded_tensor_and_a_view_once() -> None:
    one = torch.ones(1, 1)
    found = floors.floors(lambda: one.expand(10, 10).add(1.0), Rates(1.0, 1.0, 1.0))
    assert found.bytes == 4 + 4 * 100


def test_floors_count_this_projects_linear_maps() -> None:
    x, layer = torch.ones(3, 2, 8), torch.nn.Linear(8, 5)
    found = floors.floors(lambda: layer(x).sum().backward(), Rates(1.0, 1.0, 1.0))
    assert found.operations == 2 * (2 * 6 * 8 * 5)  # forward, and the weight's gradient


def test_floors_see_the_backward_of_convolutions() -> None:
    x, weight = torch.ones(1, 2, 8, 8), torch.ones(3, 2, 3, 3, requires_grad=True)
    found = floors.floors(
        lambda: torch.nn.functional.conv2d(x, weight, padding=1).sum().backward(), Rates(1.0, 1.0, 1.0)
    )
    assert found.operations == 2 * 2 * (2 * 3 * 9 * 64)  # forward, and the weight's gradient


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_memory_is_the_growth_over_what_was_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def build(_: Settings, side: str) -> measure.Work:
        held.append(np.ones(40 << 17))  # 40 MiB that do not count

        def work() -> None:
            np.ones(64 << 17)  # 64 MiB, twice one after the other

        return measure.Work(work)

    stage = stages.Stage("made-up", "", build, unit="bytes")
    monkeypatch.setattr(stages, "all_stages", lambda: {"made-up": stage})
    grown = memory.measure_here("made-up", "ours", settings)
    assert 60 << 20 < grown < 80 << 20


# --- Commands ------------------------------------------------------------------------------------------

QUICK = [name for name, stage in stages.all_stages().items() if stage.unit == "seconds" and name != "startup"]


@pytest.mark.parametrize("name", QUICK)
def test_every_stage_runs(name: str, settings: Settings) -> None:
    row = run.measure_stage(stages.all_stages()[name], settings, "reference", None)
    assert row.ours > 0 and row.theirs > 0
    assert row.equal in (True, None), f"the results differ by {row.difference}"
    assert name in report.line(row)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(stages.all_stages()) - set(QUICK)))
def test_every_stage_in_processes_of_its_own_runs(name: str, settings: Settings) -> None:
    row = run.measure_stage(stages.all_stages()[name], settings, "reference", None)
    assert row.ours > 0 and row.theirs > 0


@pytest.mark.slow
def test_a_fresh_process_finds_the_same(settings: Settings) -> None:
    here, fresh = (
        f("criterion", settings, "reference", 2) for f in (timing.compare, timing.in_fresh_process)
    )
    assert (fresh.items, fresh.difference) == (here.items, pytest.approx(here.difference))
    assert len(fresh.ours) == len(fresh.theirs) == 2
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks.timing .* nothing reference 1: .*KeyError"):
        timing.in_fresh_process("nothing", settings, "reference", 1)


def test_what_a_fresh_process_says_is_passed_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = "import sys\nfrom benchmarks.fresh import answer\nfrom util.errors import UserError\n"
    script += "def f(settings, word):\n    if word == 'mistake': raise UserError('install it')\n"
    script += "    return [str(settings.folder), word]\nsys.exit(answer(f))"
    (tmp_path / "made_up.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = replace(settings, folder=Path("here"))
    assert fresh.call("made_up", settings, "word") == [str(tmp_path / "here"), "word"]
    with pytest.raises(UserError, match="^install it$"):
        fresh.call("made_up", settings, "mistake")
    with pytest.raises(RuntimeError, match="no_module.*No module named"):
        fresh.call("no_module", settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, stage in stages.all_stages().items() if "hf" in stage.sides])
def test_every_stage_against_transformers_runs(name: str, settings: Settings) -> None:
    pytest.importorskip("transformers")
    row = run.measure_stage(stages.all_stages()[name], settings, "hf", None)
    assert row.ours > 0 and row.theirs > 0 and row.target is None


def test_a_run_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["criterion", "inference", "--tiny", "--threads", "1", "--folder", str(tmp_path / "inputs")]
    words += ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    assert run.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [text.split()[0] for text in printed[1:4]] == ["stage", "inference", "criterion"]
    assert all(text.endswith("equal") for text in printed[2:4])
    assert printed[-1].startswith("inference") and "floor: operations" in printed[-2]
    content = json.loads((tmp_path / "out.json").read_text())
    assert set(content["stages"]) == {"inference", "criterion"}
    assert content["stages"]["criterion"]["ratio"] > 0 and content["stages"]["criterion"]["target"] is None
    assert content["floors"]["inference"]["operations"] > 0
    assert content["machine"]["torch"] == torch.__version__
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture))) > 10


def test_a_profile_names_the_costly_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        profile.main(["criterion", "--side", "reference", "--tiny", "--threads", "1", "--rows", "400"]) == 0
    )
    printed = capsys.readouterr().out
    assert "criterion, reference" in printed and "aten::_cdist_forward" in printed


@pytest.mark.parametrize(
    "words, fragment",
    [
        (["nothing"], "stage nothing: not one of all, startup, loading"),
        (["coco", "--against", "hf"], "stage coco: hf has no counterpart"),
        (["criterion", "--tiny", "--json", "/nowhere/out.json"], "--json /nowhere/out.json"),
        (["criterion", "--tiny", "--plot", "/nowhere/out.png"], "--plot /nowhere/out.png"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(words) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ") and fragment in message


def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run.main(["criterion", "--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_without_names_the_stages_with_a_target_are_chosen() -> None:
    chosen = run.choose([], "reference")
    assert len(chosen) == 14 and all(stage.target is not None for stage in chosen)
    assert {stage.name for stage in run.choose(["all"], "hf")} < set(stages.all_stages())


def make_row(settings: Settings, ratio: float, difference: float | None) -> report.Row:
    stage = stages.Stage(
        "made-up",
        "",
        lambda *_: measure.Work(list),
        target=2.0,
        tolerance=0.1,
    )
    return report.make_row(stage, settings, "reference", measure.Compared([1.0], [ratio], 1, difference))


def test_verdicts(settings: Settings, tmp_path: Path) -> None:
    full = Settings(tmp_path)
    assert (make_row(full, 2.5, 0.05).met, make_row(full, 1.5, 0.05).met) == (True, False)
    assert (make_row(full, 2.5, 0.05).equal, make_row(full, 2.5, 0.2).equal) == (True, False)
    assert make_row(settings, 1.5, 0.05).met is None  # a trial has no target
    assert make_row(full, 2.5, None).equal is None  # other numbers are wanted
    assert "NOT" in report.line(make_row(full, 1.5, 0.2)) and "OFF 2.0e-01" in report.line(
        make_row(full, 1.5, 0.2)
    )


def test_a_missed_target_or_a_difference_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ratio, difference, status in ((2.5, 0.05, 0), (1.5, 0.05, 1), (2.5, 0.2, 1)):
        row = make_row(Settings(tmp_path), ratio, difference)
        monkeypatch.setattr(run, "measure_stage", lambda *_, row=row: row)
        assert run.main(["criterion"]) == status


def test_the_machine_is_described() -> None:
    facts = describe("cpu", 0)
    assert facts["cores"] >= 1 and facts["processor"] and facts["torch"] == torch.__version__


def test_help_is_quick() -> None:
    """Neither the command nor its list of flags needs torch."""
    code = (
        "import sys, benchmarks.run, benchmarks.profile\n"
        "benchmarks.run.get_parser(); benchmarks.profile.get_parser()\n"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode == 0


def test_the_trials_flags_are_main_pys(settings: Settings) -> None:
    for masks in (False, True):
        args = settings.flags(masks=masks)
        assert isinstance(args, argparse.Namespace) and args.masks is masks and args.num_classes
