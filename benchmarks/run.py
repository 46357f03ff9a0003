"""Measure this project against a straightforward reference, or against transformers, in one run.

  python -m benchmarks.run                           the stages that have a target
  python -m benchmarks.run all --plot ratios.png     every stage, and a picture
  python -m benchmarks.run inference step --amp bf16 some stages; the peer stays in float32
  python -m benchmarks.run --against hf              what transformers has, too
  python -m benchmarks.run all --tiny                whether all of it runs; the ratios mean nothing

Each stage has a process of its own, in which both sides have their turn in each round (A B A B ...); medians
are compared, and the spread is that of the rounds' ratios. Exit status: 0, 1 if a target is missed or
results differ, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import UserError, exit_status

if TYPE_CHECKING:
    from benchmarks.report import Row
    from benchmarks.settings import Settings
    from benchmarks.stages import Stage

WITH_FLOORS = ("inference", "step", "step-masks")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("stages", nargs="*", metavar="STAGE", help="names, or all (left out: those with a target); --list")
    flag("--list", action="store_true", help="list the stages and end")
    flag("--against", choices=("reference", "hf"), default="reference", help="the peer")
    flag("--rounds", type=int, help="turns of each side (left out: 1 to 5, as each stage says)")
    flag("--threads", type=int, default=0, help="of torch (left out: one a core)")
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="cuda measures with events")
    flag("--amp", choices=("off", "bf16"), default="off", help="of this project; the peer stays in float32")
    flag("--compile", action="store_true", help="torch.compile this project's model")
    flag("--tiny", action="store_true", help="small models and inputs: does it all run?")
    flag("--json", type=Path, metavar="OUT", help="write the results")
    flag("--plot", type=Path, metavar="OUT.png", help="draw the ratios")
    flag("--folder", type=Path, help="where inputs are written and kept (left out: a temporary folder)")
    return parser


def choose(names: Sequence[str], against: str) -> list[Stage]:
    """The stages of some names, in the table's order; without names those with a target.

    Raises:
        UserError: an unknown name, or one that the peer has no counterpart for.
    """
    from benchmarks.stages import all_stages

    stages = all_stages()
    unknown = [name for name in names if name not in stages and name != "all"]
    if unknown:
        raise UserError(f"stage {unknown[0]}: not one of all, {', '.join(stages)}")
    without = [name for name in names if name != "all" and against not in stages[name].sides]
    if without:
        raise UserError(f"stage {without[0]}: {against} has no counterpart; leave it out")
    chosen = [s for s in stages.values() if against in s.sides]
    if "all" in names:
        return chosen
    return [s for s in chosen if s.name in names] if names else [s for s in chosen if s.target is not None]


def measure_stage(stage: Stage, settings: Settings, against: str, rounds: int | None) -> Row:
    """Measure both sides of a stage, in fresh processes but for a trial's seconds."""
    from benchmarks import memory, timing
    from benchmarks.measure import Compared
    from benchmarks.report import make_row

    rounds = rounds or (1 if settings.tiny else stage.rounds)
    if stage.unit == "bytes":
        found = Compared([], [])
        for _ in range(rounds):
            found.ours.append(memory.in_fresh_process(stage.name, "ours", settings))
            found.theirs.append(memory.in_fresh_process(stage.name, against, settings))
    else:
        compare = timing.compare if settings.tiny else timing.in_fresh_process
        found = compare(stage.name, settings, against, rounds)
    return make_row(stage, settings, against, found)


def measure_floors(rows: Sequence[Row], settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """The floors of those stages that have some, for the JSON and as lines to print."""
    from benchmarks.floors import floor_lines, floors
    from benchmarks.machine import rates

    reached = {row.stage.name: row for row in rows if row.stage.name in WITH_FLOORS}
    if not reached:
        return {}, []
    machine = rates(settings.device, settings.amp == "bf16", settings.tiny)
    found = {name: floors(row.stage.build(settings, "ours").run, machine) for name, row in reached.items()}
    content = {"rates": machine._asdict(), **{name: one._asdict() for name, one in found.items()}}
    return content, floor_lines(found, {name: row.ours for name, row in reached.items()}, machine)


def run(options: argparse.Namespace, folder: Path) -> int:
    """Measure, print, write -> exit status."""
    import torch

    from benchmarks.machine import describe
    from benchmarks.report import as_json, headline, line, plot
    from benchmarks.settings import Settings

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    shared = {name: getattr(options, name) for name in ("device", "amp", "compile", "threads", "tiny")}
    settings = Settings(folder, **shared)
    chosen = choose(options.stages, options.against)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe(options.device, options.threads)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(headline(options.against), flush=True)
    rows = []
    for stage in chosen:
        rows.append(measure_stage(stage, settings, options.against, options.rounds))
        print(line(rows[-1]), flush=True)
    content, lines = measure_floors(rows, settings)
    print(*lines, sep="\n")
    if options.json:
        try:
            options.json.write_text(json.dumps(as_json(rows, settings, machine, content), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {options.json}: cannot be written ({error.strerror})") from error
    if options.plot:
        plot(rows, options.plot, machine)
    return 1 if any(row.met is False or row.equal is False for row in rows) else 0


def start(options: argparse.Namespace) -> int:
    """List the stages, or measure in the folder that is asked for or in a temporary one -> exit status."""
    if options.list:
        from benchmarks.stages import all_stages

        for stage in all_stages().values():
            target = "" if stage.target is None else f"at least {stage.target:.2f}"
            print(f"{stage.name:<20}{stage.title:<46}{', '.join(stage.sides[1:]):<16}{target}".rstrip())
        return 0
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        return run(options, options.folder)
    with tempfile.TemporaryDirectory() as folder:
        return run(options, Path(folder))


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    return exit_status(lambda: start(get_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
