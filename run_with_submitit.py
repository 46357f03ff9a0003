"""Train or evaluate on a Slurm cluster, through submitit: every flag of main.py, and those of the job.

  python run_with_submitit.py --shared_dir /shared/detr --nodes 2 --ngpus 8 --coco_path data/coco
  python run_with_submitit.py @recipes/coco_r50.args --timeout 240 --partition gpu --job_dir /shared/r50/%j

A job that reaches its time limit or is preempted saves itself, goes back into the queue and continues exactly
where it was. Logs, checkpoints and log.txt are in the job's folder, unless --output_dir names another.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.command_line import RecipeParser, at_least
from util.errors import UserError, exit_status
from util.files import make_writable
from util.flags import get_args_parser as get_training_parser

if TYPE_CHECKING:
    import submitit

MANY = 100_000  # a long run may reach its time limit any number of times
LONGEST_NOTICE = 120  # seconds between the signal and the time limit
WAITING = {
    "Resources": "for nodes, GPUs or memory to become free",
    "Priority": "behind jobs of higher priority",
    "Dependency": "for another job",
    "BeginTime": "for the time at which it may begin",
    "PartitionConfig": "for more than the partition has or allows: lower --nodes, or see --partition",
    "PartitionNodeLimit": "for more nodes than the partition has or allows: lower --nodes",
    "PartitionTimeLimit": "for a longer time than the partition allows: lower --timeout",
    "BadConstraints": "for nodes that do not exist: see --constraint, --ngpus, --mem_gb, --cpus_per_task",
    "ReqNodeNotAvail": "for nodes that are down or reserved",
}


def get_args_parser() -> argparse.ArgumentParser:
    """main.py's flags and those of the job."""
    parents = [get_training_parser()]
    parser = RecipeParser("run_with_submitit.py", description=__doc__, parents=parents)
    flag = parser.add_argument_group("job").add_argument
    flag(
        "--ngpus",
        default=8,
        type=at_least(0),
        help="GPUs of each node, with a process each; 0: train on CPUs",
    )
    flag("--nodes", default=4, type=at_least(1), help="number of nodes")
    flag(
        "--tasks_per_node",
        type=at_least(1),
        help="processes of each node; left out: one a GPU, one with --ngpus 0",
    )
    flag(
        "--timeout", default=60, type=at_least(1), help="minutes until the job saves itself and queues again"
    )
    flag("--job_dir", default="", help="folder of the job; %%j is its id. Left out: SHARED_DIR/%%j")
    flag(
        "--shared_dir",
        default=os.environ.get("DETR_SHARED_DIR", ""),
        help="folder that every node sees; left out: $DETR_SHARED_DIR, or the parent of --job_dir",
    )
    flag("--cluster", default="slurm", choices=("slurm", "local", "debug"), help="local, debug: this machine")
    flag("--partition", help="of the cluster")
    flag("--account", help="that pays")
    flag("--qos", help="quality of service")
    flag("--constraint", help="features that the nodes must have")
    flag("--comment", help="to the administrators")
    flag("--mem_gb", type=at_least(0.001), help="memory of each node; left out: the cluster's default")
    flag("--cpus_per_task", type=at_least(1), help="left out: one, and one for each data worker")
    return parser


# --- On the machine that submits ---------------------------------------------------------------------


class Work:
    """What a process of the job calls; submitit pickles it, and again when the job is to be continued."""

    # Pickled by value, so no method may name a module of ours: a process of the job starts elsewhere.
    def __init__(self, args: argparse.Namespace, root: str):
        self.args = args
        self.root = root

    def __call__(self) -> None:
        sys.path.insert(0, self.root)
        import run_with_submitit  # under this name: where it was submitted, it is __main__

        run_with_submitit.work(self.args)

    def checkpoint(self) -> Any:
        """The same again: main.py has saved, and what is resumed is looked up at every start."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def find_folders(args: argparse.Namespace) -> tuple[Path, Path]:
    """The shared folder, made if it is missing, and the job's, whose name may hold %j.

    Raises:
        UserError: neither --shared_dir nor --job_dir is given, or one cannot be made or written to.
    """
    if not (args.shared_dir or args.job_dir):
        raise UserError(
            "--shared_dir: pass a folder that all nodes see, or set DETR_SHARED_DIR, or pass --job_dir"
        )
    job_dir = Path(args.job_dir or Path(args.shared_dir) / "%j").absolute()
    shared = Path(args.shared_dir or job_dir.parent).absolute()
    if not args.shared_dir and "%j" in str(shared):
        raise UserError(f"--job_dir {job_dir}: %j in front of its last part: pass --shared_dir too")
    named = f"--shared_dir {args.shared_dir}" if args.shared_dir else f"--job_dir {args.job_dir}"
    make_writable(shared, named)
    if args.job_dir:
        there = next(folder for folder in (job_dir, *job_dir.parents) if os.path.exists(folder))
        make_writable(there, f"--job_dir {args.job_dir}")
    return shared, job_dir


def notice(minutes: int) -> int:
    """Seconds before the time limit at which Slurm is to send the signal: more than a step and a save take.

    Slurm may send it half a minute earlier than asked.
    """
    return min(LONGEST_NOTICE, max(10, 60 * minutes // 6))


def job_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """What submitit is to ask the cluster for."""
    parameters: dict[str, Any] = {
        "name": "detr",
        "nodes": args.nodes,
        "tasks_per_node": args.tasks_per_node or max(1, args.ngpus),
        "cpus_per_task": args.cpus_per_task or 1 + args.num_workers,
        "timeout_min": args.timeout,
        "slurm_signal_delay_s": notice(args.timeout),
        "slurm_srun_args": ["--kill-on-bad-exit=1"],  # one process that fails ends the others
    }
    if args.ngpus:
        parameters["gpus_per_node"] = args.ngpus
    if args.mem_gb is not None:
        parameters["mem_gb"] = args.mem_gb
    names = ("partition", "account", "qos", "constraint", "comment")
    return parameters | {f"slurm_{name}": getattr(args, name) for name in names if getattr(args, name)}


def submit(args: argparse.Namespace) -> submitit.Job:
    """Hand the job to the cluster.

    Raises:
        UserError: submitit or Slurm is missing, or the cluster refuses the job.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("submitit is missing: pip install submitit") from error

    if args.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "--cluster slurm: there is no sbatch here; run this where Slurm is, or pass --cluster local"
        )
    if args.cluster != "slurm" and args.nodes > 1:
        raise UserError(f"--nodes {args.nodes}: --cluster {args.cluster} has one: pass --nodes 1")
    args = copy.copy(args)
    if not args.ngpus and args.device == "cuda":
        args.device = "cpu"
    args.shared_dir, args.job_dir = map(str, find_folders(args))
    was_there = Path(args.job_dir).exists()
    executor = submitit.AutoExecutor(args.job_dir, cluster=args.cluster, slurm_max_num_timeout=MANY)
    executor.update_parameters(**job_parameters(args))
    try:
        return executor.submit(Work(args, str(Path(__file__).resolve().parent)))
    except (RuntimeError, subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        if not was_there:
            with contextlib.suppress(OSError):  # something lies in it, then
                Path(args.job_dir).rmdir()
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        reason = lines[-1].strip().removeprefix("sbatch: error: ")
        raise UserError(f"the cluster refuses the job: {reason}") from error


def waits_for(job_id: str, seconds: float = 5) -> str:
    """Why a job does not run yet, '' if it does; a scheduler needs a moment to say."""
    query = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T|%r"]
    deadline = time.monotonic() + seconds
    reason = ""
    while time.monotonic() < deadline:
        answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        state, _, reason = answer.partition("|")
        if state != "PENDING":
            return ""
        if reason not in ("", "None", "Priority"):
            break
        time.sleep(0.5)
    explained = WAITING.get(reason.split(",")[0])
    return f"{explained} ({reason})" if explained else reason


def report(job: submitit.Job, args: argparse.Namespace) -> None:
    """Print where the job is and what can be done with it."""
    print(f"job     {job.job_id}")
    print(f"folder  {job.paths.folder}")
    print(f"log     {job.paths.stdout}")
    print(f"errors  {job.paths.stderr}")
    if args.cluster == "slurm":
        print(f"follow  tail -F {job.paths.stdout}; squeue -j {job.job_id}")
        print(f"cancel  scancel {job.job_id}", flush=True)
        reason = waits_for(job.job_id)
        if reason:
            print(f"waits   {reason}", flush=True)


def launch(args: argparse.Namespace) -> None:
    """Submit the job and say so; on this machine, wait until it has ended.

    Raises:
        UserError: it cannot be submitted, or has failed on this machine.
    """
    job = submit(args)
    if args.cluster != "debug":
        report(job, args)
    if args.cluster != "slurm":
        try:
            job.results()  # submitit sets up its debug environment here alone, not in exception()
        except Exception as error:
            raise UserError(f"job {job.job_id} failed: see {job.paths.stderr}") from error


# --- In each process of the job ----------------------------------------------------------------------


def work(args: argparse.Namespace) -> None:
    """Run main.py in this process of a job; ends the process where main.py fails."""
    import submitit

    import main
    from util.distributed import leave_after

    args = job_arguments(args, submitit.JobEnvironment())
    status = exit_status(lambda: leave_after(main.main, args), args.debug)
    if status:
        sys.exit(status)


def job_arguments(args: argparse.Namespace, job: Any) -> argparse.Namespace:
    """main.py's arguments inside a job: its folder, where its processes meet, and what to resume.

    Args:
        args: as submitted.
        job: submitit's JobEnvironment: job_id, num_tasks.
    """
    args = copy.copy(args)
    args.job_dir = args.job_dir.replace("%j", str(job.job_id))
    args.output_dir = args.output_dir.replace("%j", str(job.job_id)) or args.job_dir
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    if args.dist_url == "env://" and job.num_tasks > 1 and "MASTER_ADDR" not in os.environ:
        args.dist_url = f"file://{args.job_dir}/.meeting_{job.job_id}_{restarts}"  # never an earlier start's
    has_saved = any(Path(args.output_dir).glob("checkpoint*.pth"))
    if not args.eval and (restarts != "0" and has_saved or not args.resume):
        args.resume = "auto"
    return args


def run(argv: list[str] | None = None) -> int:
    """The command line -> its exit status: 0, or 2 for a mistake that the user can correct."""
    args = get_args_parser().parse_args(argv)
    return exit_status(lambda: launch(args), args.debug)


if __name__ == "__main__":
    sys.exit(run())
