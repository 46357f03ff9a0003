"""Starting from other weights: what fits is loaded, the rest is reported."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.finetune import (
    NO_OBJECT,
    HeadRow,
    class_names,
    detector_state,
    load_for_finetuning,
    match_classes,
)
from tests.helpers import TINY_MODEL, Prepared, load, run
from tests.reference.settings import build
from util.errors import UserError


def tiny(flags: str = "") -> Any:
    return build(f"{TINY_MODEL} {flags}", seed=0)[0]


HEAD = ("class_embed.weight", "class_embed.bias")


def filled(flags: str) -> Any:
    """A model that is 7 everywhere, so that what stays as it was is seen."""
    model = tiny(flags)
    for parameter in model.parameters():
        parameter.data.fill_(7)
    return model


def test_what_fits_is_loaded_and_of_a_head_without_names_only_no_object() -> None:
    old, new = tiny("--num_classes 9"), filled("--num_classes 4")
    report = load_for_finetuning(new, old.state_dict(), "old.pth")
    assert set(report.partly) == set(HEAD) and "names of the classes are not known" in str(report)
    assert not report.fresh and not report.unused
    ours, theirs = new.state_dict(), old.state_dict()
    for name in report.loaded:
        assert torch.equal(ours[name], theirs[name]), name
    for name in HEAD:
        assert (ours[name][:4] == 7).all() and torch.equal(ours[name][4], theirs[name][9])


def test_a_head_of_the_same_size_without_names_is_loaded_as_it_is() -> None:
    old, new = tiny("--num_classes 4"), filled("--num_classes 4")
    for names in ({}, {1: "bolt"}):
        report = load_for_finetuning(new, old.state_dict(), "old.pth", names)
        assert not report.partly and not report.head
        assert torch.equal(new.class_embed.weight, old.class_embed.weight)


def test_a_head_of_another_width_starts_anew() -> None:
    old, new = tiny("--hidden_dim 64"), filled("")
    report = load_for_finetuning(new, old.state_dict(), "old.pth", {1: "bolt"}, {1: "bolt"})
    assert set(HEAD) <= set(report.fresh) and not report.head
    assert (new.class_embed.weight == 7).all()


# ---- the head, by name

OLD = {1: "bolt", 2: "traffic light", 5: "Gear", 7: "gear"}
NEW = {0: "wheel", 1: "Traffic_Light", 3: "GEAR", 4: "trafficlight", 6: "bolts"}
CARRIED = {1: 2, 3: 5, 4: 2, 8: 9}  # new id -> old id, no-object the last of each


def test_classes_are_matched_by_name() -> None:
    rows = match_classes(NEW, OLD, 8, 9)
    assert [row.name for row in rows] == [*NEW.values(), NO_OBJECT]
    assert {row.new_id: row.old_id for row in rows if row.old_id is not None} == CARRIED
    beyond = match_classes({1: "a", 2: "b"}, {1: "b", 9: "a"}, 2, 9)  # neither head has a row for 2 and 9
    assert beyond == [HeadRow("a", 1, None), HeadRow(NO_OBJECT, 2, 9)]
    assert match_classes({1: "_"}, {1: " "}, 2, 2)[0].old_id is None  # nothing is left to compare


@pytest.mark.parametrize("masks", ["", "--hidden_dim 128 --nheads 8 --masks"])
def test_the_head_is_carried_over_by_name(masks: str) -> None:
    old, new = tiny(f"--num_classes 9 {masks}"), filled(f"--num_classes 8 {masks}")
    report = load_for_finetuning(new, old.state_dict(), "old.pth", NEW, OLD)
    prefix = "detr." if masks else ""
    ours, theirs = new.state_dict(), old.state_dict()
    for name in HEAD:
        for row in range(9):
            start = theirs[prefix + name][CARRIED[row]] if row in CARRIED else torch.tensor(7.0)
            assert (ours[prefix + name][row] == start).all(), (name, row)
    assert report.partly[prefix + HEAD[0]] == "4 of 9 rows, by the name of the class"
    text = str(report).splitlines()
    table = {tuple(line.split()) for line in text}
    assert ("Traffic_Light", "2", "1", "carried") in table and ("wheel", "-", "0", "initialised") in table
    assert ("(no", "object)", "9", "8", "carried") in table
    assert text.index("  bolts               -       6  initialised") > 0


def test_the_same_classes_in_another_order_change_places() -> None:
    """Heads of one size, which fit, and would be wrong by index."""
    old, new = tiny("--num_classes 3"), filled("--num_classes 3")
    load_for_finetuning(new, old.state_dict(), "old.pth", {1: "nut", 2: "bolt"}, {1: "bolt", 2: "nut"})
    assert torch.equal(new.class_embed.weight[[2, 1, 3]], old.class_embed.weight[[1, 2, 3]])
    assert (new.class_embed.weight[0] == 7).all()


def test_the_same_classes_with_the_same_ids_are_loaded_whole() -> None:
    old, new = tiny("--num_classes 3"), filled("--num_classes 3")
    report = load_for_finetuning(
        new, old.state_dict(), "old.pth", {1: "Bolt", 2: "nut"}, {1: "bolt", 2: "nut"}
    )
    assert torch.equal(new.class_embed.weight, old.class_embed.weight) and not report.head


def test_long_tables_are_cut() -> None:
    names = {i: f"class {i}" for i in range(90)}
    old, new = tiny("--num_classes 90"), tiny("--num_classes 91")
    text = str(load_for_finetuning(new, old.state_dict(), "old.pth", names, names))
    assert "… and 51 more carried" in text and len(text.splitlines()) < 50


def bias(rows: int) -> dict[str, Any]:
    return {"model": {"class_embed.bias": torch.zeros(rows)}}


def test_the_names_of_a_checkpoint() -> None:
    assert class_names({**bias(92), "categories": {"3": "bolt"}}) == {3: "bolt"}
    assert class_names(bias(92))[3] == "car"  # published
    for unlike in (["bolt"], {"bolt": 3}, {None: "bolt"}):
        assert class_names({**bias(92), "categories": unlike, "args": 5})[3] == "car"
    assert class_names(bias(251))[187] == class_names(bias(202))[187] == "sky-other-merged"
    assert class_names({"detr.class_embed.bias": torch.zeros(251)})[1] == "person"  # a bare state_dict
    assert class_names({**bias(92), "args": Namespace(dataset_file="coco")})[90] == "toothbrush"
    assert class_names({**bias(92), "args": Namespace(dataset_file="custom")}) == {}
    assert class_names({**bias(92), "args": {"dataset_file": "custom"}}) == {}  # of a safetensors file
    assert class_names(bias(7)) == {} and class_names({"model": {"a": torch.zeros(1)}}) == {}


def test_position_tables_are_enlarged_and_cut() -> None:
    """Rows stand for cells counted from the top left, so they stay where they are."""
    small, large = tiny("--position_embedding learned"), filled("--position_embedding learned")
    for table in ("row_embed", "col_embed"):
        setattr(large.backbone[1], table, torch.nn.Embedding.from_pretrained(torch.full((80, 16), 7.0)))
    report = load_for_finetuning(large, small.state_dict(), "old.pth")
    assert report.partly["backbone.1.row_embed.weight"] == "the first 50 of 80 rows"
    assert torch.equal(large.backbone[1].col_embed.weight[:50], small.backbone[1].col_embed.weight)
    assert (large.backbone[1].row_embed.weight[50:] == 7).all()
    report = load_for_finetuning(small, large.state_dict(), "old.pth")
    assert report.partly["backbone.1.row_embed.weight"] == "the first 50 of 50 rows"


@pytest.mark.parametrize("queries", [4, 16])
def test_queries_are_carried_as_far_as_both_reach(queries: int) -> None:
    old, new = tiny(), tiny(f"--num_queries {queries}")
    new.query_embed.weight.data.fill_(7)
    report = load_for_finetuning(new, old.state_dict(), "old.pth")
    shared = min(queries, 10)
    assert torch.equal(new.query_embed.weight[:shared], old.query_embed.weight[:shared])
    assert (new.query_embed.weight[shared:] == 7).all()
    assert report.partly == {"query_embed.weight": f"the first {shared} of {queries} rows"}


def test_a_detector_starts_a_mask_model_and_the_reverse() -> None:
    widths = "--hidden_dim 128 --nheads 8 --dim_feedforward 32"
    detector, masks = tiny(widths), tiny(f"{widths} --masks")
    report = load_for_finetuning(masks, detector.state_dict(), "boxes.pth")
    assert all(not name.startswith("detr.") for name in report.fresh) and report.fresh
    report = load_for_finetuning(detector, masks.state_dict(), "masks.pth")
    assert not report.fresh
    assert set(detector_state(masks.state_dict())) == set(detector.state_dict())


def test_a_foreign_file_is_refused() -> None:
    with pytest.raises(UserError, match="--finetune other.pth: none of its tensors fits"):
        load_for_finetuning(tiny(), {"a": torch.zeros(3)}, "other.pth")


def test_fine_tuning_from_the_command_line(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    flags = ["--coco_path", prepared.root, "--epochs", 1, "--batch_size", 2, "--output_dir", tmp_path / "run"]
    start = ["--finetune", prepared.start, "--num_classes", 8, "--backbone_weights", "imagenet"]
    assert run(*flags, *start, "--lr", 0, "--lr_backbone", 0) == 0
    assert "in part  class_embed.weight: the row of no-object alone" in capsys.readouterr().out
    result, started = load(tmp_path / "run" / "checkpoint.pth"), load(prepared.start)
    assert result["epoch"] == 0
    assert torch.equal(result["model"]["query_embed.weight"], started["model"]["query_embed.weight"])
    assert not (tmp_path / "empty").exists()  # no ImageNet weights were fetched


def test_classes_keep_their_rows_from_the_command_line(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data's classes are bolt 1, nut 2 and gear 5; the checkpoint knows two of them by other ids."""
    start = {**load(prepared.start), "categories": {2: "NUT", 3: "washer", 4: "bolt"}}
    torch.save(start, tmp_path / "start.pth")
    flags = ["--coco_path", prepared.root, "--epochs", 1, "--batch_size", 2, "--output_dir", tmp_path / "run"]
    assert run(*flags, "--finetune", tmp_path / "start.pth", "--lr", 0, "--lr_backbone", 0) == 0
    table = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    rows = {("bolt", "4", "1", "carried"), ("nut", "2", "2", "carried"), ("gear", "-", "5", "initialised")}
    assert rows <= table
    old, new = start["model"]["class_embed.weight"], load(tmp_path / "run" / "checkpoint.pth")["model"]
    assert torch.equal(new["class_embed.weight"][[1, 2, 6]], old[[4, 2, 6]])
    assert not torch.equal(new["class_embed.weight"][5], old[5])
