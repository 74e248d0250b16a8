"""Rank processes for tests: they meet over gloo, run case after case and send back results."""

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_ANSWER_S = 120.0


class Ranks:
    """A world of processes; `run` calls case(rank, world, *args) on each and returns the answers.

    A rank that raised is represented by its exception, a rank that died by None.
    """

    def __init__(self, world: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.rdep.cases"])
        self.world = world
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._ends: list[Connection] = []
        self.processes = []
        for rank in range(world):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, store, theirs))
            process.start()
            theirs.close()
            self._ends.append(mine)
            self.processes.append(process)

    def run(self, case: Callable[..., Any], *args: Any) -> list[Any]:
        for end in self._ends:
            end.send_bytes(pickle.dumps((case, args)))
        return [self._answer(end) for end in self._ends]

    def close(self) -> None:
        for end, process in zip(self._ends, self.processes, strict=True):
            end.close()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def _answer(self, end: Connection) -> Any:
        if not end.poll(_ANSWER_S):
            raise TimeoutError(f"a rank gave no answer in {_ANSWER_S} s")
        try:
            return pickle.loads(end.recv_bytes())
        except (EOFError, ConnectionResetError):
            return None


def _serve(rank: int, world: int, store: str, end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    while True:
        try:
            case, args = pickle.loads(end.recv_bytes())
        except EOFError:
            return
        try:
            answer = case(rank, world, *args)
        except (RuntimeError, ValueError, AssertionError) as error:
            answer = error
        end.send_bytes(pickle.dumps(answer))
