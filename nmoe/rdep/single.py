"""One rank: rows are sorted by expert and no wire is needed; slots are the tokens themselves.

Legend: T tokens, D model, K top-k, R rows, B parts of d(gate).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nmoe import ops
from nmoe.config import Impl
from nmoe.rdep import layout
from nmoe.rdep.layout import Arrived


class Single:
    """Expert transport of a world of one rank."""

    rank = 0
    world = 1

    def __init__(self, *, num_experts: int, dtype: torch.dtype, impl: Impl) -> None:
        self.local_experts = range(num_experts)
        self._dtype = dtype
        self._impl: Impl = impl

    def dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> Arrived:
        num_experts = len(self.local_experts)
        layout.check(x_TD, experts_TK, gates_TK, num_experts=num_experts, dtype=self._dtype)
        rows = ops.sort_rows(experts_TK, gates_TK, self.local_experts, impl=self._impl)
        return Arrived(x_SD=x_TD, rows=rows, experts_TK=experts_TK, layer=layer)

    def combine(self, y_RD: Tensor, arrived: Arrived) -> Tensor:
        return ops.combine(y_RD, arrived.rows.row_NK, impl=self._impl)

    def dispatch_grads(self, dy_TD: Tensor, arrived: Arrived) -> Tensor:
        return dy_TD

    def combine_grads(
        self, dx_RD: Tensor, dgate_BR: Tensor, arrived: Arrived
    ) -> tuple[Tensor, Tensor]:
        row_TK = arrived.rows.row_NK
        dx_TD = ops.combine(dx_RD, row_TK, impl=self._impl)
        return dx_TD, ops.gate_grads(dgate_BR, row_TK, impl=self._impl)

    def fits(self) -> Callable[[], bool]:
        """There is room for every choice."""
        return lambda: True

    def grow(self) -> None:
        """There is nothing to grow."""

    def check(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""
