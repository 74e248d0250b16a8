"""Sums over the rows of a token in plain torch, in the order of its choices, in fp32.

Legend: N slots, K top-k, D model, R rows, B parts of d(gate).
"""

import torch
from torch import Tensor


def combine(y_RD: Tensor, row_NK: Tensor) -> Tensor:
    """y_ND: sum over choices of y[row]. Row -1 adds nothing."""
    total_ND = torch.zeros(len(row_NK), y_RD.shape[1], dtype=torch.float32, device=y_RD.device)
    for row_N in row_NK.long().unbind(dim=1):
        here = (row_N >= 0).nonzero().flatten()
        total_ND.index_add_(0, here, y_RD[row_N[here]].float())
    return total_ND.to(y_RD.dtype)


def gate_grads(dgate_BR: Tensor, row_NK: Tensor) -> Tensor:
    """dgates_NK, fp32: the parts of each choice's row added up; 0 where the row is -1."""
    total_R = torch.cat([dgate_BR.sum(dim=0), dgate_BR.new_zeros(1)])  # row -1 is the last
    return total_R[row_NK.long()]
