"""Random routings as an owner of experts receives them, and the rows by a plain Python sort.

Legend: N slots of all sources, K top-k, P sources.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Slots of every source; those past its count hold ids and gates of no token."""

    experts_NK: Tensor  # int64
    gates_NK: Tensor
    count_P: Tensor  # int32
    stride: int
    num_experts: int

    @property
    def world(self) -> int:
        return len(self.count_P)

    def sent(self) -> list[Tensor]:
        """The ids of each source's tokens alone."""
        sources = zip(self.experts_NK.split(self.stride), self.count_P.tolist(), strict=True)
        return [ids[:count] for ids, count in sources]

    def rows(self, local: range) -> dict[int, list[tuple[int, int]]]:
        """(slot, choice) of the rows of each expert in `local`, ordered by (source, token)."""
        rows: dict[int, list[tuple[int, int]]] = {expert: [] for expert in local}
        for source, ids in enumerate(self.sent()):
            for token, chosen in enumerate(ids.tolist()):
                for choice, expert in enumerate(chosen):
                    if expert in rows:
                        rows[expert].append((source * self.stride + token, choice))
        return rows


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Worlds of 1..8; counts and strides from 0; a small pool leaves experts and ranks empty."""
    world = draw(st.sampled_from([1, 2, 3, 4, 8]))
    num_experts = world * draw(st.integers(1, 4))
    top_k = draw(st.integers(1, min(num_experts, 5)))
    counts = draw(st.lists(st.integers(0, 9), min_size=world, max_size=world))
    stride = max(1, max(counts) + draw(st.integers(0, 3)))
    pool = draw(st.integers(top_k, num_experts))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = torch.rand(world, stride, pool, generator=rng).argsort(dim=2)[..., :top_k]
    garbage = torch.randint(-2, num_experts + 2, order.shape, generator=rng)
    gates = torch.rand(order.shape, generator=rng)
    count_P = torch.tensor(counts, dtype=torch.int32)
    is_used = (torch.arange(stride) < count_P[:, None])[..., None]
    return Routing(
        experts_NK=torch.where(is_used, order, garbage).flatten(0, 1),
        gates_NK=gates.where(is_used, torch.nan).flatten(0, 1),
        count_P=count_P,
        stride=stride,
        num_experts=num_experts,
    )
