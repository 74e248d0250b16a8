"""Ranks of one host: rows are written straight into the owner's memory, flags say when.

A layer and micro-batch has four phases, each "signal every rank, wait for every rank":

    FD  forward dispatch   counts, expert ids and gates to all ranks, x rows into recv[layer][me]
    FR  forward return     per (token, owner) one row of sums into home[me]
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
`tests/rdep/protocol.py` is a model of this that runs under schedules of all sorts.

Room for rows. Slots never run out; the rows that a rank sorts may, where it has room for fewer
than could come. Such a rank leaves out what is past its room and says so in a flag on its device.
Nothing waits for that: the phases run to their end, the rows that are missing leave old values in
`home`, and `fits` tells all ranks alike that the result is of no use.

All ranks make the same calls in the same order, and each rank checks its own: dispatch, combine; in
the backward pass dispatch_grads, combine_grads.

How bytes move is a matter of the wire: `nmoe.rdep.host` between CPU ranks, `nmoe.rdep.device` of
GPUs. The latter runs everything on one stream, so "before" above is the order of launches.

Legend: T tokens, D model, K top-k, R rows, P ranks, S = P * stride slots, B parts of d(gate).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from nmoe import dist, ops
from nmoe.config import Impl
from nmoe.rdep import layout
from nmoe.rdep.layout import Arrived
from nmoe.rdep.peers import Region

PHASES = ("FD", "FR", "BD", "BR")


class Wire(Protocol):
    """Moves rows, sums and flags between ranks; knows nothing of the order of calls."""

    impl: Impl
    stride: int  # slots of a source, at least its tokens

    def local(self, region: str) -> Tensor:
        """My own region."""
        ...

    def push_choices(self, experts_TK: Tensor, gates_TK: Tensor) -> None:
        """Ids, gates and the number of tokens to every rank."""
        ...

    def push_rows(self, region: str, x_TD: Tensor, experts_TK: Tensor) -> None:
        """Each row once to every distinct owner of its token, into the token's slot there."""
        ...

    def push_sums(self, y_RD: Tensor, row_SK: Tensor) -> None:
        """The sum of every slot with a row here to its source, one row each."""
        ...

    def push_gate_grads(self, dgate_BR: Tensor, row_SK: Tensor) -> None:
        """d(gate) of every choice with a row here to the source of its token."""
        ...

    def sum_home(self, experts_TK: Tensor) -> Tensor:
        """y_TD: what the owners of each token's experts left here, in rank order, in fp32."""
        ...

    def sync(self, phase: str) -> None:
        """Signal every rank, wait for every rank."""
        ...

    def check(self) -> None:
        """Raise PeerTimeout when a wait has given up; a device is waited for."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


def regions(
    *, world: int, stride: int, top_k: int, dim: int, num_layers: int, dtype: torch.dtype
) -> dict[str, Region]:
    """What every rank holds for its peers to write."""
    slots, choices = (world, stride, dim), (world, stride, top_k)
    shared = {
        "counts": Region(shape=(world,), dtype=torch.int32),
        "experts": Region(shape=choices, dtype=torch.int32),
        "gates": Region(shape=choices, dtype=torch.float32),
        "dy": Region(shape=slots, dtype=dtype),
        "home": Region(shape=slots, dtype=dtype),
        "dgates": Region(shape=(stride * top_k,), dtype=torch.float32),
    }
    # a region of its own for each layer, because x_SD of every layer lives until its backward
    return shared | {
        f"recv{layer}": Region(shape=slots, dtype=dtype) for layer in range(num_layers)
    }


class Ipc:
    """Expert transport of several ranks of one host."""

    def __init__(
        self,
        wire: Wire,
        *,
        rank: int,
        world: int,
        local_experts: range,
        top_k: int,
        dim: int,
        max_tokens: int,
        num_layers: int,
        dtype: torch.dtype,
        room: int | None = None,
    ) -> None:
        """room: choices for which there are rows at first, of all tokens of all ranks when None."""
        self._room = room
        device = wire.local("counts").device
        self._overflow = torch.zeros(1, dtype=torch.int32, device=device)
        self.wire, self.rank, self.world = wire, rank, world
        self.local_experts = local_experts
        self._dtype, self._max_tokens, self._top_k, self._dim = dtype, max_tokens, top_k, dim
        self._turns = [0] * num_layers
        self._due = ""

    def dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> Arrived:
        self._check(x_TD, experts_TK, gates_TK, layer=layer)
        self._enter("dispatch", due="", then="combine")
        wire = self.wire
        wire.push_choices(experts_TK, gates_TK)
        wire.push_rows(f"recv{layer}", x_TD, experts_TK)
        wire.sync("FD")
        rows = ops.sort_rows(
            wire.local("experts").flatten(0, 1),
            wire.local("gates").flatten(0, 1),
            self.local_experts,
            count_P=wire.local("counts"),
            stride=wire.stride,
            room=self._room,
            overflow=None if self._room is None else self._overflow,
            impl=wire.impl,
        )
        self._turns[layer] += 1
        return Arrived(
            x_SD=wire.local(f"recv{layer}").flatten(0, 1),
            rows=rows,
            experts_TK=experts_TK,
            layer=layer,
            turn=self._turns[layer],
        )

    def combine(self, y_RD: Tensor, arrived: Arrived) -> Tensor:
        self._check_rows("combine", "y", y_RD, num_rows=len(arrived.rows.slot_R))
        self._enter("combine", due="combine", then="")
        self.wire.push_sums(y_RD, arrived.rows.row_NK)
        self.wire.sync("FR")
        return self.wire.sum_home(arrived.experts_TK)

    def dispatch_grads(self, dy_TD: Tensor, arrived: Arrived) -> Tensor:
        if arrived.turn != self._turns[arrived.layer]:
            raise RuntimeError(
                f"backward of layer {arrived.layer}: its rows are gone, a later dispatch of the "
                "layer overwrote them. Run each backward pass before the next forward pass."
            )
        self._check_rows("dispatch_grads", "dy", dy_TD, num_rows=len(arrived.experts_TK))
        self._enter("dispatch_grads", due="", then="combine_grads")
        self.wire.push_rows("dy", dy_TD, arrived.experts_TK)
        self.wire.sync("BD")
        return self.wire.local("dy").flatten(0, 1)

    def combine_grads(
        self, dx_RD: Tensor, dgate_BR: Tensor, arrived: Arrived
    ) -> tuple[Tensor, Tensor]:
        self._check_rows("combine_grads", "dx", dx_RD, num_rows=len(arrived.rows.slot_R))
        self._enter("combine_grads", due="combine_grads", then="")
        self.wire.push_sums(dx_RD, arrived.rows.row_NK)
        self.wire.push_gate_grads(dgate_BR, arrived.rows.row_NK)
        self.wire.sync("BR")
        shape = arrived.experts_TK.shape
        dgates_TK = self.wire.local("dgates")[: shape.numel()].clone().view(shape)
        return self.wire.sum_home(arrived.experts_TK), dgates_TK

    def fits(self) -> Callable[[], bool]:
        if self._room is None:
            return lambda: True
        flag = dist.all_reduce(self._overflow.clone(), "max")
        if not flag.is_cuda:
            return lambda: not flag.item()
        seen = torch.empty(1, dtype=torch.int32, pin_memory=True)
        seen.copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def answer() -> bool:
            copied.synchronize()
            return not seen.item()

        return answer

    def grow(self) -> None:
        if self._room is None:
            return
        most = self.world * self._max_tokens * self._top_k
        self._room = 2 * self._room if 2 * self._room < most else None
        self._overflow.zero_()

    def check(self) -> None:
        self.wire.check()

    def close(self) -> None:
        self._due = "nothing: the transport is closed"
        self.wire.close()

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

    def _check_rows(self, call: str, name: str, values: Tensor, *, num_rows: int) -> None:
        if values.dtype != self._dtype or values.shape != (num_rows, self._dim):
            got, wanted = f"{values.dtype} {tuple(values.shape)}", (num_rows, self._dim)
            raise ValueError(f"{call}: got {name} {got}, expected {self._dtype} {wanted}.")
