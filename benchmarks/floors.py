"""The two floors under some work: its operations over the machine's rate, its bytes over its bandwidth.

Operations are those of products and convolutions. Bytes are what the kernels that were called must move if
each reads its inputs once and writes its outputs once; on a CPU, small tensors stay in caches and never reach
memory, so the second floor can lie a little high. No kernel can be quicker than the higher of its own two
floors: their sum over all kernels is the floor of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.machine import Rates


class Kernel(NamedTuple):
    """One call."""

    operations: int
    bytes: int


class Counting(TorchDispatchMode):
    """Within the block, notes the operations and bytes of each kernel that is called, in `kernels`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not func.is_view:
            operations = _operations(func, args, kwargs, out)
            self.kernels.append(Kernel(operations, sum(map(_bytes, read)) + sum(map(_bytes, written))))
        return out


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    count = flop_registry.get(func._overloadpacket)
    return count(*args, **kwargs, out_val=out) if count is not None else 0


def _bytes(x: Tensor) -> int:
    """Bytes behind a tensor; a dimension that is only expanded is in memory once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * x.element_size()


class Floors(NamedTuple):
    """Of one call."""

    operations: int
    bytes: int
    of_operations: float
    """Seconds."""
    of_bytes: float
    """Seconds."""
    kernel_by_kernel: float
    """Seconds: the sum over kernels of the higher of the two."""


def floors(run: Callable[[], Any], rates: Rates) -> Floors:
    """Call once, counting.

    Args:
        run: the work.
        rates: of the machine.
    """
    with Counting() as counting:
        run()
    kernels = counting.kernels
    operations, moved = sum(k.operations for k in kernels), sum(k.bytes for k in kernels)
    each = (max(k.operations / rates.operations, k.bytes / rates.bandwidth) for k in kernels)
    return Floors(operations, moved, operations / rates.operations, moved / rates.bandwidth, sum(each))


def floor_lines(found: dict[str, Floors], reached: dict[str, float], rates: Rates) -> list[str]:
    """Lines of a table: stage by stage, the floors beside the seconds that were reached."""
    lines = [
        f"the machine: {rates.matmul / 1e9:,.0f} G operations/s in products, "
        f"{rates.convolution / 1e9:,.0f} in convolutions, {rates.bandwidth / 1e9:,.1f} GB/s",
        f"{'stage':<20}{'G operations':>13}{'GB':>8}{'floor: operations':>19}{'bytes':>10}{'kernels':>10}"
        f"{'reached':>10}{'/ floor':>9}",
    ]
    for name, one in found.items():
        lines.append(
            f"{name:<20}{one.operations / 1e9:>13,.1f}{one.bytes / 1e9:>8.2f}{one.of_operations:>17.3f} s"
            f"{one.of_bytes:>8.3f} s{one.kernel_by_kernel:>8.3f} s{reached[name]:>8.3f} s"
            f"{reached[name] / one.kernel_by_kernel:>9.2f}"
        )
    return lines
