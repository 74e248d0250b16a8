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
  in the layer's next FD, after its source's BR (FR) wait. So the experts' weight gradients must be
  done when the gradient of x_SD arrives here, unless the experts copied their rows out in the
  forward pass, as `nmoe.reference.experts` does.
- dy: copied out between my BD wait and my BR signal. It is put in the next BD, after its source's
  BR wait.
- home: summed between my FR (BR) wait and my next FD or BD signal. It is put in the next FR or BR,
  after its source's FD or BD wait, which needs that signal. Both directions share it. Only the
  owners that my own ids name are read, so what others left there does not matter.
- dgates: copied out before my next signal; it is put in the next BR, after its source's BD wait.
Each phase has its own epoch, which only grows and is compared with >=: a signal is never lost,
however early it comes. Ranks without tokens or rows put no rows but signal all the same.

All ranks make the same calls in the same order, and each rank checks its own: dispatch, combine; in
the backward pass combine's, then dispatch's. An anchor that requires grad makes every rank record
both, whatever its inputs.

Legend: T tokens, D model, K top-k, R rows, P ranks, S = P * max_tokens slots, U (source, token)
pairs with at least one row here.
"""

from typing import Any

import torch
from torch import Tensor

from nmoe.rdep import layout
from nmoe.rdep.layout import Receipt, Rows
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
            "counts": Region(shape=(world, 1), dtype=torch.int64),
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
        self._anchor = torch.zeros((), requires_grad=True)

    def dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> tuple[Rows, Receipt]:
        self._check(x_TD, experts_TK, gates_TK, layer=layer)
        self._enter("dispatch", due="", then="combine")
        with torch.no_grad():
            receipt, gates_R = self._dispatch(x_TD, experts_TK, gates_TK, layer=layer)
        x_SD, gates_R = _Dispatch.apply(x_TD, gates_TK, self._anchor, gates_R, self, receipt)
        arrivals = receipt.arrivals
        return (
            Rows(x_SD=x_SD, index_R=arrivals.index_R, gates_R=gates_R, ends_e=arrivals.ends_e),
            receipt,
        )

    def combine(self, y_RD: Tensor, rows: Rows, receipt: Receipt) -> Tensor:
        if y_RD.dtype != self._dtype or len(y_RD) != len(rows.index_R):
            got = f"{y_RD.dtype} {tuple(y_RD.shape)}"
            raise ValueError(
                f"combine: got y {got}, expected {self._dtype} with {len(rows.index_R)} rows."
            )
        self._enter("combine", due="combine", then="")
        return _Combine.apply(y_RD, rows.gates_R, self, receipt)

    def close(self) -> None:
        self._due = "nothing: the transport is closed"
        self.peers.close()

    def _dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> tuple[Receipt, Tensor]:
        peers, num_experts = self.peers, len(self.local_experts) * self.world
        sent_P = layout.destinations(experts_TK, num_experts=num_experts, world=self.world)
        count, experts_wire = torch.tensor([len(x_TD)]), experts_TK.int()
        for owner in range(self.world):
            peers.put(owner, "counts", count, at=(self.rank,))
            peers.put(owner, "experts", experts_wire, at=(self.rank,))
            peers.put(owner, "gates", gates_TK, at=(self.rank,))
        self._push(f"recv{layer}", x_TD, sent_P)
        self._sync("FD")
        counts_P = tuple(peers.local("counts").flatten().tolist())
        arrivals = layout.arrivals(
            _used(peers.local("experts"), counts_P).long(),
            counts_P,
            local_experts=self.local_experts,
            stride=self._max_tokens,
        )
        gates_R = _used(peers.local("gates"), counts_P).flatten()[arrivals.choice_R]
        self._turns[layer] += 1
        receipt = Receipt(
            layer=layer,
            turn=self._turns[layer],
            counts_P=counts_P,
            sent_P=sent_P,
            arrivals=arrivals,
        )
        return receipt, gates_R

    def slots(self, receipt: Receipt) -> Tensor:
        """x_SD: the receive region of the receipt's layer, in place."""
        return self.peers.local(f"recv{receipt.layer}").flatten(0, 1)

    def return_sums(self, y_RD: Tensor, gates_R: Tensor, receipt: Receipt) -> Tensor:
        """FR: gated sums of each (source, token) go home; y_TD."""
        arrivals = receipt.arrivals
        lengths = [len(tokens) for tokens in arrivals.tokens_P]
        sums_UD = torch.zeros(sum(lengths), self._dim)
        sums_UD.index_add_(0, arrivals.pair_R, y_RD.float() * gates_R[:, None])
        for home, part in enumerate(sums_UD.to(self._dtype).split(lengths)):
            self.peers.put(home, "home", part, at=(self.rank,), index=arrivals.tokens_P[home])
        self._sync("FR")
        return self._sum_home(receipt)

    def push_grads(self, dy_TD: Tensor, receipt: Receipt) -> Tensor:
        """BD: the gradient of y goes to the owners of its rows; dy_RD, a copy."""
        if receipt.turn != self._turns[receipt.layer]:
            raise RuntimeError(
                f"backward of layer {receipt.layer}: its rows are gone, a later dispatch of the "
                "layer overwrote them. Run each backward pass before the next forward pass."
            )
        self._enter("backward of combine", due="", then="backward of dispatch")
        self._push("dy", dy_TD, receipt.sent_P)
        self._sync("BD")
        return self.peers.local("dy").flatten(0, 1).index_select(0, receipt.arrivals.index_R)

    def return_grads(
        self, dx_SD: Tensor, dgates_R: Tensor, receipt: Receipt
    ) -> tuple[Tensor, Tensor]:
        """BR: dx of each (source, token) and the gates' gradients go home; dx_TD, dgates_TK."""
        self._enter("backward of dispatch", due="backward of dispatch", then="")
        arrivals, num_choices = receipt.arrivals, [n * self._top_k for n in receipt.counts_P]
        starts = torch.tensor([0, *num_choices]).cumsum(0)
        home_R = torch.bucketize(arrivals.choice_R, starts[1:], right=True)
        for home, tokens in enumerate(arrivals.tokens_P):
            row = (home_R == home).nonzero().flatten()
            choice = arrivals.choice_R[row] - starts[home]
            part = dx_SD.index_select(0, tokens + home * self._max_tokens)
            self.peers.put(home, "home", part, at=(self.rank,), index=tokens)
            self.peers.put(home, "dgates", dgates_R[row], index=choice)
        self._sync("BR")
        dgates = self.peers.local("dgates")[: num_choices[self.rank]].clone()
        return self._sum_home(receipt), dgates.view(-1, self._top_k)

    def _push(self, region: str, rows_TD: Tensor, sent_P: tuple[Tensor, ...]) -> None:
        for owner, tokens in enumerate(sent_P):
            rows = rows_TD.index_select(0, tokens)
            self.peers.put(owner, region, rows, at=(self.rank,), index=tokens)

    def _sync(self, phase: str) -> None:
        self.peers.signal(phase)
        self.peers.wait(phase)

    def _sum_home(self, receipt: Receipt) -> Tensor:
        home = self.peers.local("home")
        total_TD = torch.zeros(receipt.counts_P[self.rank], self._dim)
        for owner, tokens in enumerate(receipt.sent_P):
            total_TD.index_add_(0, tokens, home[owner].index_select(0, tokens).float())
        return total_TD.to(self._dtype)

    def _enter(self, call: str, *, due: str, then: str) -> None:
        """Refuse a call out of order: `due` must be outstanding now, `then` is afterwards."""
        if self._due != due:
            expected = self._due or "dispatch or backward of combine"
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


def _used(slots: Tensor, counts_P: tuple[int, ...]) -> Tensor:
    """The filled part of each source's slots, one after the other: a copy."""
    return torch.cat([slots[source, :count] for source, count in enumerate(counts_P)])


class _Dispatch(torch.autograd.Function):
    """Makes the arrived rows outputs of x and gates; backward sends their gradients home."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gates_TK: Tensor,
        anchor: Tensor,
        gates_R: Tensor,
        transport: Ipc,
        receipt: Receipt,
    ) -> tuple[Tensor, Tensor]:
        ctx.transport, ctx.receipt = transport, receipt
        return transport.slots(receipt), gates_R.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx_SD, dgates_R = grads
        dx_TD, dgates_TK = ctx.transport.return_grads(dx_SD, dgates_R, ctx.receipt)
        return dx_TD, dgates_TK, None, None, None, None


class _Combine(torch.autograd.Function):
    """Gated rows to sums at home; backward needs y_RD for the gates' gradients."""

    @staticmethod
    def forward(
        ctx: Any, y_RD: Tensor, gates_R: Tensor, transport: Ipc, receipt: Receipt
    ) -> Tensor:
        ctx.transport, ctx.receipt = transport, receipt
        ctx.save_for_backward(y_RD, gates_R)
        return transport.return_sums(y_RD, gates_R, receipt)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_TD,) = grads
        y_RD, gates_R = ctx.saved_tensors
        dy_RD = ctx.transport.push_grads(dy_TD, ctx.receipt).float()
        dgates_R = (dy_RD * y_RD.float()).sum(dim=1)
        return (dy_RD * gates_R[:, None]).to(y_RD.dtype), dgates_R, None, None
