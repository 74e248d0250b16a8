"""Routing as integers: expert ids to rows, slots and destinations, alike for one rank and many.

A token's slot at an owner is fixed: slot = source rank * stride + token. A row is one (token,
chosen expert) pair. An owner keeps its rows in the order (expert, source rank, token): the same ids
give the same order, and an expert's rows do not depend on how the tokens are spread over ranks.

Legend: T tokens of a rank, N of all ranks, K top-k, e local experts, R rows received, P ranks,
D model, S = P * stride slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What an owner received, ordered by (expert, source rank, token).

    On several ranks `x_SD` is the receive region itself, one a layer, and may be saved for
    backward: it holds these rows until the next dispatch of the same layer, which any rank may
    begin once this rank has finished the layer's backward (without one: its combine). Peers' writes
    do not show in autograd's version counter; instead the transport refuses a backward whose rows
    are gone. Slots that no row names hold garbage.
    """

    x_SD: Tensor  # slots, differentiable; one rank: the tokens themselves
    index_R: Tensor  # int64, row -> slot
    gates_R: Tensor  # fp32, differentiable: its gradient goes home with that of x
    ends_e: Tensor  # int64, cumulative row ends of the local experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Where each received row came from; a pair is a (source rank, token) with at least one row."""

    index_R: Tensor  # int64, row -> slot
    choice_R: Tensor  # int64, row -> position in the flattened gates_NK of all sources
    ends_e: Tensor  # int64, cumulative row ends of the local experts
    pair_R: Tensor  # int64, row -> pair, in the order of tokens_P
    tokens_P: tuple[
        Tensor, ...
    ]  # int64, per source: its tokens with at least one row here, ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What combine needs to send the rows of one dispatch home again."""

    layer: int
    turn: int  # how many dispatches of this layer the transport had made, this one included
    counts_P: tuple[int, ...]  # tokens of every rank
    sent_P: tuple[Tensor, ...]  # int64, per owner: my tokens with at least one row there, ascending
    arrivals: Arrivals


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


def arrivals(
    experts_NK: Tensor, counts_P: tuple[int, ...], *, local_experts: range, stride: int
) -> Arrivals:
    """Sort the ids of all sources into the rows of `local_experts`.

    experts_NK: int64 ids of every source's tokens, N = sum of `counts_P`, in source order; `stride`
    is the number of slots a source has.
    """
    num_choices = experts_NK.shape[1]
    slot_N = torch.cat([torch.arange(n) + p * stride for p, n in enumerate(counts_P)])
    slot_N = slot_N.to(experts_NK.device)
    flat = experts_NK.flatten()
    local = (flat >= local_experts.start) & (flat < local_experts.stop)
    position = local.nonzero().flatten()  # ascending (source, token, choice)
    expert = flat[position] - local_experts.start
    choice_R = position[torch.argsort(expert, stable=True)]
    ends_e = torch.bincount(expert, minlength=len(local_experts)).cumsum(0)
    token_R = choice_R // num_choices
    has_row_N = local.view(experts_NK.shape).any(dim=1)
    pair_N = has_row_N.cumsum(0) - 1
    sources = has_row_N.split(counts_P)
    return Arrivals(
        index_R=slot_N[token_R],
        choice_R=choice_R,
        ends_e=ends_e,
        pair_R=pair_N[token_R],
        tokens_P=tuple(source.nonzero().flatten() for source in sources),
    )


def check(
    x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, *, num_experts: int, dtype: torch.dtype
) -> None:
    """Refuse what a dispatch cannot carry: shapes, dtypes, ids out of range."""
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
    if experts_TK.numel():
        low, high = (int(bound) for bound in experts_TK.aminmax())
        if low < 0 or high >= num_experts:
            raise ValueError(
                f"dispatch: got expert ids {low} to {high}, expected 0 to {num_experts - 1}."
            )
