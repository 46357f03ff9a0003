"""The machine: what it is, and how fast it multiplies, convolves and moves bytes."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import CudaClock, WallClock
from datasets.workers import usable_cores

TRIALS = 7  # the best counts: a floor is what the machine can do at most
COPIED = 1 << 28  # bytes; far more than any cache holds


class Rates(NamedTuple):
    """What the machine reaches."""

    matmul: float
    """Operations a second in a product of square matrices."""
    convolution: float
    """Operations a second in a 3x3 convolution of 256 channels."""
    bandwidth: float
    """Bytes a second, read and written, in a copy."""

    @property
    def operations(self) -> float:
        """The higher of the two rates of operations."""
        return max(self.matmul, self.convolution)


def describe(device: str, threads: int) -> dict[str, Any]:
    """What results depend on."""
    import torch
    import torchvision

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": threads or torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def rates(device: str, bf16: bool = False, tiny: bool = False) -> Rates:
    """Measure them, in float32 or bfloat16."""
    import torch
    from torch.nn.functional import conv2d

    dtype = torch.bfloat16 if bf16 else torch.float32
    side, cells, copied = (64, 16, 1 << 16) if tiny else (2048, 64, COPIED)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(2, 256, cells, cells, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    source = torch.zeros(copied // 4, device=device)
    target = torch.zeros_like(source)
    with torch.no_grad():
        matmul = 2 * side**3 / _best(lambda: a @ b, device)
        convolved = 2 * 2 * 256 * 256 * 9 * cells**2 / _best(lambda: conv2d(x, weight, padding=1), device)
        bandwidth = 2 * copied / _best(lambda: target.copy_(source), device)
    return Rates(matmul, convolved, bandwidth)


def _best(run: Callable[[], Any], device: str) -> float:
    clock = CudaClock() if device == "cuda" else WallClock()
    clock(run)
    return min(clock(run)[0] for _ in range(TRIALS))
