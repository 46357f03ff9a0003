"""What a CPU cannot prove or measure, in one command of at most eight minutes on one GPU; nothing is fetched.

  python -m benchmarks.gpu                            writes gpu.json and gpu.md
  python -m benchmarks.gpu --against PATH             throughput of a checkout of the published code, too
  python -m benchmarks.gpu --device cpu --tiny        does all of it run? The figures mean nothing

Each part is a function below and runs in a process of its own, within a time limit of its own. A part reports
its own failure; the rest goes on. Exit status: 0, or 1 if a part failed. All parts stand in this one file, so
that whoever has a GPU for minutes can read beforehand what it will be asked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from benchmarks.compare import Worker
from benchmarks.jobs import Tree, pictures, seconds, set_tf32, targets
from util.command_line import HelpWithDefaults, OneLineParser

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 480  # seconds, all parts together
RUN = (  # a small run of main.py, as users start it
    "main.py --dataset_file shapes --scales 80 96 --eval_scale 96 --max_size 160 --num_workers 2 --epochs 1"
    " --backbone resnet18 --backbone_weights none --hidden_dim 32 --nheads 4 --dim_feedforward 64"
    " --enc_layers 1 --dec_layers 2 --num_queries 8 --batch_size 4 --no_report"
)
Figures = dict[str, Any]


class Wrong(Exception):
    """A part's finding is not what it must be."""


def side(options: SimpleNamespace, amp: str = "off", compiled: bool = False) -> Tree:
    """This project's detector on the device, always with the same weights."""
    return Tree(SimpleNamespace(**{**vars(options), "amp": amp, "compile": compiled}))


def batch(options: SimpleNamespace, tree: Tree, count: int = 2) -> tuple[Any, list[dict[str, Any]]]:
    """Pictures of 800 x 1066 and seven objects in each."""
    images = pictures(options, (800, 1066), count)
    return tree.batch(images), targets(options, images)


def must(condition: bool, message: str) -> None:
    """Let the part fail unless the condition holds."""
    if not condition:
        raise Wrong(message)


# ---- The parts: each takes the options, and gives its figures ----------------------------------------------


def reference_values(options: SimpleNamespace) -> Figures:
    """Outputs, losses and gradients of the published code (tests/reference), in float32 without TF32."""
    from tests.reference.compare import compare
    from tests.reference.registry import models, stored_values

    seed, stored = stored_values()
    cases = models(options.device)
    names = list(cases)[:2] if options.tiny else list(cases)
    differing, values = [], 0
    for name in names:
        found = cases[name].compute(seed, options.folder)
        values += len(found)
        differing += compare(stored[name], found)
    must(not differing, f"{len(differing)} of {values} differ: {differing[0] if differing else ''}")
    return {"cases": len(names), "values": values, "differ": 0}


def mixed_precision(options: SimpleNamespace, kind: str, allowed: float) -> Figures:
    """How far outputs and losses move; boxes are fractions of the picture."""
    figures = {}
    for amp in ("off", kind):
        tree = side(options, amp)
        samples, wanted = batch(options, tree)
        boxes = tree.infer(samples)["pred_boxes"]
        losses = [tree.step(samples, wanted)["loss"] for _ in range(3)]
        figures[amp] = boxes, losses
    apart = (figures["off"][0] - figures[kind][0]).abs().max().item()
    must(apart < allowed, f"boxes lie {apart:.3g} apart, allowed {allowed}")
    last = {f"loss, {amp}": round(found[1][-1], 4) for amp, found in figures.items()}
    must(all(loss == loss for loss in last.values()), f"a loss is not a number: {last}")
    return {"boxes apart": apart, **last}


def found_inf(options: SimpleNamespace) -> Figures:
    """A step of fused AdamW whose gradients overflow leaves the weights alone, and halves the scale."""
    tree = side(options, "fp16")
    samples, wanted = batch(options, tree)
    scaler = tree.precision["precision"].scaler
    tree.step(samples, wanted)
    scaler.update(2.0**120)
    before = [p.detach().clone() for p in tree.model.parameters()]
    tree.step(samples, wanted)
    must(all(map(torch.equal, before, tree.model.parameters())), "an overflowed gradient moved weights")
    must(scaler.get_scale() == 2.0**119, f"the scale is {scaler.get_scale()}, not half of 2**120")
    return {"fused": tree.optimizer.defaults["fused"], "weights": "as they were", "scale": "halved"}


def compiled(options: SimpleNamespace) -> Figures:
    """Outputs as without, for three sizes, in few graphs; and a training step."""
    from models.compilation import graphs_compiled

    plain, tree = side(options), side(options, compiled=True)
    apart = 0.0
    for height, width in ((64, 96), (96, 64)) if options.tiny else ((480, 640), (640, 480), (800, 1056)):
        samples = plain.batch(list(torch.randn(1, 3, height, width)))
        outputs = [one.infer(samples)["pred_logits"] for one in (plain, tree)]
        apart = max(apart, (outputs[0] - outputs[1]).abs().max().item())
    tree.step(*batch(options, tree))
    must(apart < 1e-3, f"logits lie {apart:.3g} apart")
    must(graphs_compiled() <= 12, f"{graphs_compiled()} graphs")
    return {"logits apart": apart, "graphs": graphs_compiled()}


def channels_last(options: SimpleNamespace) -> Figures:
    """Either memory format of the pictures gives the same outputs."""
    tree = side(options)
    found, figures = [], {}
    for layout in (torch.contiguous_format, torch.channels_last):
        samples = batch(options, tree)[0]
        samples.tensors = samples.tensors.contiguous(memory_format=layout)
        found.append(tree.infer(samples)["pred_logits"])
        taken = seconds(lambda s=samples: tree.infer(s), options.device, 3)  # type: ignore[misc]
        figures[f"{str(layout).split('.')[1]}, ms"] = round(1e3 * taken, 2)
    apart = (found[0] - found[1]).abs().max().item()
    must(apart < 1e-3, f"logits lie {apart:.3g} apart")
    return {"logits apart": apart, **figures}


def run_main(options: SimpleNamespace, name: str, *flags: str, launcher: tuple[str, ...] = ()) -> Figures:
    """One epoch of main.py on a few built-in shapes, as a user starts it -> its line of log.txt."""
    from datasets.shapes import write_shapes

    data, out = options.folder / f"shapes-{name}", options.folder / name
    write_shapes(data, train=16, val=4)
    words = [sys.executable, *launcher, *RUN.split(), "--device", options.device, "--deterministic"]
    words += ["--coco_path", str(data), "--output_dir", str(out), *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    must(done.returncode == 0, " ".join(done.stderr.split()[-40:]))
    return json.loads((out / "log.txt").read_text().splitlines()[-1])


def one_rank(options: SimpleNamespace) -> Figures:
    """torchrun with one process (nccl on a GPU) trains to the loss of a run without it."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
    alone = run_main(options, "alone")["train_loss"]
    ranked = run_main(options, "ranked", launcher=launcher)["train_loss"]
    must(abs(alone - ranked) < 1e-3 * abs(alone), f"loss {ranked} under torchrun, {alone} alone")
    return {"loss": ranked, "loss alone": alone}


def ema(options: SimpleNamespace) -> Figures:
    """The averaged weights are saved and evaluated, and training is as without them."""
    line = run_main(options, "ema", "--ema", "0.9")
    saved = torch.load(options.folder / "ema" / "checkpoint.pth", weights_only=True)
    moved = [not torch.equal(saved["ema"][k], v) for k, v in saved["model"].items() if v.is_floating_point()]
    must(any(moved), "the average is the model itself")
    averaged = [name for name in line if name.startswith("test_ema_")]
    must(bool(averaged), "the average was not evaluated")
    return {"figures of the average": len(averaged), "loss": line["train_loss"]}


def kill_and_resume(options: SimpleNamespace) -> Figures:
    """SIGKILL and --resume auto under --deterministic: weights, optimizer and log.txt bit for bit."""
    kills = 1 if options.tiny else 3
    words = f"-m tests.run.kill_and_resume --kills {kills} --seed 0 --device {options.device} --deterministic"
    done = subprocess.run([sys.executable, *words.split()], cwd=ROOT, capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    must(done.returncode == 0, " ".join(said[-3:]))
    return {"kills": kills, "result": said[-1]}


def throughput(options: SimpleNamespace) -> Iterator[Figures]:
    """Images a second at 800 x 1066 and ratios, cell by cell: that of a side that fails holds its error."""
    jobs = [("step", 2), ("step", 8), ("step", 16), ("inference", 1), ("inference", 8)]
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "TF32": {"tf32": True},
        "bf16": {"tf32": True, "amp": "bf16"},
        "bf16 + compile": {"tf32": True, "amp": "bf16", "compile": True},
    }
    if options.tiny:
        jobs, ways = [("step", 1), ("inference", 2)], {way: ways[way] for way in ("float32", "bf16")}
    sides = {"this": str(ROOT), "published": options.against, "transformers": "hf"}
    cells: Figures = {}
    errors: list[str] = []
    for name, tree in sides.items():
        if not tree:
            continue  # no --against
        with Worker(tree, options.folder, None) as worker:
            for way, chosen in ways.items():
                if name != "this" and "amp" in chosen:
                    continue
                for job, size in jobs:
                    shared = {"device": options.device, "tiny": options.tiny, "folder": str(options.folder)}
                    defaults = {"amp": "off", "compile": False, "tf32": False, "masks": False}
                    first = worker.ask(**{**shared, **defaults, **chosen, "job": job, "batch": size})
                    timed = first if "error" in first else worker.ask(calls=1 if options.tiny else 5)
                    work = f"{'training' if job == 'step' else job}, {size}"
                    key = f"{work}, {name}, {way}"
                    cells[key] = timed.get("error") or round(size / timed["seconds"], 2)
                    for ours in (
                        ways if name == "published" and way == "float32" and "error" not in timed else ()
                    ):
                        if not isinstance(fast := cells[f"{work}, this, {ours}"], str):
                            cells[f"{work}, this in {ours} / published"] = round(fast / cells[key], 2)
                    yield cells
                    errors += [f"{key}: {cells[key]}"] if name == "this" and "error" in timed else []
    must(not errors, "; ".join(errors))


def one_step(options: SimpleNamespace) -> Figures:
    """Where a step's time goes: waiting for the device, matching, losses, loading; memory; the two floors."""
    tree = side(options, "off" if options.tiny else "bf16")
    samples, wanted = batch(options, tree)
    step = lambda: tree.step(samples, wanted)  # noqa: E731
    step()
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(step, options.device, 1 if options.tiny else 5)
    figures: Figures = {"step, ms": round(1e3 * taken, 2)}
    figures["peak, MiB"] = round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else "-"
    with torch.profiler.profile() as profile:
        step()
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    figures["waits for the device"] = sum(e.count for e in profile.key_averages() if e.key in waits)
    outputs = tree.model.train()(samples.to(tree.device))
    alone = {
        "matching and losses": seconds(lambda: tree.criterion(outputs, wanted), options.device, 3),
        "matching of one layer": seconds(lambda: tree.criterion.matcher(outputs, wanted), options.device, 3),
        "loading by one worker": load_seconds(options, len(wanted)),
    }
    for name, value in alone.items():
        figures |= {f"{name}, ms": round(1e3 * value, 2), f"{name}, share of a step": round(value / taken, 3)}
    return {**figures, **floors(step, taken, tree.device)}


def load_seconds(options: SimpleNamespace, count: int) -> float:
    """Of a batch's pictures, read and augmented one after the other."""
    from benchmarks.inputs import write_coco
    from benchmarks.jobs import arguments
    from datasets import build_dataset

    write_coco(options.folder, 8, (64, 96) if options.tiny else (480, 640), 8)
    dataset = build_dataset("train", arguments(options))
    return seconds(lambda: [dataset[i] for i in range(count)], "cpu", 3)


def floors(step: Callable[[], Any], taken: float, device: torch.device) -> Figures:
    """The least that a step can take: its operations at a large product's rate, its bytes at a copy's."""
    operations, moved = count(step)
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, source = (torch.zeros(size, size, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * size**3 / min(seconds(lambda: a @ a, device.type, 3) for _ in range(5))
    bandwidth = 2 * source.nbytes / min(seconds(source.clone, device.type, 3) for _ in range(5))
    lowest = operations / rate, moved / bandwidth
    names = "floor of operations, ms", "floor of bytes, ms"
    figures = {name: round(1e3 * value, 2) for name, value in zip(names, lowest, strict=True)}
    return {**figures, "step / higher floor": round(taken / max(lowest), 2)}


def count(run: Callable[[], Any]) -> tuple[int, int]:
    """Operations of products and convolutions; bytes of each kernel's inputs and outputs, once each."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    moved = 0

    class Bytes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal moved
            out = func(*args, **(kwargs or {}))
            if not func.is_view:
                leaves = tree_leaves((args, kwargs, out))
                moved += sum(x.nbytes for x in leaves if isinstance(x, torch.Tensor))
            return out

    with FlopCounterMode(display=False) as operations, Bytes():
        run()
    return operations.get_total_flops(), moved


class Part(NamedTuple):
    """What is run, and for how many seconds at most."""

    run: Callable[[SimpleNamespace], Any]
    limit: int


PARTS = {
    "reference_values": Part(reference_values, 60),
    "bf16": Part(partial(mixed_precision, kind="bf16", allowed=0.1), 40),
    "fp16": Part(partial(mixed_precision, kind="fp16", allowed=0.05), 40),
    "found_inf": Part(found_inf, 40),
    "channels_last": Part(channels_last, 40),
    "one_rank": Part(one_rank, 90),
    "ema": Part(ema, 60),
    "one_step": Part(one_step, 60),
    "compiled": Part(compiled, 120),
    "kill_and_resume": Part(kill_and_resume, 120),
    "throughput": Part(throughput, 240),
}


# ---- The command -------------------------------------------------------------------------------------------


def run_part(name: str, options: SimpleNamespace) -> None:
    """In the part's own process: print its figures as JSON, a line each time there are more."""
    set_tf32(False)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        stdout = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what engines print
        found = PARTS[name].run(options)
        for figures in [found] if isinstance(found, dict) else found:
            print(json.dumps(figures), file=stdout)


def start_part(name: str, words: list[str], limit: float) -> Figures:
    """Run a part in a process -> figures, seconds and, where it fails or runs out of time, an error."""
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, *words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True)
        late = ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = f"not done after {limit:.0f} s"
        finally:  # also where the user interrupts
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
                process.wait()
        out.seek(0)
        errors.seek(0)
        lines, said = out.read().splitlines(), errors.read().splitlines()
    failed = said[-1] if said else f"ended with status {process.returncode}"
    problem = late or (failed if process.returncode else None)
    figures = json.loads(lines[-1]) if lines else {}
    return {"figures": figures, "seconds": round(time.monotonic() - start, 1), "error": problem}


def table(machine: dict[str, Any], results: dict[str, Figures]) -> str:
    """Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["| part | | figures | s |", "|---|---|---|---|"]
    for name, result in results.items():
        figures = "; ".join(
            f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
            for key, value in result["figures"].items()
        )
        verdict = f"**{result['error']}**".replace("|", "/") if result["error"] else "holds"
        lines.append(f"| {name} | {verdict} | {figures} | {result['seconds']} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line -> exit status."""
    parser = OneLineParser("python -m benchmarks.gpu", description=__doc__, formatter_class=HelpWithDefaults)
    flag = parser.add_argument
    flag("parts", nargs="*", metavar="PART", help=f"left out: all of {', '.join(PARTS)}")
    flag("--device", choices=("cuda", "cpu"), default="cuda")
    flag("--against", default="", metavar="PATH", help="a checkout of the published code")
    flag("--tiny", action="store_true", help="small models and pictures")
    flag("--output", type=Path, default=Path(), metavar="FOLDER", help="where gpu.json and gpu.md go")
    flag("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        shared = {"device": args.device, "tiny": args.tiny, "against": args.against}
        run_part(args.part, SimpleNamespace(**shared, masks=False, batch=0))
        return 0
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"part {unknown[0]}: not one of {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --tiny tries the command out")
    machine = {"torch": torch.__version__, "device": args.device}
    if args.device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    words = ["--device", args.device, *(["--tiny"] if args.tiny else [])]
    words += ["--against", str(Path(args.against).resolve())] if args.against else []
    results: dict[str, Figures] = {}
    start = time.monotonic()
    for name in args.parts or PARTS:
        patience = 1 if args.device == "cuda" else 10
        left = patience * LIMIT - (time.monotonic() - start)
        results[name] = start_part(name, words, max(1, min(left, patience * PARTS[name].limit)))
        print(f"{name}: {results[name]['error'] or 'holds'} ({results[name]['seconds']} s)", flush=True)
        args.output.mkdir(parents=True, exist_ok=True)
        written = json.dumps({"machine": machine, "parts": results}, indent=1)
        (args.output / "gpu.json").write_text(written + "\n")
        (args.output / "gpu.md").write_text(table(machine, results))
    return int(any(result["error"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
