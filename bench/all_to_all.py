"""The peer of the transport: expert parallelism by collectives, `all_to_all_single`.

It sends what nmoe sends: a token goes once to each distinct owner of its experts, with its ids and
gates, and one row of gated sums comes back. Counts must reach the host, which therefore waits.

Legend: T tokens, K top-k, D model, S rows sent, M rows received, N local choices, P ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.kernels import ends
from bench.problem import swiglu


class _Exchange(torch.autograd.Function):
    """Rows to their ranks; backward the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        ctx.splits = send, receive
        return exchange(rows, send, receive)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        send, receive = ctx.splits
        return exchange(grads[0].contiguous(), receive, send), None, None


def exchange(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """Rows in the order of their ranks, `send[p]` to rank p, `receive[p]` from it."""
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(out, rows, receive, send)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a dispatch brought here, and what is needed to answer it."""

    x_MD: Tensor
    ids_MK: Tensor
    gates_MK: Tensor
    token_S: Tensor
    send: list[int]
    receive: list[int]


class AllToAll:
    """One layer's transport over the default process group."""

    def __init__(self, *, rank: int, world: int, num_experts: int) -> None:
        self._world, self._each = world, num_experts // world
        self._first = rank * self._each

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Sent:
        """Every token to each distinct owner of its experts."""
        ranks_P = torch.arange(self._world, device=x_TD.device)
        owned_PT = (ids_TK.T // self._each == ranks_P[:, None, None]).any(dim=1)
        count_P = owned_PT.sum(dim=1)
        arriving_P = torch.empty_like(count_P)
        dist.all_to_all_single(arriving_P, count_P)
        send, receive = torch.stack((count_P, arriving_P)).tolist()
        token_S = owned_PT.nonzero()[:, 1]
        return Sent(
            x_MD=_Exchange.apply(x_TD.index_select(0, token_S), send, receive),
            ids_MK=exchange(ids_TK.index_select(0, token_S), send, receive),
            gates_MK=_Exchange.apply(gates_TK.index_select(0, token_S), send, receive),
            token_S=token_S,
            send=send,
            receive=receive,
        )

    def give_back(self, y_MD: Tensor, sent: Sent, tokens: int) -> Tensor:
        """y_TD: the sums of all owners, added up at home."""
        y_SD = _Exchange.apply(y_MD, sent.receive, sent.send)
        return y_SD.new_zeros(tokens, y_SD.shape[1]).index_add(0, sent.token_S, y_SD)

    def layer(
        self, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor, w13: Tensor, w2: Tensor
    ) -> Tensor:
        """The experts in plain bf16 torch between the two exchanges; weights of this rank."""
        sent = self.dispatch(x_TD, ids_TK, gates_TK)
        ids_N = sent.ids_MK.flatten() - self._first
        choice_N = ((ids_N >= 0) & (ids_N < self._each)).nonzero().flatten()
        ids_N, order_N = ids_N[choice_N].sort(stable=True)
        choice_N = choice_N[order_N]
        row_N, ends_e = choice_N // ids_TK.shape[1], ends(ids_N, self._each)
        h = torch._grouped_mm(sent.x_MD.index_select(0, row_N), w13, offs=ends_e)
        y = torch._grouped_mm(swiglu(h), w2, offs=ends_e)
        gate_N = sent.gates_MK.flatten().index_select(0, choice_N).to(y.dtype)
        y_MD = torch.zeros_like(sent.x_MD).index_add(0, row_N, y * gate_N[:, None])
        return self.give_back(y_MD, sent, len(x_TD))
