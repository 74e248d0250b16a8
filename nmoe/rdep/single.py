"""One rank: rows are sorted by expert and no wire is needed; the gradients are plain autograd.

Legend: T tokens, D model, K top-k, R rows; slots are the tokens themselves.
"""

import torch
from torch import Tensor

from nmoe.rdep import layout
from nmoe.rdep.layout import Receipt, Rows


class Single:
    """Expert transport of a world of one rank."""

    rank = 0
    world = 1

    def __init__(self, *, num_experts: int, dtype: torch.dtype) -> None:
        self.local_experts = range(num_experts)
        self._dtype = dtype

    def dispatch(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, layer: int
    ) -> tuple[Rows, Receipt]:
        num_experts = len(self.local_experts)
        layout.check(x_TD, experts_TK, gates_TK, num_experts=num_experts, dtype=self._dtype)
        counts = (len(x_TD),)
        arrivals = layout.arrivals(
            experts_TK, counts, local_experts=self.local_experts, stride=len(x_TD)
        )
        rows = Rows(
            x_SD=x_TD,
            index_R=arrivals.index_R,
            gates_R=gates_TK.flatten()[arrivals.choice_R],
            ends_e=arrivals.ends_e,
        )
        receipt = Receipt(
            layer=layer, turn=0, counts_P=counts, sent_P=arrivals.tokens_P, arrivals=arrivals
        )
        return rows, receipt

    def combine(self, y_RD: Tensor, rows: Rows, receipt: Receipt) -> Tensor:
        weighted_RD = y_RD.float() * rows.gates_R[:, None]
        y_TD = weighted_RD.new_zeros(receipt.counts_P[0], y_RD.shape[1])
        return y_TD.index_add(0, rows.index_R, weighted_RD).to(y_RD.dtype)

    def close(self) -> None:
        """Nothing is held."""
