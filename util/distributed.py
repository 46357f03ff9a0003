"""torch.distributed in the few forms that the project needs; every function also works in one process."""

from __future__ import annotations

import builtins
import gc
import importlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from util.errors import UserError
from util.launch import find_place

T = TypeVar("T")

DEFAULT_TIMEOUT = 10.0  # minutes that one process waits for another


def is_dist_avail_and_initialized() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1


def get_rank() -> int:
    """Number of this process, from 0; 0 without a group."""
    return dist.get_rank() if is_dist_avail_and_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return get_rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if get_world_size() > 1:
        dist.barrier()


def all_gather(data: T) -> list[T]:
    """Any picklable object of every process, in the order of ranks.

    Objects travel as bytes through the group's own backend, so that tensors should be on the host.
    """
    world_size = get_world_size()
    if world_size == 1:
        return [data]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, data)
    return gathered


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum, or mean, of each value over all processes, which must hold the same keys. Values are scalars."""
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)  # every process in the same order
    values = torch.stack([input_dict[name].detach() for name in names])
    dist.all_reduce(values)
    if average:
        values = values / world_size
    return dict(zip(names, values, strict=True))


class StepVote:
    """What any process wants, known to all of them one step later, without anyone waiting.

    Processes vote once a step. The answer to a vote is the largest wish of the vote before it, the same on
    every process; a single process is answered at once. Votes travel over gloo beside the gradients, so that
    no host waits for its GPU.

    Args:
        minutes: how long to wait for the other processes' votes.
    """

    def __init__(self, minutes: float = DEFAULT_TIMEOUT) -> None:
        timeout = timedelta(minutes=minutes)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if get_world_size() > 1 else None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def __call__(self, *wishes: int) -> tuple[int, ...]:
        """Vote with whole numbers, 0 for no wish; as many in every call."""
        if self._group is None:
            return wishes
        before, ballot = self._pending, torch.tensor(wishes)
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, self._group, async_op=True)  # type: ignore[arg-type]
        self._pending = (work, ballot)
        if before is None:
            return (0,) * len(wishes)
        before[0].wait()
        return tuple(before[1].tolist())


def save_on_master(*args: Any, **kwargs: Any) -> None:
    """torch.save on the main process, nothing on the others."""
    if is_main_process():
        torch.save(*args, **kwargs)


def init_distributed_mode(args: Any) -> None:
    """Join the other processes of this run, if torchrun, Slurm or `--dist_url` describe any.

    Writes to args: `distributed`, and where that is True `rank`, `world_size`, `gpu` (the number of the
    process on its host) and `dist_backend`: nccl for GPUs, gloo elsewhere. A process that has joined
    already stays where it is.

    `--dist_timeout` minutes is the longest that one process waits for another, now and later.

    Raises:
        UserError: it is not clear where or which the others are, they did not come, or this host has fewer
            GPUs than processes.
    """
    place = find_place(getattr(args, "dist_url", "env://"), getattr(args, "world_size", 1))
    args.distributed = place is not None
    if place is None:
        return
    args.rank, args.world_size, args.gpu = place.rank, place.world_size, place.local_rank
    uses_cuda = str(getattr(args, "device", "cuda")).startswith("cuda") and torch.cuda.is_available()
    args.dist_backend = "nccl" if uses_cuda else "gloo"
    if is_dist_avail_and_initialized():
        return
    if uses_cuda and args.gpu >= torch.cuda.device_count():
        raise UserError(
            f"local rank {args.gpu} has no GPU of its own: this host has {torch.cuda.device_count()}; start "
            "fewer processes per node, or pass --device cpu"
        )
    if uses_cuda:
        torch.cuda.set_device(args.gpu)
    # Its functions take the group of the moment of its import as their default. Imported later (torch._dynamo
    # does), it would keep the group, and with it the threads that `leave` is to end.
    importlib.import_module("torch.distributed.nn.functional")
    minutes = getattr(args, "dist_timeout", DEFAULT_TIMEOUT)
    try:
        dist.init_process_group(
            args.dist_backend,
            init_method=place.url,
            world_size=place.world_size,
            rank=place.rank,
            device_id=torch.device("cuda", args.gpu) if uses_cuda else None,
            timeout=timedelta(minutes=minutes),
        )
        barrier()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"rank {place.rank} of {place.world_size} did not meet the others at {place.url} within "
            f"{minutes:g} minutes ({reason}): have all of them been started, and is that host reachable from "
            "this one? See --dist_url and --dist_timeout"
        ) from error


def leave() -> None:
    """Leave the group, the work being done.

    None of gloo's threads may live on: one that frees the tensor of a last collective while the interpreter
    ends aborts the process. They end with the last reference to their group. A process that fails must not
    call this: nccl would wait for the others, who wait for it.
    """
    if is_dist_avail_and_initialized():
        dist.destroy_process_group()
        gc.collect()  # DistributedDataParallel refers to the group, and to itself


def leave_after(function: Callable[..., None], *args: Any) -> None:
    """Call what a process of a run does; at its end, a signal's included, it parts from the others."""
    try:
        function(*args)
    except SystemExit:  # a signal, once all is saved
        leave()
        raise
    leave()


def setup_for_distributed(is_master: bool) -> None:
    """As published: from now on `print` prints in the main process alone, elsewhere with `force=True`.

    For scripts that rely on it: it replaces Python's own print, and nothing in this project calls it.
    """
    everywhere = builtins.print

    def print_on_master(*values: Any, force: bool = False, **options: Any) -> None:
        if is_master or force:
            everywhere(*values, **options)

    builtins.print = print_on_master  # type: ignore[assignment]
