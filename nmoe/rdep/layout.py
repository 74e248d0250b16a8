"""Who owns which expert, what a dispatch may carry, and what of it arrived.

A token's slot at an owner is fixed: slot = source rank * stride + token. A row is one (token,
chosen expert) pair; an owner sorts its rows by (expert, source rank, token), so an expert's rows do
not depend on how the tokens are spread over ranks.

Legend: T tokens of a rank, N slots of all ranks, K top-k, D model, R rows, S slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nmoe.expert_layout import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What an owner received in one dispatch, and what it needs to send it home again.

    On several ranks `x_SD` is the receive region itself, one a layer: it holds these rows until the
    next dispatch of the same layer, which any rank may begin once this rank has finished the
    layer's backward (without one: its combine). Slots that no row names hold garbage.
    """

    x_SD: Tensor  # slots; one rank: the tokens themselves
    rows: Rows
    experts_TK: Tensor  # what this rank itself dispatched
    layer: int
    turn: int = 0  # how many dispatches of this layer the transport had made, this one included


def share(num_experts: int, *, rank: int, world: int) -> range:
    """Experts that live on `rank`; ValueError when they do not divide evenly."""
    if num_experts % world:
        raise ValueError(
            f"experts do not divide among ranks: got {num_experts} experts on {world} ranks. "
            "Choose a number of ranks that divides the number of experts."
        )
    each = num_experts // world
    return range(rank * each, (rank + 1) * each)


def destinations(experts_TK: Tensor, *, num_experts: int, world: int) -> tuple[Tensor, ...]:
    """For each owner rank the tokens that have at least one expert there, ascending."""
    owner_TK = experts_TK // (num_experts // world)
    return tuple((owner_TK == rank).any(dim=1).nonzero().flatten() for rank in range(world))


def check(
    x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, num_experts: int, dtype: torch.dtype
) -> None:
    """Refuse what a dispatch cannot carry: shapes, dtypes, and on the CPU ids out of range."""
    shape = experts_TK.shape
    if x_TD.ndim != 2 or experts_TK.ndim != 2 or len(x_TD) != len(experts_TK):
        got = f"x {tuple(x_TD.shape)} and experts {tuple(shape)}"
        raise ValueError(f"dispatch: got {got}, expected [T, D] and [T, K] of the same tokens.")
    if gates_TK.shape != shape or gates_TK.dtype != torch.float32:
        got = f"{gates_TK.dtype} {tuple(gates_TK.shape)}"
        raise ValueError(f"dispatch: got gates {got}, expected float32 {tuple(shape)}.")
    if x_TD.dtype != dtype or experts_TK.dtype != torch.int64:
        got = f"x {x_TD.dtype} and experts {experts_TK.dtype}"
        raise ValueError(f"dispatch: got {got}, expected x {dtype} and experts torch.int64.")
    # on a GPU it would make the host wait; there an id out of range is nobody's and adds nothing
    if experts_TK.numel() and not experts_TK.is_cuda:
        low, high = (int(bound) for bound in experts_TK.aminmax())
        if low < 0 or high >= num_experts:
            raise ValueError(
                f"dispatch: got expert ids {low} to {high}, expected 0 to {num_experts - 1}."
            )
