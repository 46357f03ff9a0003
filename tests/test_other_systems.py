"""Windows and macOS, simulated: no name that only POSIX has, and an output that knows few letters."""

import io
import json
import os
import sys

import pytest

from tests.helpers import TINY, python, write_coco
from util.errors import escape_unprintable, exit_status
from util.misc import MetricLogger

NAMES = {1: "红色", 2: "naïve ☃", 5: "gear"}  # of the second, cp1252 knows some letters

WITHOUT_POSIX = """
import multiprocessing, os, signal, sys
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGALRM", "pthread_sigmask", "sigwaitinfo"):
    delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "killpg", "setsid", "sched_getaffinity"):
    delattr(os, name)
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))
multiprocessing.set_start_method("spawn")
import torch
"""

COMMANDS = """
import json
import doctor.__main__, main, predict
import inference.predicting, inference.prediction_output, report
from util.errors import exit_status
sys.platform = "win32"

tiny, root, out, picture = json.loads(sys.argv[1])
tiny = [*tiny, "--coco_path", root]
status = [main.run([*tiny, "--output_dir", out + "/run", "--epochs", "1"])]
resume = ["--resume", out + "/run/checkpoint.pth"]
status += [main.run([*tiny, *resume, "--eval", "--output_dir", out + "/eval"])]
status += [exit_status(lambda: doctor.__main__.run([root]))]
seen = ["--threshold", "0", "--device", "cpu", "--num_workers", "0", "--output_dir", out + "/seen"]
status += [predict.run([picture, *resume, *seen])]
print("exit statuses", *status)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What training, evaluation, the doctor and predict.py print there, one after the other."""
    folder = tmp_path_factory.mktemp("elsewhere")
    root = write_coco(folder / "data", NAMES)
    picture = next((root / "val2017").iterdir()).rename(folder / "蓝.jpg")
    (root / "val2017" / "000000000200.jpg").write_bytes(picture.read_bytes())
    flags = [TINY.split(), str(root), str(folder), str(picture)]
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    words = ("-c", WITHOUT_POSIX + COMMANDS, json.dumps(flags))
    return python(*words, check=True, env=env, encoding="cp1252").stdout


def test_each_command_runs_to_its_end(said: str) -> None:
    assert said.splitlines()[-1] == "exit statuses 0 0 0 0"


def test_what_the_output_cannot_show_is_escaped(said: str) -> None:
    assert said.count("\\u7ea2\\u8272") >= 4  # 红色, in the tables of classes and figures of both runs
    assert said.count("naïve \\u2603") >= 4
    assert "\\u84dd.jpg: " in said  # what predict.py found in 蓝.jpg


def test_the_callers_choice_of_replacing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: io.TextIOWrapper(io.BytesIO(), "cp1252", errors=name) for name in ("replace", "strict")}
    for name, stream in chosen.items():
        monkeypatch.setattr(sys, "stdout", stream)
        escape_unprintable()
        print("红", end="", flush=True)
        assert stream.buffer.getvalue() == {"replace": b"?", "strict": b"\\u7ea2"}[name]  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", None)  # of pythonw.exe
    escape_unprintable()


class Tee:
    """What scripts put in place of sys.stdout to keep a log."""

    def __init__(self) -> None:
        self.seen = ""

    def write(self, text: str) -> None:
        self.seen += text

    def flush(self) -> None:
        pass


def test_a_loop_prints_where_there_is_no_output_or_a_simple_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tee = Tee()
    for stream in (None, tee):
        monkeypatch.setattr(sys, "stdout", stream)
        assert list(MetricLogger().log_every([1, 2], 1, "Test:")) == [1, 2]
    assert "[2/2]" in tee.seen and "Total time" in tee.seen


def test_a_command_without_any_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw.exe."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert exit_status(lambda: print(sys.stdout.isatty(), file=sys.stderr)) == 0


def test_names_of_files_that_are_no_text_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """On Linux a name is bytes; Python has a letter for each that is not UTF-8, and no output knows it."""

    def command() -> None:
        print(os.fsdecode(b"photo\xff.jpg"))

    assert exit_status(command) == 0
    assert capsys.readouterr().out == "photo\\udcff.jpg\n"
