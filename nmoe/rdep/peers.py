"""Symmetric buffers and flags of ranks on one host: each writes straight into its peers' memory.

Every rank creates one file in /dev/shm, every rank maps all of them, and the names are removed as
soon as all have: whatever kills a rank later, the kernel takes the memory back. A buffer holds a
header (process id, its start time, whether it has closed), the flags and the regions, zeroed.

torch.distributed (an initialised default group) is used to meet in `Peers(...)`, never afterwards.
"""

import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nmoe.dist import start_time

_SHM = Path("/dev/shm")
_LINE_BYTES = 64  # a flag or a region starts on its own cache line
_WORD_BYTES = 8
_PID, _STARTED, _CLOSED = range(3)  # 64-bit words of the header
_YIELDS = 200  # looks at the flags, giving up the core in between, before sleeping starts
_NAP_S = (20e-6, 500e-6)  # first and longest sleep of a wait
_LIVENESS_S = 0.2  # how often a waiting rank looks whether its peers live


class PeerError(RuntimeError):
    """The ranks of the expert transport cannot work together."""


class PeerLost(PeerError):
    """A rank that is waited for has died or left."""


class PeerTimeout(PeerError):
    """A rank that is waited for lives but did not signal in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A tensor that every rank holds in its buffer."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Peers:
    """The buffers of all ranks: `local` is my own, `put` writes anybody's, flags order the two.

    A flag is a 64-bit epoch in the waiter's buffer, one for each (phase, source), written by its
    source only and growing by one with every signal, so it is never reset. bytes_put counts what
    this rank wrote into each rank's regions.
    """

    def __init__(
        self,
        *,
        rank: int,
        world: int,
        regions: dict[str, Region],
        phases: tuple[str, ...],
        timeout_s: float,
    ) -> None:
        self.rank, self.world = rank, world
        self.bytes_put = [0] * world
        self._timeout_s = timeout_s
        self._regions = regions
        self._epochs = dict.fromkeys(phases, 0)
        lines = 1 + len(phases) * world  # the header, then the flags
        self._flag_at = {
            (phase, source): (1 + i * world + source) * (_LINE_BYTES // _WORD_BYTES)
            for i, phase in enumerate(phases)
            for source in range(world)
        }
        self._offsets: dict[str, int] = {}
        size = lines * _LINE_BYTES
        for name, region in regions.items():
            self._offsets[name] = size
            size += -(-region.num_bytes // _LINE_BYTES) * _LINE_BYTES
        self._maps = _meet(rank=rank, world=world, size=size)
        self._words = [memoryview(buffer)[: lines * _LINE_BYTES].cast("q") for buffer in self._maps]
        self._targets = [
            {name: self._view(peer, name) for name in regions} for peer in range(world)
        ]

    def local(self, name: str) -> Tensor:
        """My own region as a tensor that shares memory but no autograd version with any other."""
        return self._view(self.rank, name)

    def pointers(self, name: str) -> Tensor:
        """int64 [P]: where this process sees the region of every rank."""
        return torch.tensor([regions[name].data_ptr() for regions in self._targets])

    def put(
        self,
        dst: int,
        name: str,
        values: Tensor,
        *,
        at: tuple[int, ...] = (),
        index: Tensor | None = None,
    ) -> None:
        """Write values into region[*at] of `dst`: its first entries, or those named by `index`."""
        target = self._targets[dst][name][at]
        if index is None:
            target[: len(values)] = values
        else:
            target.index_copy_(0, index, values)
        self.bytes_put[dst] += values.numel() * target.element_size()

    def signal(self, phase: str) -> None:
        """Tell every rank that all I wrote and read before this line is done."""
        self._epochs[phase] += 1
        _fence()
        at = self._flag_at[phase, self.rank]
        for peer in range(self.world):
            self._words[peer][at] = self._epochs[phase]

    def wait(self, phase: str) -> None:
        """Return when all ranks have signalled `phase` as often as I; PeerLost, PeerTimeout."""
        words = self._words[self.rank]
        epoch = self._epochs[phase]
        behind = list(range(self.world))
        start = checked = time.monotonic()
        looks, nap = 0, _NAP_S[0]
        while behind := [p for p in behind if words[self._flag_at[phase, p]] < epoch]:
            looks += 1
            if looks < _YIELDS:
                os.sched_yield()
                continue
            time.sleep(nap)
            nap = min(2 * nap, _NAP_S[1])
            now = time.monotonic()
            if now - checked >= _LIVENESS_S:
                checked = now
                # the state is read before the flag: a rank may signal and then leave
                for peer, why in [(p, self._lost(p)) for p in behind]:
                    if why and words[self._flag_at[phase, peer]] < epoch:
                        raise PeerLost(f"rank {peer} (pid {self._words[peer][_PID]}) {why}.")
            if now - start > self._timeout_s:
                names = ", ".join(f"rank {p} (pid {self._words[p][_PID]})" for p in behind)
                raise PeerTimeout(
                    f"rank {self.rank} waited {now - start:.0f} s for {phase} of {names}, which "
                    "did not come. Look at the logs of that rank."
                )
        _fence()

    def close(self) -> None:
        """Leave: peers that wait for this rank learn it; memory goes with me and my tensors."""
        self._words[self.rank][_CLOSED] = 1

    def _lost(self, peer: int) -> str:
        words = self._words[peer]
        if words[_CLOSED]:
            return "left: it closed its transport while this rank still needs it"
        if start_time(words[_PID]) != words[_STARTED]:
            return "died: its process is gone. Look at its log and resume the run"
        return ""

    def _view(self, peer: int, name: str) -> Tensor:
        region = self._regions[name]
        flat = torch.frombuffer(
            self._maps[peer],
            dtype=region.dtype,
            count=prod(region.shape),
            offset=self._offsets[name],
        )
        return flat.view(region.shape)


def _meet(*, rank: int, world: int, size: int) -> list[mmap.mmap]:
    """Create my buffer, map everybody's, remove the names; all ranks succeed or all raise."""
    invitation = [_invite(world * size) if rank == 0 else ("", "")]
    dist.broadcast_object_list(invitation, src=0)
    token, problem = invitation[0]
    if problem:
        raise PeerError(problem)
    paths = [_SHM / f"nmoe-{token}-{peer}" for peer in range(world)]
    maps: list[mmap.mmap] = []
    try:
        _agree(lambda: _create(paths[rank], size))
        _agree(lambda: maps.extend(_map(path, size) for path in paths))
    finally:
        paths[rank].unlink(missing_ok=True)
    return maps


def _invite(needed: int) -> tuple[str, str]:
    """A random name for the buffers and, when they do not fit, what to do."""
    stat = os.statvfs(_SHM)
    free = stat.f_bavail * stat.f_frsize
    if needed <= free:
        return secrets.token_hex(8), ""
    return "", (
        f"{_SHM} is too small for the expert rows of all ranks: got {free} bytes free, expected "
        f"{needed}. Enlarge it (docker run --shm-size) or lower the tokens of a micro-batch."
    )


def _agree(act: Callable[[], None]) -> None:
    """Do it on every rank; when one fails, all raise."""
    problem = ""
    try:
        act()
    except OSError as error:
        problem = str(error)
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for peer, text in enumerate(problems):
        if text:
            raise PeerError(f"rank {peer} cannot share memory with its peers: {text}.")


def _create(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # pages now: a full /dev/shm is an error here instead of a SIGBUS later
        os.posix_fallocate(fd, 0, size)
        pid = os.getpid()
        os.pwrite(fd, struct.pack("2q", pid, start_time(pid)), 0)
    finally:
        os.close(fd)


def _map(path: Path, size: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


_held = threading.Lock()
_held.acquire()


def _fence() -> None:
    """Order all memory accesses before it and after it, also on ARM: release, then acquire."""
    _held.release()
    _held.acquire()
