"""How rows and weights of experts lie in memory: what transports, kernels and references share.

Rows are sorted by expert. Every expert's rows form a segment that starts at a multiple of the row
tile; rows between a segment's end and the next segment are padding. w13 [e, D, G] has its columns
in groups of 32, W1's and W3's in turn (G = 2F), so that a tile holds both halves of its
activations and stays one wide product; relu_squared has W1 only (G = F). w2 is [e, F, D].

Legend: N slots of all sources, K top-k, R rows with padding, e local experts, D model, F hidden.
"""

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from nmoe.config import Activation

GROUP = 32  # columns of W1, then as many of W3


class Rows(NamedTuple):
    """Where every local row is and whence it came; int32 on the device, but for the gates.

    Order: (expert, source rank, token). Padding rows of slot_R and gate_R hold anything.
    """

    tile: int  # segments start at its multiples
    slot_R: Tensor  # row -> slot of x
    gate_R: Tensor  # fp32, row -> gate
    row_NK: Tensor  # choice -> row; -1 when another rank owns the expert
    start_e: Tensor  # first row of each local expert
    end_e: Tensor  # one past the last row of each local expert, padding excluded
    expert_of_tile: Tensor  # tile of rows -> local expert
    num_tiles: Tensor  # [1]: tiles in use


def capacity(choices: int, num_experts: int, *, tile: int) -> int:
    """Rows that always suffice for so many choices; a multiple of `tile`, at least one."""
    used = min(num_experts, choices)  # only experts with rows have padding
    return max(1, -(-(choices + used * (tile - 1)) // tile)) * tile


def parts(activation: Activation) -> int:
    """Matrices in w13: 2, or 1 for relu_squared."""
    return 1 if activation == "relu_squared" else 2


def group(hidden: int) -> int:
    """Columns that W1 and W3 take in turn: 32, fewer when F is no multiple of it."""
    return gcd(hidden, GROUP)


def pack(w1_eDF: Tensor, w3_eDF: Tensor | None) -> Tensor:
    """w13_eDG of W1 and W3, or of W1 alone; differentiable."""
    if w3_eDF is None:
        return w1_eDF
    size = group(w1_eDF.shape[-1])
    turns = [w.unflatten(-1, (-1, size)) for w in (w1_eDF, w3_eDF)]
    return torch.stack(turns, dim=-2).flatten(-3)


def unpack(w13_eDG: Tensor, *, activation: Activation) -> tuple[Tensor, Tensor | None]:
    """(W1, W3) of packed columns: weights, their gradients, or pre-activations."""
    if parts(activation) == 1:
        return w13_eDG, None
    size = group(w13_eDG.shape[-1] // 2)
    w1, w3 = w13_eDG.unflatten(-1, (-1, 2, size)).unbind(-2)
    return w1.flatten(-2), w3.flatten(-2)
