"""The wire between GPUs: kernels that store into peer memory, flags that only the device reads.

Legend: T tokens, K top-k, P ranks, R rows, S = P * stride slots, B parts of d(gate).
"""

from typing import Protocol

import torch
from torch import Tensor

from nmoe import ops
from nmoe.config import Impl
from nmoe.rdep.ipc import PHASES
from nmoe.rdep.peers import PeerTimeout, Region

FLAGS = "flags"


class Memory(Protocol):
    """Regions that every rank has and every rank can write."""

    rank: int
    world: int

    def local(self, name: str) -> Tensor:
        """My own region."""
        ...

    def pointers(self, name: str) -> Tensor:
        """int64 [P] on the device: where each rank has the region."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


def flag_region(world: int) -> dict[str, Region]:
    """The flags, which this wire keeps beside the other regions."""
    return {FLAGS: Region(shape=(len(PHASES), world), dtype=torch.int32)}


class DeviceWire:
    """See `nmoe.rdep.ipc.Wire`; every call is a launch on the current stream and waits for nothing.

    One stream for all calls: a wait that overtakes its own signal on another stream never ends.
    """

    impl: Impl = "triton"

    def __init__(
        self, memory: Memory, *, stride: int, experts_per_rank: int, timeout_s: float
    ) -> None:
        self.memory, self.stride, self._each = memory, stride, experts_per_rank
        self._kernels = ops.peer_kernels()
        self._timeout_ns = int(timeout_s * 1e9)
        flags = memory.local(FLAGS)
        self._epochs = torch.zeros(len(PHASES), dtype=torch.int32, device=flags.device)
        self._status = torch.zeros(1, dtype=torch.int32, device=flags.device)

    def local(self, region: str) -> Tensor:
        return self.memory.local(region)

    def push_choices(self, experts_TK: Tensor, gates_TK: Tensor) -> None:
        self._kernels.push_choices(
            experts_TK,
            gates_TK,
            experts_P=self.memory.pointers("experts"),
            gates_P=self.memory.pointers("gates"),
            counts_P=self.memory.pointers("counts"),
            rank=self.memory.rank,
            stride=self.stride,
        )

    def push_rows(self, region: str, x_TD: Tensor, experts_TK: Tensor) -> None:
        self._kernels.push_rows(
            x_TD,
            experts_TK,
            rows_P=self.memory.pointers(region),
            rank=self.memory.rank,
            stride=self.stride,
            experts_per_rank=self._each,
        )

    def push_sums(self, y_RD: Tensor, row_SK: Tensor) -> None:
        home_P = self.memory.pointers("home")
        self._kernels.push_sums(
            y_RD, row_SK, home_P=home_P, rank=self.memory.rank, stride=self.stride
        )

    def push_gate_grads(self, dgate_BR: Tensor, row_SK: Tensor) -> None:
        dgates_P = self.memory.pointers("dgates")
        self._kernels.push_gate_grads(dgate_BR, row_SK, dgates_P=dgates_P, stride=self.stride)

    def sum_home(self, experts_TK: Tensor) -> Tensor:
        return self._kernels.sum_home(
            self.memory.local("home").flatten(0, 1),
            experts_TK,
            world=self.memory.world,
            stride=self.stride,
            experts_per_rank=self._each,
        )

    def sync(self, phase: str) -> None:
        self._kernels.signal_and_wait(
            self.memory.pointers(FLAGS),
            self.memory.local(FLAGS),
            self._epochs,
            self._status,
            phase=PHASES.index(phase),
            rank=self.memory.rank,
            timeout_ns=self._timeout_ns,
        )

    def check(self) -> None:
        late = int(self._status)
        if late:
            raise PeerTimeout(
                f"rank {self.memory.rank} waited {self._timeout_ns / 1e9:.0f} s for rank "
                f"{late - 1}, which did not come. Look at the logs of that rank."
            )

    def close(self) -> None:
        self.memory.close()
