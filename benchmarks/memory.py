"""How much memory some work takes: in a fresh process, beyond what model and inputs take before it.

python -m benchmarks.memory SETTINGS STAGE SIDE     prints bytes; benchmarks.run calls it
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from benchmarks.fresh import answer, call
from benchmarks.measure import Work
from benchmarks.settings import Settings
from util.collector import return_freed_memory

CALLS = 2  # the first step of an optimizer makes its state, the second holds it beside all else


def in_fresh_process(stage: str, side: str, settings: Settings) -> int:
    """Bytes that a stage's work takes on one side."""
    return call("benchmarks.memory", settings, stage, side)


def measure_here(stage: str, side: str, settings: Settings) -> int:
    """The same in this process, which should have done nothing before."""
    import torch

    from benchmarks.stages import all_stages

    if settings.threads:
        torch.set_num_threads(settings.threads)
    work = all_stages()[stage].build(settings, side)
    gc.collect()  # what is freed while the work runs would hide as much of what it takes
    if settings.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _run(work)
        return torch.cuda.max_memory_allocated() - before
    return_freed_memory()  # work that is given it again would not seem to take any
    forget_peak()
    before = status("VmRSS")
    _run(work)
    return status("VmHWM") - before


def _run(work: Work) -> None:
    for _ in range(CALLS):
        work.run(*([work.before()] if work.before else []))


def forget_peak() -> None:
    """Let the kernel count the peak from here on: building the model may have taken more than it keeps."""
    Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> int:
    """Bytes, from the kernel's account of this process. getrusage would tell the parent's peak as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    sys.exit(answer(lambda settings, stage, side: measure_here(stage, side, settings)))
