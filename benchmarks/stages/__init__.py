"""What is measured. Each stage says how to build the work of one side, and what ratio is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Work
from benchmarks.settings import Settings

BOTH = ("ours", "reference")
ALL = ("ours", "reference", "hf")
FILES = ("startup", "data", "model", "masks", "evaluation")  # of this folder, in the table's order


@dataclass(frozen=True)
class Stage:
    """A stage of the work.

    Attributes:
        name: on the command line.
        title: in the table.
        build: settings and side -> its work.
        sides: who can do it.
        target: least ratio, reference / ours, in float32; None: no target.
        bf16_target: the same with --amp bf16 on this side; None: as without.
        rounds: how often each side has its turn, unless --rounds says otherwise.
        on_device: timed on the device with events, where that is a GPU.
        threads: of torch; None: as the settings say.
        unit: seconds, or bytes: the growth of a fresh process's memory.
        difference: results of two sides -> how far they lie apart; None: not comparable.
        tolerance: what the difference may be; with --amp bf16 it is not judged.
    """

    name: str
    title: str
    build: Callable[[Settings, str], Work]
    sides: tuple[str, ...] = BOTH
    target: float | None = None
    bf16_target: float | None = None
    rounds: int = 5
    on_device: bool = False
    threads: int | None = None
    unit: str = "seconds"
    difference: Callable[[Any, Any], float] | None = None
    tolerance: float = 0.0

    def target_of(self, settings: Settings) -> float | None:
        """The target under these settings: those of the table hold on a CPU."""
        if settings.device != "cpu" or settings.tiny:
            return None
        return self.bf16_target if settings.amp == "bf16" and self.bf16_target else self.target


def all_stages() -> dict[str, Stage]:
    """Every stage by its name, in the table's order."""
    modules = [importlib.import_module(f"benchmarks.stages.{name}") for name in FILES]
    return {stage.name: stage for module in modules for stage in module.STAGES}
