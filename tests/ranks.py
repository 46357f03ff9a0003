"""A few processes that stay, to run functions as the ranks of a gloo group: starting them is what costs."""

import atexit
import functools
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

MOST = 3


class Ranks:
    """Up to three processes; each job forms a group of its own."""

    def __init__(self) -> None:
        self.pipes, self.processes = [], []
        context = _context()
        for _ in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, world_size: int, function: Callable, *words: Any) -> list[Any]:
        """Call a function of some module, which may use the group -> what each rank returned."""
        with tempfile.TemporaryDirectory() as folder:
            pipes = self.pipes[:world_size]
            for rank, pipe in enumerate(pipes):
                pipe.send((function, words, rank, world_size, f"file://{folder}/store"))
            answers = []
            for pipe in pipes:
                assert pipe.poll(600), "a rank does not answer"
                answers.append(pipe.recv())
        for failed, answer in answers:
            assert not failed, answer
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join(5)


def _context() -> Any:
    """What starts processes: on POSIX copies of one that has imported what all of them need."""
    if "forkserver" not in torch.multiprocessing.get_all_start_methods():
        return torch.multiprocessing.get_context("spawn")
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine", "models", __name__])
    return context


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        function, words, rank, world_size, url = job
        try:
            dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
            answer = False, function(*words)
            dist.barrier()
        except BaseException:
            answer = True, traceback.format_exc()
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send(answer)


@functools.cache
def ranks() -> Ranks:
    """The processes, started when they are first wanted."""
    started = Ranks()
    atexit.register(started.close)
    return started
