"""The wire between CPU ranks: torch copies into host shared memory, flags polled by the process.

Legend: T tokens, D model, K top-k, P ranks, R rows, S = P * stride slots, B parts of d(gate).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nmoe import ops
from nmoe.config import Impl
from nmoe.rdep import layout
from nmoe.rdep.peers import Peers


class HostWire:
    """See `nmoe.rdep.ipc.Wire`."""

    impl: Impl = "reference"

    def __init__(self, peers: Peers, *, stride: int, num_experts: int) -> None:
        self.peers, self.stride, self._num_experts = peers, stride, num_experts

    def local(self, region: str) -> Tensor:
        return self.peers.local(region)

    def push_choices(self, experts_TK: Tensor, gates_TK: Tensor) -> None:
        count, experts_wire = torch.tensor([len(experts_TK)]).int(), experts_TK.int()
        me = self.peers.rank
        for owner in range(self.peers.world):
            self.peers.put(owner, "counts", count, index=torch.tensor([me]))
            self.peers.put(owner, "experts", experts_wire, at=(me,))
            self.peers.put(owner, "gates", gates_TK, at=(me,))

    def push_rows(self, region: str, x_TD: Tensor, experts_TK: Tensor) -> None:
        for owner, tokens in enumerate(self._destinations(experts_TK)):
            rows = x_TD.index_select(0, tokens)
            self.peers.put(owner, region, rows, at=(self.peers.rank,), index=tokens)

    def push_sums(self, y_RD: Tensor, row_SK: Tensor) -> None:
        sums_SD = ops.combine(y_RD, row_SK, impl=self.impl)
        for home, (row_TK, sums_TD) in enumerate(self._by_source(row_SK, sums_SD)):
            tokens = (row_TK >= 0).any(dim=1).nonzero().flatten()
            self.peers.put(home, "home", sums_TD[tokens], at=(self.peers.rank,), index=tokens)

    def push_gate_grads(self, dgate_BR: Tensor, row_SK: Tensor) -> None:
        dgates_SK = ops.gate_grads(dgate_BR, row_SK, impl=self.impl)
        for home, (row_TK, dgates_TK) in enumerate(self._by_source(row_SK, dgates_SK)):
            choice = (row_TK.flatten() >= 0).nonzero().flatten()
            self.peers.put(home, "dgates", dgates_TK.flatten()[choice], index=choice)

    def sum_home(self, experts_TK: Tensor) -> Tensor:
        home = self.peers.local("home")
        total_TD = torch.zeros(len(experts_TK), home.shape[-1])
        for owner, tokens in enumerate(self._destinations(experts_TK)):
            total_TD.index_add_(0, tokens, home[owner].index_select(0, tokens).float())
        return total_TD.to(home.dtype)

    def sync(self, phase: str) -> None:
        self.peers.signal(phase)
        self.peers.wait(phase)

    def check(self) -> None:
        """Nothing: `sync` has raised."""

    def close(self) -> None:
        self.peers.close()

    def _destinations(self, experts_TK: Tensor) -> tuple[Tensor, ...]:
        return layout.destinations(
            experts_TK, num_experts=self._num_experts, world=self.peers.world
        )

    def _by_source(self, first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Two tensors [S, ...] cut into the slots of every source."""
        return zip(first.split(self.stride), second.split(self.stride), strict=True)
