"""The same jobs on this tree and on another one, turn by turn: A B A B.

  python -m benchmarks.compare --against PATH            a checkout of the published code
  python -m benchmarks.compare --against hf              transformers (benchmarks/requirements.txt)
  python -m benchmarks.compare step coco --against PATH  some jobs; --list names them
  python -m benchmarks.compare --against . --tiny        does all of it run? The ratios mean nothing

Each side of a job runs in a process of its own, in the folder and with the import path of its tree; names are
the same in both trees. Both get the same weights and inputs, and results are compared where no dropout is in
them. Exit status: 0; 1 if a job fails or results differ; 2 for a mistake.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.inputs import write_inputs
from benchmarks.jobs import JOBS
from util.command_line import HelpWithDefaults, OneLineParser

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.02  # of a result: resizing rounds to grey levels
SHORTEST_TURN = 0.2  # seconds; quicker work is repeated within a turn


class Worker:
    """A process that is one side: `tree` is a folder or "hf"."""

    def __init__(self, tree: str, folder: Path, threads: int | None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it is read when the process has ended
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "jobs.py"), tree],
            cwd=folder if tree == "hf" else tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer; {"error": …} where the job fails or the process ends."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())  # type: ignore[union-attr]
        except (BrokenPipeError, json.JSONDecodeError):
            self.errors.seek(0)
            return {"error": (self.errors.read().splitlines() or ["the process ended"])[-1]}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def compare(name: str, against: str, options: dict[str, Any], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for a job's time, and one for its memory where that is asked for.

    A row holds job, title, unit, target, and either `error` or ours, theirs (a value a round), ratio, spread
    and equal (None: not compared).
    """
    job = JOBS[name]
    row = {"job": name, "title": job.title, "unit": "ms", "target": job.target}
    given = {**options, "job": name, "masks": job.masks}
    folder, threads = Path(options["folder"]), job.threads or options["threads"]
    with Worker(str(ROOT), folder, threads) as ours, Worker(against, folder, threads) as theirs:
        first = [ours.ask(**given), theirs.ask(**{**given, "amp": "off", "compile": False})]
        shortest = 0 if options["tiny"] else SHORTEST_TURN
        turns = []
        for _ in range(rounds if not any("error" in one for one in first) else 0):
            for side, one in zip((ours, theirs), first, strict=True):
                turns.append(side.ask(calls=1 + int(shortest / one["seconds"])))
    for who, answers in (("ours", [first[0], *turns[::2]]), ("theirs", [first[1], *turns[1::2]])):
        failed = [one["error"] for one in answers if "error" in one]
        if failed:
            yield {**row, "error": f"{who}: {failed[0]}"}
            return
    times = [one["seconds"] * 1e3 for one in turns]
    a, b = (one["result"] for one in first)
    close = [abs(x - y) <= TOLERANCE * max(abs(x), abs(y), 0.01) for x, y in zip(a, b, strict=False)]
    known = bool(a) and against != "hf" and options["amp"] == "off"
    yield {
        **row,
        **ratios(list(zip(times[::2], times[1::2], strict=True))),
        "equal": len(a) == len(b) and all(close) if known else None,
    }
    if job.memory:
        memory = ratios([[one["memory"] / 2**20 for one in first]])
        yield {**row, "title": "memory of that", "unit": "MiB", "target": job.memory, "equal": None, **memory}


def ratios(turns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Both sides' values; the ratio of their medians, and the extremes over rounds."""
    ours, theirs = (list(values) for values in zip(*turns, strict=True))
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(theirs) / statistics.median(ours)
    return {"ours": ours, "theirs": theirs, "ratio": ratio, "spread": [min(each), max(each)]}


def line(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    if "error" in row:
        return f"{row['title']:36} {row['error']}"
    values = "".join(f"{statistics.median(row[side]):>11,.1f} {row['unit']:3}" for side in ("ours", "theirs"))
    least = f"at least {row['target']:g}" if row["target"] else ""
    remark = {True: "equal", False: "RESULTS DIFFER", None: ""}[row["equal"]]
    spread = "({:.2f} to {:.2f})".format(*row["spread"])
    return f"{row['title']:36}{values}{row['ratio']:8.2f}  {spread}  {least:14} {remark}".rstrip()


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A bar for each ratio, a line for its spread, a mark for its target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [row for row in rows if "ratio" in row][::-1]
    chart, axis = plt.subplots(figsize=(8, 1.2 + 0.32 * len(good)), layout="constrained")
    for place, row in enumerate(good):
        axis.barh(place, row["ratio"], color="tab:blue" if row["unit"] == "ms" else "tab:gray")
        axis.plot(row["spread"], [place, place], color="black", linewidth=1)
        if row["target"]:
            axis.plot([row["target"]] * 2, [place - 0.4, place + 0.4], color="tab:red")
    axis.set(xscale="log", title=title, xlabel="theirs / ours; red: target; gray: memory")
    axis.set_yticks(range(len(good)), [row["title"] for row in good])
    axis.axvline(1, color="black", linewidth=0.8)
    chart.savefig(path, dpi=110)
    plt.close(chart)


def markdown(rows: Sequence[dict[str, Any]], against: str) -> str:
    """A table for benchmarks/README.md, below a line on the machine."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    model = next((line.split(": ")[1] for line in cpu.splitlines() if line.startswith("model name")), cpu)
    lines = [f"{model.strip()}, {os.cpu_count()} cores, torch {version('torch')}:", ""]
    lines += [f"| | this | {against} | ratio | over the rounds | asked |", "|---|---|---|---|---|---|"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['title']} | {row['error'].replace('|', '/')} | | | | |")
            continue
        ours, theirs = (f"{statistics.median(row[side]):,.1f} {row['unit']}" for side in ("ours", "theirs"))
        spread = "{:.2f} to {:.2f}".format(*row["spread"])
        asked = f"{row['target']:g}" if row["target"] and against != "transformers" else ""
        lines.append(f"| {row['title']} | {ours} | {theirs} | {row['ratio']:.2f} | {spread} | {asked} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    parser = OneLineParser(
        "python -m benchmarks.compare", description=__doc__, formatter_class=HelpWithDefaults
    )
    flag = parser.add_argument
    listed = "\n".join(f"{name:12} {job.title}" for name, job in JOBS.items())
    flag("jobs", nargs="*", metavar="JOB", help="left out: all that the other side has")
    flag("--against", required=True, metavar="PATH|hf", help="the other side")
    flag("--list", action="version", version=listed, help="name the jobs and end")
    flag("--rounds", type=int, default=5, help="turns of each side")
    flag("--threads", type=int, help="of torch (left out: one a core)")
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    flag("--amp", choices=("off", "bf16", "fp16"), default="off", help="of this tree alone")
    flag("--compile", action="store_true", help="of this tree alone")
    flag("--tiny", action="store_true", help="small models and inputs: does it all run?")
    flag("--json", type=Path, metavar="OUT", help="write the rows")
    flag("--markdown", type=Path, metavar="OUT.md", help="write them as a table")
    flag("--plot", type=Path, metavar="OUT.png", help="draw the ratios")
    args = parser.parse_args(argv)
    names = args.jobs or [name for name, job in JOBS.items() if job.hf or args.against != "hf"]
    if args.against != "hf" and not (Path(args.against) / "models" / "detr.py").exists():
        parser.error(f"--against {args.against}: no checkout of DETR's code, which has models/detr.py")
    for name in names:
        if name not in JOBS or (args.against == "hf" and not JOBS[name].hf):
            parser.error(f"job {name}: not one of them here; see --list")
    against = args.against if args.against == "hf" else str(Path(args.against).resolve())
    title = "transformers" if against == "hf" else Path(against).name
    options = {key: getattr(args, key) for key in ("threads", "device", "amp", "compile", "tiny")}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), args.tiny)
        options |= {"folder": folder, "batch": 0, "tf32": None}
        print(f"{'':36}{'this tree':>14} {title[:13]:>14}{'ratio':>8}")
        for name in names:
            for row in compare(name, against, options, args.rounds):
                rows.append(row)
                print(line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"against": args.against, "rows": rows}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(rows, title))
    if args.plot:
        draw(rows, f"{title} / this tree", args.plot)
    return int(any("error" in row or row["equal"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
