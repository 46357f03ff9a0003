"""Where the time of a stage goes: torch's profiler, operator by operator.

  python -m benchmarks.profile                       the three costliest stages, both sides
  python -m benchmarks.profile step --side ours
  python -m benchmarks.profile inference --rows 30 --shapes

"Self" is the time inside an operator without those that it calls.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from util.errors import exit_status

COSTLIEST = ("step", "step-masks", "inference")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("stages", nargs="*", metavar="STAGE", help=f"as of benchmarks.run (left out: {' '.join(COSTLIEST)})")
    flag("--side", choices=("ours", "reference", "both"), default="both", help="whose work")
    flag("--rows", type=int, default=12, help="operators to list")
    flag("--shapes", action="store_true", help="one line for each shape of an operator's inputs")
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs")
    flag("--amp", choices=("off", "bf16"), default="off", help="of this project")
    flag("--threads", type=int, default=0, help="of torch (left out: one a core)")
    flag("--tiny", action="store_true", help="small models and inputs")
    return parser


def profile(stage_name: str, side: str, options: argparse.Namespace, folder: Path) -> str:
    """The table of one call of a stage's work, after a call that is not counted."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    from benchmarks.run import choose
    from benchmarks.settings import Settings

    (stage,) = choose([stage_name], "reference")
    settings = Settings(
        folder, device=options.device, amp=options.amp, threads=options.threads, tiny=options.tiny
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    work = stage.build(settings, side)
    work.run(*([work.before()] if work.before else []))
    prepared = [work.before()] if work.before else []
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device == "cuda")
    with recording(activities=kinds, record_shapes=options.shapes) as recorded:
        work.run(*prepared)
    events = recorded.key_averages(group_by_input_shape=options.shapes)
    order = "self_device_time_total" if options.device == "cuda" else "self_cpu_time_total"
    return events.table(sort_by=order, row_limit=options.rows, max_name_column_width=48)


def start(options: argparse.Namespace) -> None:
    """Print the tables."""
    sides = ("ours", "reference") if options.side == "both" else (options.side,)
    with tempfile.TemporaryDirectory() as folder:
        for stage in options.stages or COSTLIEST:
            for side in sides:
                print(f"\n{stage}, {side}")
                print(profile(stage, side, options, Path(folder)))


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    return exit_status(lambda: start(get_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
