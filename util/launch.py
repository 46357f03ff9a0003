"""Which process of a run this is, read off what torchrun, Slurm or submitit left in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from util.errors import UserError

# Rank, world size and rank on its host. submitit's own names are those of its `local` cluster; through Slurm
# it leaves Slurm's.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
INTERACTIVE_STEP = "4294967290"  # Slurm's number of the step in which salloc's shell runs
FIRST_PORT, PORTS = 20_000, 10_000  # below those that systems hand out by themselves, from 32768


class Place(NamedTuple):
    """A process among those of a run.

    Attributes:
        rank: from 0 to world_size - 1.
        local_rank: the same among the processes of its host.
        url: where the processes meet: env://, tcp://HOST:PORT or file://PATH.
    """

    rank: int
    world_size: int
    local_rank: int
    url: str


def find_place(dist_url: str, world_size: int, env: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None where it is the only one.

    Args:
        dist_url: where to meet; env:// is MASTER_ADDR and MASTER_PORT, which a Slurm job need not set. A rank
            may follow, as in tcp://HOST:PORT?rank=1.
        world_size: number of processes, where the environment does not say.

    Raises:
        UserError: there are other processes, but which one this is or where they meet is unknown.
    """
    url, _, query = dist_url.partition("?")
    asked = {name: int(values[0]) for name, values in parse_qs(query).items() if values[0].isdigit()}
    found = _from_launcher(env)
    if found is not None:
        rank, world_size, local_rank = found
    else:
        world_size = asked.get("world_size", world_size)
        if world_size <= 1:
            return None
        if "rank" not in asked and "RANK" not in env:
            raise UserError(
                f"--world_size {world_size}: which of them is this process? Start it with torchrun or srun, "
                "set RANK, or pass --dist_url tcp://HOST:PORT?rank=NUMBER"
            )
        rank = asked.get("rank", _number(env, "RANK"))
        local_rank = _number(env, "LOCAL_RANK", rank)
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} of {world_size} processes: ranks start at 0 and end below --world_size")
    if url == "env://" and "RANK" not in env and "SLURM_JOB_ID" in env:
        url = _slurm_url(env)
    elif url == "env://":
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
        if missing and world_size == 1:
            return None  # left over from another command
        if missing:
            raise UserError(
                f"{missing[0]} is not set, so rank {rank} of {world_size} cannot find the others: start it "
                "with torchrun, or set MASTER_ADDR and MASTER_PORT; for one process alone, unset RANK"
            )
        _number(env, "MASTER_PORT")
    elif urlsplit(url).scheme not in ("tcp", "file"):
        raise UserError(f"--dist_url {dist_url}: pass env://, tcp://HOST:PORT or file://PATH")
    return Place(rank, world_size, local_rank, url)


def _from_launcher(env: Mapping[str, str]) -> tuple[int, int, int] | None:
    for names in LAUNCHERS:
        if names[0] not in env or names[1] not in env:
            continue
        if names[0].startswith("SLURM") and _is_there_once(env):
            continue
        rank, size, local_rank = (_number(env, name) for name in names)
        if names[0] == "RANK" or size > 1:
            return rank, size, local_rank
    return None


def _number(env: Mapping[str, str], name: str, default: int = 0) -> int:
    """A variable that holds a whole number."""
    text = env.get(name) or str(default)
    if not text.strip().isdecimal():
        raise UserError(
            f"{name} is {text!r} in the environment, not a whole number: set it right or unset it"
        )
    return int(text)


def _is_there_once(env: Mapping[str, str]) -> bool:
    """Whether Slurm's variables, for which srun alone would start several processes, are those of a shell."""
    step = env.get("SLURM_STEP_ID")
    if step is None:
        return env.get("ENVIRONMENT") == "BATCH"
    in_srun_pty = "SLURM_PTY_PORT" in env and env.get("SLURM_TASK_PID") not in (None, str(os.getpid()))
    return step == INTERACTIVE_STEP or in_srun_pty


def _slurm_url(env: Mapping[str, str]) -> str:
    """The job's first host, unless MASTER_ADDR names one, and a port that follows from the job's number."""
    host = env.get("MASTER_ADDR") or first_host(
        env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    )
    if not host:
        raise UserError("Slurm's environment names no nodes: set MASTER_ADDR to the first one")
    step = env.get("SLURM_STEP_ID", "0")
    number = 7 * int(env["SLURM_JOB_ID"]) + (int(step) if step.isdigit() else 0)
    return f"tcp://{host}:{env.get('MASTER_PORT') or FIRST_PORT + number % PORTS}"


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: n[1-3,5],m2 -> n1; rack[02-04]b -> rack02b; '' for none."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first.group()) if first else ""
