"""Ranks of one host: rows are written straight into the owner's memory, flags say when.

A layer and micro-batch has four phases, each "signal every rank, wait for every rank":

    FD  forward dispatch   counts, expert ids and gates to all ranks, x rows into recv[layer][me]
    FR  forward return     per (token, owner) one row of gated sums into home[me]
    BD  backward dispatch  dy rows into dy[me]
    BR  backward return    per (token, owner) one row of dx into home[me], d(gate) into dgates

A row goes once to each distinct owner of its token, into the slot that (source, token) has there,
so there are no counters, no overflow and nothing to drop; no collective is involved. Sums run in a
fixed order in fp32 (rows in order at the owner, owners in rank order at home): the same inputs give
the same bits.

Why it is safe. A cell is written by puts and read by its owner only, and a read follows the wait of
the phase whose puts wrote it. It remains that no later put reaches a cell before its owner has read
it:
- counts, experts, gates: read before my FR signal. They are put in the next FD, after its source's
  FR wait.
- recv[layer]: read before my BR signal of that layer (forward only: before my FR signal). It is put
  in the layer's next FD, after its source's BR (FR) wait. So the weight gradients, which read it,
  must be done before combine_grads.
- dy: read between my BD wait and my BR signal, the weight gradients included. It is put in the next
  BD, after its source's BR wait.
- home: summed between my FR (BR) wait and my next FD or BD signal. It is put in the next FR or BR,
  after its source's FD or BD wait, which needs that signal. Both directions share it. Only the
  owners that my own ids name are read, so what others left there does not matter.
- dgates: copied out before my next signal; it is put in the next BR, after its source's BD wait.
Each phase has its own epoch, which only grows and is compared with >=: a signal is never lost,
however early it comes. Ranks without tokens or rows put no rows but signal all the same.

All ranks make the same calls in the same order, and each rank checks its own: dispatch, combine; in
the backward pass dispatch_grads, combine_grads.

Legend: T tokens, D model, K top-k, R rows, P ranks, S = P * max_tokens slots, B parts of d(gate).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nmoe import ops
from nmoe.rdep import layout
from nmoe.rdep.layout import Arrived
from nmoe.rdep.peers import Peers, Region

_PHASES = ("FD", "FR", "BD", "BR")


class Ipc:
    """Expert transport of several CPU ranks over host shared memory."""

    def __init__(
        self,
        *,
        rank: int,
        world: int,
        local_experts: range,
        top_k: int,
        dim: int,
        max_tokens: int,
        num_layers: int,
        dtype: torch.dtype,
        timeout_s: float,
    ) -> None:
        self.rank, self.world = rank, world
        self.local_experts = local_experts
        slots, choices = (world, max_tokens, dim), (world, max_tokens, top_k)
        regions = {
            "counts": Region(shape=(world, 1), dtype=torch.int32),
            "experts": Region(shape=choices, dtype=torch.int32),
            "gates": Region(shape=choices, dtype=torch.float32),
            "dy": Region(shape=slots, dtype=dtype),
            "home": Region(shape=slots, dtype=dtype),
            "dgates": Region(shape=(max_tokens * top_k,), dtype=torch.float32),
        }
        # a region of its own for each layer, because x_SD of every layer lives until its backward
        regions |= {f"recv{layer}": Region(shape=slots, dtype=dtype) for layer in range(num_layers)}
        self.peers = Peers(
            rank=rank, world=world, regions=regions, phases=_PHASES, timeout_s=timeout_s
        )
        self._dtype, self._max_tokens, self._top_k, self._dim = dtype, max_tokens, top_k, dim
        self._turns = [0] * num_layers
        self._due = ""

    def dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> Arrived:
        self._check(x_TD, experts_TK, gates_TK, layer=layer)
        self._enter("dispatch", due="", then="combine")
        peers = self.peers
        count, experts_wire = torch.tensor([len(x_TD)]).int(), experts_TK.int()
        for owner in range(self.world):
            peers.put(owner, "counts", count, at=(self.rank,))
            peers.put(owner, "experts", experts_wire, at=(self.rank,))
            peers.put(owner, "gates", gates_TK, at=(self.rank,))
        self._push(f"recv{layer}", x_TD, experts_TK)
        self._sync("FD")
        gates_NK = peers.local("gates").flatten(0, 1)
        rows = ops.sort_rows(
            peers.local("experts").flatten(0, 1),
            gates_NK,
            self.local_experts,
            count_P=peers.local("counts").flatten(),
            stride=self._max_tokens,
            impl="reference",
        )
        self._turns[layer] += 1
        return Arrived(
            x_SD=peers.local(f"recv{layer}").flatten(0, 1),
            rows=rows,
            gates_NK=gates_NK,
            experts_TK=experts_TK,
            layer=layer,
            turn=self._turns[layer],
        )

    def combine(self, y_RD: Tensor, arrived: Arrived) -> Tensor:
        row_SK = arrived.rows.row_NK
        if y_RD.dtype != self._dtype or len(y_RD) != len(arrived.rows.slot_R):
            got = f"{y_RD.dtype} {tuple(y_RD.shape)}"
            raise ValueError(
                f"combine: got y {got}, expected {self._dtype} with {len(arrived.rows.slot_R)} "
                "rows."
            )
        self._enter("combine", due="combine", then="")
        self._send_home(ops.combine(y_RD, row_SK, arrived.gates_NK, impl="reference"), row_SK)
        self._sync("FR")
        return self._sum_home(arrived.experts_TK)

    def dispatch_grads(self, dy_TD: Tensor, arrived: Arrived) -> Tensor:
        if arrived.turn != self._turns[arrived.layer]:
            raise RuntimeError(
                f"backward of layer {arrived.layer}: its rows are gone, a later dispatch of the "
                "layer overwrote them. Run each backward pass before the next forward pass."
            )
        self._enter("dispatch_grads", due="", then="combine_grads")
        self._push("dy", dy_TD, arrived.experts_TK)
        self._sync("BD")
        return self.peers.local("dy").flatten(0, 1)

    def combine_grads(
        self, dx_RD: Tensor, dgate_BR: Tensor, arrived: Arrived
    ) -> tuple[Tensor, Tensor]:
        self._enter("combine_grads", due="combine_grads", then="")
        row_SK, top_k = arrived.rows.row_NK, self._top_k
        self._send_home(ops.combine(dx_RD, row_SK, None, impl="reference"), row_SK)
        dgates_SK = ops.gate_grads(dgate_BR, row_SK, impl="reference")
        for home, (row_TK, dgates_TK) in enumerate(self._by_source(row_SK, dgates_SK)):
            choice = (row_TK.flatten() >= 0).nonzero().flatten()
            self.peers.put(home, "dgates", dgates_TK.flatten()[choice], index=choice)
        self._sync("BR")
        num_choices = len(arrived.experts_TK) * top_k
        dgates = self.peers.local("dgates")[:num_choices].clone()
        return self._sum_home(arrived.experts_TK), dgates.view(-1, top_k)

    def close(self) -> None:
        self._due = "nothing: the transport is closed"
        self.peers.close()

    def _push(self, region: str, rows_TD: Tensor, experts_TK: Tensor) -> None:
        """Write each row once to every distinct owner of its token, into the token's slot there."""
        for owner, tokens in enumerate(self._destinations(experts_TK)):
            rows = rows_TD.index_select(0, tokens)
            self.peers.put(owner, region, rows, at=(self.rank,), index=tokens)

    def _send_home(self, sums_SD: Tensor, row_SK: Tensor) -> None:
        """Write the sum of every (source, token) with a row here to its source."""
        for home, (row_TK, sums_TD) in enumerate(self._by_source(row_SK, sums_SD)):
            tokens = (row_TK >= 0).any(dim=1).nonzero().flatten()
            self.peers.put(home, "home", sums_TD[tokens], at=(self.rank,), index=tokens)

    def _sync(self, phase: str) -> None:
        self.peers.signal(phase)
        self.peers.wait(phase)

    def _sum_home(self, experts_TK: Tensor) -> Tensor:
        home = self.peers.local("home")
        total_TD = torch.zeros(len(experts_TK), self._dim)
        for owner, tokens in enumerate(self._destinations(experts_TK)):
            total_TD.index_add_(0, tokens, home[owner].index_select(0, tokens).float())
        return total_TD.to(self._dtype)

    def _destinations(self, experts_TK: Tensor) -> tuple[Tensor, ...]:
        num_experts = len(self.local_experts) * self.world
        return layout.destinations(experts_TK, num_experts=num_experts, world=self.world)

    def _by_source(self, first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Two tensors [S, ...] cut into the slots of every source."""
        stride = self._max_tokens
        return zip(first.split(stride), second.split(stride), strict=True)

    def _enter(self, call: str, *, due: str, then: str) -> None:
        """Refuse a call out of order: `due` must be outstanding now, `then` is afterwards."""
        if self._due != due:
            expected = self._due or "dispatch or dispatch_grads"
            raise RuntimeError(f"expert transport: got {call}, expected {expected}.")
        self._due = then

    def _check(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int) -> None:
        num_experts = len(self.local_experts) * self.world
        layout.check(x_TD, experts_TK, gates_TK, num_experts=num_experts, dtype=self._dtype)
        got, opened = (x_TD.shape[1], experts_TK.shape[1]), (self._dim, self._top_k)
        if got != opened:
            raise ValueError(f"dispatch: got (D, K) {got}, expected {opened} as opened.")
        if len(x_TD) > self._max_tokens or not 0 <= layer < len(self._turns):
            raise ValueError(
                f"dispatch: got {len(x_TD)} tokens in layer {layer}, expected at most "
                f"{self._max_tokens} tokens and {len(self._turns)} layers as opened."
            )
