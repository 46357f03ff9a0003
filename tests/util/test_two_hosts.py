"""Two hosts, each a network namespace of this machine: they train over TCP, and notice a cut link in time."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.shapes import write_shapes
from tests.helpers import ROOT, read_log
from tests.slurm.test_slurm import TINY

SECONDS = 240  # for training to be under way, or to end, on a busy machine
PORT = 29_400
TIMEOUT = 0.4  # minutes


def missing() -> str:
    """Why these tests cannot run, '' if they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "only root on Linux can make network namespaces"
    if shutil.which("ip") is None:
        return "the command ip is missing: apt-get install iproute2"
    trial = f"trial{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", trial], capture_output=True)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Hosts:
    """Two namespaces, each with an end of one cable: 10.97.0.1 and 10.97.0.2."""

    def __init__(self) -> None:
        self.names = [f"detr{os.getpid()}{side}" for side in "ab"]
        self.ends = [f"cable{side}" for side in "ab"]
        self.processes: list[subprocess.Popen[str]] = []

    def connect(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        ip("-n", first, "link", "add", self.ends[0], "type", "veth", "peer", self.ends[1], "netns", second)
        for number, (name, end) in enumerate(zip(self.names, self.ends, strict=True), 1):
            ip("-n", name, "address", "add", f"10.97.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", self.ends[0], "down")

    def remove(self) -> None:
        for process in self.processes:
            process.kill()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start(self, rank: int, *words: object) -> subprocess.Popen[str]:
        """main.py on host `rank`; the first host is where they meet."""
        flags = ["--world_size", 2, "--dist_url", f"tcp://10.97.0.1:{PORT}?rank={rank}", *words]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[rank], sys.executable, "main.py", *map(str, flags)],
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
                "LOCAL_RANK": "0",
                "GLOO_SOCKET_IFNAME": self.ends[rank],  # both have the same host name
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.connect()
        yield made
    finally:
        made.remove()


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, list[str]]]:
    """Wait for processes -> each one's status, stdout and lines of stderr."""
    answers = [process.communicate(timeout=SECONDS) for process in processes]
    return [
        # torch warns of hosts without names on the way
        (process.returncode, out, [line for line in err.splitlines() if not line.startswith("[W")])
        for process, (out, err) in zip(processes, answers, strict=True)
    ]


def test_a_cut_cable_ends_both_in_time(hosts: Hosts, tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "shapes", train=32, val=6)
    flags = [*TINY, "--coco_path", data, "--epochs", 10_000, "--dist_timeout", TIMEOUT]
    processes = [hosts.start(rank, *flags, "--output_dir", tmp_path) for rank in (0, 1)]
    began = time.monotonic()
    while not ((tmp_path / "log.txt").exists() and read_log(tmp_path)):
        assert all(process.poll() is None for process in processes), end(processes)
        assert time.monotonic() - began < SECONDS
        time.sleep(0.2)
    hosts.cut()
    answers = end(processes)  # after SECONDS at the latest: without the flag it takes 10 minutes
    for status, _, errors in answers:
        assert status == 1 and any("Traceback" in line for line in errors), errors
