"""Ranks of one host: who I am, barriers, dense reductions; the reader of torchrun's variables."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as torch_dist
from torch import Tensor

from nmoe.config import ConfigError, Device

Op = Literal["sum", "max"]
MAX_RANKS = 8
_LOOK_S = 0.5  # how often a rank on a GPU looks whether its peers live


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among the ranks of one host."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_world(env: Mapping[str, str] = os.environ) -> World:
    """The rank and world size that torchrun or the supervisor set; one rank when neither did.

    Raises ConfigError for more than one host or more than eight ranks.
    """
    size = int(env.get("WORLD_SIZE", "1"))
    local = int(env.get("LOCAL_WORLD_SIZE", str(size)))
    if local != size or int(env.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"multi-node launch: got {size} ranks of which {local} on this host, expected one host."
            f" Run: torchrun --standalone --nproc_per_node={local} -m nmoe.train CONFIG.toml"
        )
    if size > MAX_RANKS:
        raise ConfigError(f"got {size} ranks, expected at most {MAX_RANKS} on one host")
    return World(rank=int(env.get("RANK", "0")), size=size)


def start(world: World) -> None:
    """Join the process group when there is more than one rank."""
    if world.size > 1:
        torch_dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            rank=world.rank,
            world_size=world.size,
        )


def own_device(world: World, device: Device) -> torch.device:
    """This rank's device, made current."""
    if device == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(world.rank)
    return torch.device("cuda", world.rank)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on this rank's device; the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def shutdown() -> None:
    """Leave the process group if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


@contextmanager
def watched(on_lost: Callable[[str], None]) -> Iterator[None]:
    """Tell `on_lost`, on a thread of its own, when the process of another rank is gone.

    A rank whose peer died waits inside CUDA, in a collective or for a flag, where no exception
    comes: `on_lost` must end the process. Ranks leave the block together, unless by an exception.
    """
    peers = gather((os.getpid(), start_time(os.getpid())))
    left = threading.Event()

    def look() -> None:
        while not left.wait(_LOOK_S):
            for rank, (pid, started) in enumerate(peers):
                if start_time(pid) != started and not left.is_set():
                    on_lost(f"rank {rank} (pid {pid}) died: its process is gone.")
                    return

    thread = threading.Thread(target=look, name="watch-peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
    thread.join()
    barrier()  # whoever goes on from here may end: nobody watches any more


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; -1 when it is gone or a zombie."""
    try:
        # man 5 proc: state is field 3, start time field 22, after a name that may hold spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def barrier() -> None:
    """Wait for every rank."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def all_reduce(tensor: Tensor, op: Op = "sum") -> Tensor:
    """Reduce `tensor` over ranks in place and return it."""
    if torch_dist.is_initialized():
        how = torch_dist.ReduceOp.SUM if op == "sum" else torch_dist.ReduceOp.MAX
        torch_dist.all_reduce(tensor, how)
    return tensor


def num_ranks() -> int:
    """How many ranks there are."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def own_share(tensor: Tensor) -> Tensor:
    """This rank's of as many equal parts of a 1-D tensor as there are ranks; a view."""
    rank = torch_dist.get_rank() if torch_dist.is_initialized() else 0
    return tensor.chunk(num_ranks())[rank]


def reduce_scatter(tensor: Tensor) -> Tensor:
    """This rank's share of the sum of 1-D tensors over ranks; the tensor itself for one rank."""
    if not torch_dist.is_initialized():
        return tensor
    share = torch.empty_like(own_share(tensor))
    torch_dist.reduce_scatter_tensor(share, tensor)
    return share


def all_gather(tensor: Tensor) -> Tensor:
    """Take every other rank's share of a 1-D tensor over from it, in place, and return it."""
    if torch_dist.is_initialized():
        torch_dist.all_gather_into_tensor(tensor, own_share(tensor))
    return tensor


def broadcast(value: Any) -> Any:
    """Rank 0's picklable value on every rank."""
    box = [value]
    if torch_dist.is_initialized():
        torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's picklable value, by rank."""
    if not torch_dist.is_initialized():
        return [value]
    boxes: list[Any] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(boxes, value)
    return boxes
