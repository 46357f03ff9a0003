"""Curves against hand computations; pictures that are written without a display and are not empty."""

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import python
from util.errors import UserError
from util.plot_utils import draw_curves, main, plot_logs, plot_precision_recall, smooth
from util.run_log import load_runs, read_evaluation, read_log


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    """Draw into memory, and close what was drawn."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    yield
    plt.close("all")


def record(epoch: int, evaluated: bool = True) -> dict:
    made: dict = {"train_lr": 1e-4, "epoch": epoch, "n_parameters": 10}
    for split, shift in (("train", 0.0), ("test", 0.5)):
        made[f"{split}_loss"] = 10 - epoch + shift
        made[f"{split}_class_error"] = 90 - 10 * epoch + shift
        made[f"{split}_loss_bbox_unscaled"] = 0.5 / (epoch + 1) + shift
    if evaluated:
        made["test_coco_eval_bbox"] = [0.1 * epoch, 0.15 * epoch] + [0.0] * 10
    return made


def write_run(folder: Path, epochs: int = 5, evaluated: bool = True, tail: str = "") -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps(record(epoch, evaluated)) + "\n" for epoch in range(epochs)]
    (folder / "log.txt").write_text("".join(lines) + tail)
    return folder


def assert_is_a_picture(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    assert min(pixels.shape) > 300
    assert pixels.std() > 10  # lines and letters on white
    assert (pixels > 250).mean() > 0.5


def lines_of(axis) -> list[tuple[str, list[float], list[float]]]:
    lines = []
    for line in axis.get_lines():
        epochs, values = line.get_data()
        lines.append((line.get_linestyle(), list(epochs), list(values)))
    return lines


def test_smooth_by_hand():
    values = np.array([1.0, 2.0, 4.0])
    half = smooth(values, com=1)  # weights 1, 1/2, 1/4
    expected = [1.0, (2 + 0.5 * 1) / 1.5, (4 + 0.5 * 2 + 0.25 * 1) / 1.75]
    np.testing.assert_allclose(half, expected, rtol=1e-12)
    np.testing.assert_array_equal(smooth(values, com=0), values)
    com = 3.0
    alpha = 1 / (1 + com)
    weights = [(1 - alpha) ** k for k in range(3)]
    last = sum(w * v for w, v in zip(weights, values[::-1], strict=True)) / sum(weights)
    assert smooth(values, com)[-1] == pytest.approx(last, rel=1e-12)


def test_smooth_treats_nan_as_absent():
    smoothed = smooth(np.array([math.nan, 1.0, math.nan, 3.0]), com=1)
    assert math.isnan(smoothed[0])
    np.testing.assert_allclose(smoothed[1:], [1.0, 1.0, (3 + 0.5 * 1) / 1.5])
    with pytest.raises(ValueError, match="negative"):
        smooth(np.zeros(2), com=-1)


def test_read_log_leaves_out_what_is_not_finished(tmp_path):
    run = write_run(tmp_path / "run", tail='{"train_lr": 0.0001, "train_lo')
    assert [epoch["epoch"] for epoch in read_log(run / "log.txt")] == [0, 1, 2, 3, 4]
    with open(run / "log.txt", "a") as log:
        log.write("\n" + json.dumps(record(5)) + "\n\n")
    with pytest.warns(UserWarning, match="line 6"):
        assert [epoch["epoch"] for epoch in read_log(run / "log.txt")] == [0, 1, 2, 3, 4, 5]


def test_read_log_lets_a_resumed_run_replace_what_it_repeats(tmp_path):
    run = write_run(tmp_path / "run")
    again = record(3)
    again["train_loss"] = -1.0
    with open(run / "log.txt", "a") as log:
        log.write(json.dumps(again) + "\n")
    epochs = read_log(run / "log.txt")
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2, 3]
    assert epochs[-1]["train_loss"] == -1.0


def test_missing_and_empty_logs_are_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "log.txt"))):
        plot_logs(tmp_path)
    with pytest.raises(UserError, match="nowhere/log.txt"):
        plot_logs(tmp_path / "nowhere")


OTHER_FILES = {
    "picture": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "output of training": b"Epoch: [0]  [ 0/10]  loss: 2.0\n" * 500,
    "args.json": json.dumps({"args": {"lr": 1e-4}, "git": "sha"}, indent=2).encode(),
    "annotations": json.dumps({"images": [], "annotations": []}).encode(),
    "list": b"[1, 2]\n[3]\n",
    "numbers": b"1\n2\n",
    "epochs by name": b'{"train_loss": 1.0, "epoch": "first"}\n',
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.filterwarnings("error")
def test_another_file_in_place_of_a_log_is_named(kind, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OTHER_FILES[kind])
    for draw in (plot_logs, lambda logs: draw_curves(logs, tmp_path / "c.png")):
        with pytest.raises(UserError, match=f"{path}: .*log of training|{path}: no line of it") as caught:
            draw([path])
        assert str(caught.value).endswith("pass the folder of a run, its --output_dir")


def test_nothing_to_draw_is_said(tmp_path):
    run = write_run(tmp_path / "run")
    for draw, what in (
        (lambda: plot_logs([]), "no run"),
        (lambda: draw_curves([], tmp_path / "c.png"), "no run"),
        (lambda: plot_precision_recall([]), "no evaluation"),
        (lambda: plot_logs(run, fields=()), "no field"),
        (lambda: draw_curves([run], tmp_path / "c.png", panels=[]), "no field"),
    ):
        with pytest.raises(UserError, match=f"{what} to draw"):
            draw()


@pytest.mark.parametrize("begun", [None, "", '{"train_lo'])
def test_a_run_in_its_first_epoch_is_left_out_beside_others(tmp_path, capsys, begun):
    young = tmp_path / "young"
    young.mkdir()
    if begun is not None:
        (young / "log.txt").write_text(begun)
    _, axs = plot_logs([young, write_run(tmp_path / "old")])
    assert [text.get_text() for text in axs[2].get_legend().get_texts()] == ["old"]
    assert f"{young / 'log.txt'}: " in capsys.readouterr().err
    with pytest.raises(UserError, match="yet"):
        plot_logs([young])
    with pytest.raises(UserError, match="nowhere"):  # not begun, but mistyped
        plot_logs([tmp_path / "nowhere", tmp_path / "old"])


def test_figures_in_another_form_are_left_out(tmp_path):
    """Of an evaluation of nothing, or of another program's log."""
    run = write_run(tmp_path / "run", epochs=1)
    with open(run / "log.txt", "a") as log:
        others: list[Any] = [None, [], 0.3, {"pq": 1}, "n/a"]
        for epoch, figures in enumerate(others, 1):
            log.write(
                json.dumps({"epoch": epoch, "test_coco_eval_bbox": figures, "test_PQ_all": figures}) + "\n"
            )
    _, axs = plot_logs(run, fields=("mAP", "PQ"))
    assert lines_of(axs[0]) == [("-", [0.0], [0.0])] and lines_of(axs[1]) == [("-", [4.0], [1.0])]


def test_a_panoptic_run_of_the_published_code(tmp_path):
    """Its log has NaN, masks and panoptic quality, and no entry that only this code writes."""
    quality = {"pq": 0.4, "sq": 0.7, "rq": 0.5, "n": 133}
    more = {"train_class_error": math.nan, "test_coco_eval_masks": [0.2] * 12}
    more |= {f"test_PQ_{kind}": quality for kind in ("all", "th", "st")}
    epochs = [record(epoch) | more for epoch in range(2)]
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "log.txt").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    _, axs = plot_logs([folder], fields=("loss", "mAP", "mask AP", "PQ"))
    assert [lines_of(axis)[0][2] for axis in axs] == [[10, 9], [0, 0.15], [0.2, 0.2], [0.4, 0.4]]
    assert_is_a_picture(draw_curves([folder], tmp_path / "c.png"))


def test_runs_of_the_same_name_are_kept_apart(tmp_path):
    folders = [write_run(tmp_path / which / "run") for which in ("a", "b")]
    assert [run.name for run in load_runs(folders)] == ["a/run", "b/run"]
    assert load_runs([folders[0] / "log.txt"])[0].name == "run"


def test_plot_logs_draws_train_solid_and_test_dashed(tmp_path):
    fig, axs = plot_logs([write_run(tmp_path / "one"), write_run(tmp_path / "two", epochs=3)])
    assert len(axs) == 3 and fig is axs[0].figure
    curves = lines_of(axs[0])  # class_error
    assert [(style, len(epochs)) for style, epochs, _ in curves] == [("-", 5), ("--", 5), ("-", 3), ("--", 3)]
    assert curves[0][2] == [90.0, 80.0, 70.0, 60.0, 50.0] and curves[1][2][0] == 90.5
    colours = [line.get_color() for line in axs[0].get_lines()]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [text.get_text() for text in axs[0].get_legend().get_texts()] == ["one", "two", "train", "test"]
    np.testing.assert_allclose(lines_of(axs[2])[0][2], [0.0, 0.15, 0.3, 0.45, 0.6])  # mAP is figure [1]
    assert "AP50" in axs[2].get_title(loc="left")


def test_plot_logs_takes_one_path_and_smooths(tmp_path):
    _, axs = plot_logs(write_run(tmp_path / "run"), fields=("loss",), ewm_col=1)
    np.testing.assert_allclose(lines_of(axs[0])[0][2], smooth(np.array([10.0, 9, 8, 7, 6]), 1))


def test_figures_of_epochs_without_evaluation_are_skipped(tmp_path):
    run = write_run(tmp_path / "run", epochs=2, evaluated=False)
    with open(run / "log.txt", "a") as log:
        for epoch, ap50 in ((2, 0.3), (3, -1), (4, 0.4)):  # -1: nothing to find in the data
            log.write(json.dumps({"epoch": epoch, "test_coco_eval_bbox": [0.1, ap50]}) + "\n")
    _, axs = plot_logs(run, fields=("mAP", "loss"))
    assert lines_of(axs[0]) == [("-", [2.0, 4.0], [0.3, 0.4])]
    assert lines_of(axs[1])[0][1] == [0.0, 1.0]


def test_runs_without_evaluation_say_so(tmp_path):
    _, axs = plot_logs(write_run(tmp_path / "run", evaluated=False))
    assert [text.get_text() for text in axs[2].texts] == ["no evaluation in the log"]


def test_an_unknown_field_is_named_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"'loss_cee'.*class_error.*loss_bbox_unscaled"):
        plot_logs(write_run(tmp_path / "run"), fields=("loss_cee",))


def write_evaluation(path: Path, precision: float = 0.8) -> Path:
    """What training stores: the `eval` dict of a COCOeval, here with three classes, one of them absent."""
    from pycocotools.cocoeval import Params

    params = Params("bbox")
    params.imgIds, params.catIds = list(np.unique([3, 4])), [1, 2, 5]
    shape = (10, 101, 3, 4, 3)
    stored = {
        "params": params,
        "counts": list(shape),
        "date": "2020-05-26 00:00:00",
        "precision": np.full(shape, precision),
        "recall": np.full((10, 3, 4, 3), 0.6),
        "scores": np.full(shape, 0.5),
    }
    for name in ("precision", "recall", "scores"):
        stored[name][..., 2, :, :] = -1
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(stored, path)
    return path


def test_precision_recall_curves(tmp_path, capsys):
    files = [write_evaluation(tmp_path / "run" / "eval" / name) for name in ("000.pth", "latest.pth")]
    fig, axs = plot_precision_recall(files)
    (_, recall, precision), _ = lines_of(axs[0])
    np.testing.assert_allclose(recall, np.linspace(0, 1, 101))
    np.testing.assert_allclose(precision, 0.8)  # the absent class does not count
    np.testing.assert_allclose(lines_of(axs[1])[1][2], 0.5)
    assert [text.get_text() for text in axs[0].get_legend().get_texts()] == ["000", "latest"]
    f1 = 2 * 0.8 * 0.6 / 1.4
    assert f"000: AP50 0.800, mean score 0.500, recall 0.600, F1 {f1:.3f}" in capsys.readouterr().out
    _, axs = plot_precision_recall(files[0], naming_scheme="exp_id")
    assert axs[0].get_legend().get_texts()[0].get_text() == "run"
    assert fig is not axs[0].figure
    with pytest.raises(ValueError, match="naming_scheme"):
        plot_precision_recall(files, naming_scheme="epoch")


def test_evaluations_are_read_without_running_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"precision": Attack()}, tmp_path / "attack.pth")
    torch.save({"model": 1}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes(write_evaluation(tmp_path / "whole.pth").read_bytes()[:2000])
    for name in ("attack", "other", "cut", "absent"):
        with pytest.raises(UserError, match=f"{name}.pth: not an evaluation"):
            read_evaluation(tmp_path / f"{name}.pth")
    assert not (tmp_path / "executed").exists()


def test_draw_curves_writes_a_picture(tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", epochs=1)]
    output = draw_curves(runs, tmp_path / "new" / "curves.png")
    assert output == tmp_path / "new" / "curves.png"
    assert_is_a_picture(output)
    with pytest.raises(UserError, match="curves.abc"):
        draw_curves(runs, tmp_path / "curves.abc")


def test_masks_and_panoptic_quality_get_panels_of_their_own(tmp_path):
    run = write_run(tmp_path / "run", epochs=2)
    small = draw_curves([run], tmp_path / "boxes.png")
    panoptic = record(2) | {"test_coco_eval_masks": [0.2] * 12, "test_PQ_all": {"pq": 0.3, "n": 4}}
    with open(run / "log.txt", "a") as log:
        log.write(json.dumps(panoptic) + "\n")
    large = draw_curves([run], tmp_path / "panoptic.png")
    assert Image.open(large).width > Image.open(small).width


def drawn_axes(monkeypatch, runs: list[Path], output: Path) -> list:
    """The axes of a picture, as it is written."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    draw_curves(runs, output)
    return figures[0].axes


@pytest.mark.parametrize("best", [(0.53, 0.524, 0.522), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 0.99)])
def test_numbers_of_equal_runs_are_not_printed_over_each_other(best, tmp_path, monkeypatch):
    runs = []
    for number, value in enumerate(best):
        runs.append(write_run(tmp_path / str(number), epochs=0))
        line: dict = {"epoch": 0, "train_loss": 2.0, "train_class_error": 50.0}
        line["test_coco_eval_bbox"] = [value, value, *[0.0] * 10]
        (runs[-1] / "log.txt").write_text(json.dumps(line) + "\n")
    axis = drawn_axes(monkeypatch, runs, tmp_path / "curves.png")[2]
    texts = sorted(axis.texts, key=lambda text: -text.xy[1])
    assert [text.get_text() for text in texts] == [f"{value:.3f}" for value in best]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(axis.bbox.y0 <= box.y0 < axis.bbox.y1 for box in boxes)
    points = [axis.transData.transform(text.xy)[1] for text in texts]
    assert 0 < boxes[0].y0 - points[0] < 20  # the best stands where it would stand alone


def test_dots_of_test_are_hollow(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", epochs=1)
    loss, *_ = drawn_axes(monkeypatch, [run], tmp_path / "curves.png")
    train, test = loss.get_lines()
    assert train.get_markerfacecolor() == train.get_color() == test.get_color()
    assert test.get_markerfacecolor() == "white" and test.get_marker() == train.get_marker() == "o"
    legend = loss.figure.legends[0].get_lines()[-2:]
    assert [line.get_markerfacecolor() for line in legend] == ["0.3", "white"]


def test_command_line_without_a_display(tmp_path):
    run = write_run(tmp_path / "run")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    words = ("-m", "util.plot_utils", run, "-o", tmp_path / "c.png", "--smooth", 1)
    done = python(*words, env=environment, check=True)
    assert done.stdout.strip() == str(tmp_path / "c.png")
    assert_is_a_picture(tmp_path / "c.png")


def test_command_line_reports_mistakes_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "c.png")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "nowhere" / "log.txt") in error
    assert not (tmp_path / "c.png").exists()
