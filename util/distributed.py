"""torch.distributed in the few forms that the project needs; every function also works in one process."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from util.errors import UserError

T = TypeVar("T")


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
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if get_world_size() > 1 else None
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


def _from_environment(args: Any) -> bool:
    """Take rank, world size and local rank from what torchrun or Slurm set; False for a single process."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        args.rank, args.world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
        args.gpu = int(env.get("LOCAL_RANK", 0))
        return True
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        args.rank, args.world_size = int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"])
        args.gpu = int(env.get("SLURM_LOCALID", 0))
        return True
    return False


def init_distributed_mode(args: Any) -> None:
    """Join the group that torchrun or Slurm describes in the environment.

    Writes `distributed`, `rank`, `world_size` and `gpu` (the local rank, None without CUDA) to args. nccl
    carries CUDA tensors, gloo everything else.

    Raises:
        UserError: more processes on this host than it has GPUs.
    """
    args.distributed = _from_environment(args)
    if not args.distributed:
        args.rank, args.gpu = 0, None
        return
    uses_cuda = torch.device(args.device).type == "cuda"
    if uses_cuda:
        if args.gpu >= torch.cuda.device_count():
            raise UserError(
                f"local rank {args.gpu} has no GPU of its own: this host has {torch.cuda.device_count()}; "
                "start fewer processes per node, or pass --device cpu"
            )
        torch.cuda.set_device(args.gpu)
    else:
        args.gpu = None
    dist.init_process_group(
        backend="nccl" if uses_cuda else "gloo",
        init_method=args.dist_url,
        world_size=args.world_size,
        rank=args.rank,
        device_id=torch.device("cuda", args.gpu) if uses_cuda else None,
    )
    barrier()


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Give every process the main process's buffers (statistics of trained norms)."""
    if get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
