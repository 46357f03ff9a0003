"""Meters against hand computations; when values leave the device; several processes; what is printed."""

import io
import math
import re
import statistics

import pytest
import torch

from tests.ranks import ranks
from util import meters as meters_module
from util.meters import AUXILIARY_AND_UNSCALED, MetricLogger, SmoothedValue


class Batches:
    """A loader of (samples, targets) with three images a batch, of known length."""

    def __init__(self, steps: int):
        self.steps = steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            yield torch.zeros(3, 3, 2, 2), ({}, {}, {})


@pytest.fixture
def reads(monkeypatch):
    """Names of the calls by which a tensor's values reach the host, as they happen."""
    seen = []
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def spy(self, *args, _name=name, _original=original, **kwargs):
            seen.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spy)
    return seen


def test_smoothed_value_statistics():
    meter = SmoothedValue(window_size=4)
    for value, n in ((9.0, 1), (1.0, 2), (4.0, 1), (2.0, 1), (3.0, 5)):
        meter.update(value, n)
    assert list(meter.deque) == [1.0, 4.0, 2.0, 3.0]
    assert meter.median == 2.0 == torch.tensor([1.0, 4.0, 2.0, 3.0]).median()  # the lower of 2 and 3
    assert meter.avg == 2.5
    assert meter.max == 4.0 and meter.value == 3.0
    assert meter.count == 10 and meter.total == 9 + 2 + 4 + 2 + 15
    assert meter.global_avg == 3.2
    assert str(meter) == "2.0000 (3.2000)"


def test_format_and_default_window():
    meter = SmoothedValue(fmt="{value:.1f}/{max:.1f}/{avg:.1f}")
    for value in range(25):
        meter.update(value)
    assert len(meter.deque) == 20
    assert str(meter) == "24.0/24.0/14.5"


def test_empty_meter_is_nan_and_zero_weight_does_not_count():
    meter = SmoothedValue()
    meter.update(100.0, n=0)
    for name in ("median", "avg", "global_avg", "max", "value"):
        assert math.isnan(getattr(meter, name))
    meter.update(float("nan"), n=0)
    meter.update(30.0, n=3)
    assert meter.global_avg == 30.0 and list(meter.deque) == [30.0]


def test_median_of_a_window_with_nan_is_nan():
    meter = SmoothedValue()
    for value in (1.0, float("nan"), 2.0):
        meter.update(value)
    assert math.isnan(meter.median)


def test_update_averages_numbers_and_tensors():
    logger = MetricLogger()
    values = [0.1, 0.7, 0.35, 0.9]
    for value in values:
        half = torch.tensor([value]).half()
        logger.update(loss=torch.tensor(value, requires_grad=True), lr=value, half=half)
    assert list(logger.meters) == ["loss", "lr", "half"]
    assert logger.loss.global_avg == pytest.approx(statistics.mean(values), rel=1e-7)
    assert logger.lr.global_avg == sum(values) / 4  # Python's own numbers are not rounded to float32
    assert logger.half.global_avg == pytest.approx(statistics.mean(values), rel=1e-3)
    assert logger.meters["loss"].count == 4


def test_values_wait_for_a_reader_and_come_in_one_transfer(reads):
    logger = MetricLogger()
    for step in range(7):
        logger.update(loss=torch.tensor(float(step)), other=torch.tensor(1.0))
        logger.update_vector(["a", "b", "c"], torch.full((3,), float(step)))
    assert reads == []
    assert logger.meters["b"].global_avg == 3.0
    assert reads == ["cpu", "tolist"]
    assert logger.loss.value == 6.0 and str(logger)
    assert reads == ["cpu", "tolist"]


def test_a_meter_held_by_the_caller_is_up_to_date():
    logger = MetricLogger()
    lr = SmoothedValue(window_size=1)
    logger.add_meter("lr", lr)
    logger.update(lr=torch.tensor(0.5))
    assert lr.value == 0.5
    held = logger.lr
    logger.update(lr=0.25)
    assert held.count == 2


def test_values_are_copied():
    logger = MetricLogger()
    vector, loss = torch.ones(2), torch.tensor(1.0)
    logger.update_vector(["a", "b"], vector)
    logger.update(loss=loss)
    vector.zero_(), loss.zero_()
    assert logger.a.value == 1.0 and logger.loss.value == 1.0


def test_pending_values_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(meters_module, "MAX_PENDING", 5)
    logger = MetricLogger()
    for step in range(12):
        logger.update_vector(["loss"], torch.tensor([float(step)]))
    assert len(logger._pending) == 2
    assert logger.loss.count == 12 and logger.loss.total == 66.0


def test_order_of_mixed_updates_is_kept():
    logger = MetricLogger()
    logger.update(x=1.0)
    logger.update(x=torch.tensor(2.0))
    logger.update_vector(["x"], torch.tensor([3], dtype=torch.int64))
    logger.meters["x"].update(4.0)
    logger.update(x=5)
    assert list(logger.x.deque) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_weights_per_name():
    logger = MetricLogger()
    for error, matched in ((50.0, 1), (100.0, 0), (20.0, 5)):
        logger.update({"class_error": matched}, class_error=torch.tensor(error), loss=error)
    for error, matched in ((50.0, 1), (100.0, 0), (20.0, 5)):
        values = torch.tensor([error, error])
        logger.update_vector(["vector_error", "vector_loss"], values, weights={"vector_error": matched})
    for name in ("class_error", "vector_error"):
        assert logger.meters[name].global_avg == (50 * 1 + 20 * 5) / 6
        assert list(logger.meters[name].deque) == [50.0, 20.0]
    assert logger.loss.global_avg == logger.vector_loss.global_avg == 170 / 3


def test_mistakes_are_named():
    logger = MetricLogger()
    with pytest.raises(ValueError, match="2 names"):
        logger.update_vector(["a", "b"], torch.zeros(3))
    with pytest.raises(AttributeError, match="nothing"):
        _ = logger.nothing
    with pytest.raises(RuntimeError):
        logger.update(loss=torch.zeros(2))


def test_state_continues_exactly_and_is_safe_to_load(tmp_path):
    def feed(logger, steps):
        for step in steps:
            values = torch.tensor([0.1 * step, 0.3 + step])
            logger.update_vector(["loss", "class_error"], values, weights={"class_error": step % 3})
            logger.update(lr=0.1 / (1 + step))

    def fresh():
        logger = MetricLogger()
        logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
        return logger

    whole, first, second = fresh(), fresh(), fresh()
    feed(whole, range(40))
    feed(first, range(23))
    torch.save(first.state_dict(), tmp_path / "state.pth")
    second.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert str(second) == str(first)
    feed(second, range(23, 40))
    assert second.state_dict() == whole.state_dict()
    assert list(second.meters) == list(whole.meters)
    assert str(second) == str(whole)


def synchronized():
    """What each process knows afterwards: the last rank has had no batch."""
    rank = torch.distributed.get_rank()
    logger = MetricLogger()
    if rank == 0:
        logger.update({"class_error": 3}, class_error=10.0, loss=torch.tensor(2.0))
        logger.update({"class_error": 0}, class_error=90.0, loss=torch.tensor(4.0))
    else:
        logger.update(only_here=7.0)
    single = SmoothedValue()
    single.update(rank + 1.0, n=rank + 1)
    single.synchronize_between_processes()
    calls = []
    gather = torch.distributed.all_gather_object

    def counted(*args) -> None:
        calls.append(1)
        gather(*args)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_gather_object", counted)
        logger.synchronize_between_processes()
        patch.setattr("sys.stdout", printed)
        list(logger.log_every(Batches(2), 1, "Test:"))
    averages = {name: (meter.count, meter.global_avg) for name, meter in logger.meters.items()}
    return averages, (single.count, single.global_avg), len(calls), printed.getvalue()


def test_two_processes_agree():
    gathered = ranks().run(2, synchronized)
    for averages, single, calls, _ in gathered:
        assert averages == {"class_error": (3, 10.0), "loss": (2, 3.0), "only_here": (1, 7.0)}
        assert list(averages) == ["class_error", "loss", "only_here"]
        assert single == (3, 5 / 3)
        assert calls == 1
    assert "Test:" in gathered[0][3] and gathered[1][3] == ""


def test_one_process_synchronizes_to_itself():
    logger = MetricLogger()
    logger.update(loss=torch.tensor(2.0))
    logger.update(loss=3.0)
    logger.synchronize_between_processes()
    assert logger.loss.count == 2 and logger.loss.global_avg == 2.5


TERMS = ["loss", "class_error", "loss_ce", "loss_giou", "loss_ce_0", "loss_bbox_unscaled"]
TERMS += ["loss_giou_3_unscaled"]


def run_loop(logger, iterable, print_freq=10, **kwargs):
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    for _ in logger.log_every(iterable, print_freq, "Epoch: [3]", **kwargs):
        logger.update_vector(TERMS, torch.arange(7.0))
        logger.update(lr=1e-4, acc_5=0.5)


def test_lines_without_a_terminal(capsys):
    run_loop(MetricLogger(delimiter="  ", hidden=AUXILIARY_AND_UNSCALED), Batches(25))
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line[:19] for line in lines] == [f"Epoch: [3]  [{step:2}/25]" for step in (1, 10, 20, 25)]
    for line in lines:
        assert "lr: 0.000100" in line and "loss: 0.0000 (0.0000)" in line and "acc_5: 0.5" in line
        assert "class_error: 1.0000" in line and "loss_ce: 2.0" in line and "loss_giou: 3.0" in line
        assert "_unscaled" not in line and "loss_ce_0" not in line
        for pattern in (r"eta: 0:00:0\d", r"images/s: \d+\.\d", r"time: 0\.\d{4}", r"data: 0\.\d{4}"):
            assert re.search(pattern, line)
        (megabytes,) = re.findall(r"max mem: (\d+)$", line)
        assert 50 < int(megabytes) < 200_000  # a process that holds torch
    assert re.fullmatch(r"Epoch: \[3\] Total time: 0:00:0\d \(0\.\d{4} s / it\)", summary)


def test_every_meter_is_shown_unless_hidden(capsys):
    run_loop(MetricLogger(), Batches(1))
    line = capsys.readouterr().out.splitlines()[0]
    assert all(f"\t{name}: " in line for name in TERMS)


def test_values_are_read_only_at_lines(reads, capsys):
    logger = MetricLogger()
    seen = []
    for step, _ in enumerate(logger.log_every(Batches(20), 10), 1):
        logger.update_vector(["loss"], torch.ones(1))
        seen.append((step, reads.count("cpu")))
    assert [count for _, count in seen] == [0] + [1] * 9 + [2] * 10
    assert reads.count("cpu") == 3


def test_an_interrupted_epoch_goes_on_counting(capsys):
    run_loop(MetricLogger(), Batches(4), print_freq=2, start=7)
    out = capsys.readouterr().out
    assert re.findall(r"\[ ?(\d+)/11\]", out) == ["8", "10", "11"]
    run_loop(MetricLogger(), iter(Batches(2)), start=7, total=9)
    assert re.findall(r"\[(\d+)/9\]", capsys.readouterr().out) == ["8", "9"]


def test_iterables_of_unknown_length_and_empty_ones(capsys):
    run_loop(MetricLogger(), (step for step in range(3)), print_freq=2)
    out = capsys.readouterr().out
    assert (
        re.findall(r"\]\t\[(\d+)\]\t", out) == ["1", "2", "3"] and "eta" not in out and "images/s" not in out
    )
    assert list(MetricLogger().log_every([], 10)) == []
    assert capsys.readouterr().out == "Total time: 0:00:00 (0.0000 s / it)\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    run_loop(MetricLogger(), Batches(25))
    last = terminal.getvalue().splitlines()[-2].split("\r")[-1]
    assert "Epoch: [3]" in last and "25/25" in last and "loss 0" in last and "class_error 1" in last
    assert "lr 0.0001" in last and "images/s" in last and "MB" in last and "loss_ce" not in last
    assert list(MetricLogger().log_every(Batches(0), 10, "Test:")) == []
    assert "Test: Total time" in terminal.getvalue()


def test_sums_may_be_set_as_distributed_code_of_others_does():
    meter = SmoothedValue()
    meter.update(3.0, n=2)
    meter.count, meter.total = 8, 20.0
    assert meter.global_avg == 2.5 and meter.state_dict()["count"] == 8
    logger = MetricLogger()
    logger.update(loss=1.0)
    logger.loss.total = 5.0
    logger.update(loss=1.0)
    assert logger.loss.total == 6.0 and logger.loss.count == 2
