"""The routing tables: nothing is lost, the order is fixed, sender and receiver agree."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.rdep import layout
from nmoe.rdep.layout import Arrivals

Routing = tuple[list[torch.Tensor], int, int]


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Ids of every rank, number of experts, stride of the slots."""
    world = draw(st.sampled_from([1, 2, 3, 4, 8]))
    num_experts = world * draw(st.integers(1, 4))
    top_k = draw(st.integers(1, min(num_experts, 5)))
    counts = draw(st.lists(st.integers(0, 9), min_size=world, max_size=world))
    pool = draw(st.integers(top_k, num_experts))  # a small pool leaves experts and ranks empty
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ids = [torch.rand(n, pool, generator=generator).argsort(dim=1)[:, :top_k] for n in counts]
    return ids, num_experts, max(counts) + draw(st.integers(0, 3))


def arrive(routing: Routing, rank: int) -> Arrivals:
    ids_P, num_experts, stride = routing
    local = layout.share(num_experts, rank=rank, world=len(ids_P))
    counts = tuple(len(ids) for ids in ids_P)
    return layout.arrivals(torch.cat(ids_P), counts, local_experts=local, stride=stride)


@given(routings())
@settings(max_examples=150, deadline=None)
def test_arrivals_equal_a_plain_sort_when_any_routing(routing: Routing) -> None:
    ids_P, num_experts, stride = routing
    top_k = ids_P[0].shape[1]
    starts = [sum(len(ids) for ids in ids_P[:p]) for p in range(len(ids_P))]
    for rank in range(len(ids_P)):
        got, local = arrive(routing, rank), layout.share(num_experts, rank=rank, world=len(ids_P))
        rows = sorted(
            (expert, source, token, choice)
            for source, ids in enumerate(ids_P)
            for token, chosen in enumerate(ids.tolist())
            for choice, expert in enumerate(chosen)
            if expert in local
        )
        pairs = sorted({(source, token) for _, source, token, _ in rows})
        assert got.index_R.tolist() == [p * stride + t for _, p, t, _ in rows]
        assert got.choice_R.tolist() == [(starts[p] + t) * top_k + k for _, p, t, k in rows]
        assert got.ends_e.tolist() == [sum(e <= last for e, *_ in rows) for last in local]
        assert got.pair_R.tolist() == [pairs.index((p, t)) for _, p, t, _ in rows]
        assert [(p, t) for p, ts in enumerate(got.tokens_P) for t in ts.tolist()] == pairs


@given(routings())
@settings(max_examples=100, deadline=None)
def test_choices_arrive_exactly_once_when_all_owners_are_counted(routing: Routing) -> None:
    ids_P = routing[0]
    choices = torch.cat([arrive(routing, rank).choice_R for rank in range(len(ids_P))])
    assert choices.sort().values.tolist() == list(range(sum(ids.numel() for ids in ids_P)))


@given(routings())
@settings(max_examples=100, deadline=None)
def test_sender_and_owner_name_the_same_tokens_when_any_routing(routing: Routing) -> None:
    ids_P, num_experts, _ = routing
    world = len(ids_P)
    received = [arrive(routing, rank).tokens_P for rank in range(world)]
    for source, ids in enumerate(ids_P):
        sent = layout.destinations(ids, num_experts=num_experts, world=world)
        for owner in range(world):
            assert torch.equal(sent[owner], received[owner][source])


@given(routings())
@settings(max_examples=100, deadline=None)
def test_rows_of_an_expert_are_the_same_when_the_world_is_one(routing: Routing) -> None:
    ids_P, num_experts, _ = routing
    ids_NK = torch.cat(ids_P)
    one = layout.arrivals(
        ids_NK, (len(ids_NK),), local_experts=range(num_experts), stride=len(ids_NK)
    )
    many = [arrive(routing, rank).choice_R for rank in range(len(ids_P))]
    assert torch.equal(torch.cat(many), one.choice_R)


def test_share_covers_all_experts_when_they_divide() -> None:
    assert [list(layout.share(6, rank=rank, world=3)) for rank in range(3)] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_share_is_refused_when_experts_do_not_divide() -> None:
    with pytest.raises(ValueError, match="got 8 experts on 3 ranks"):
        layout.share(8, rank=0, world=3)


X, IDS, GATES = torch.zeros(4, 8), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("x", "ids", "gates", "message"),
    [
        (X[:3], IDS, GATES, "got x (3, 8) and experts (4, 2)"),
        (X, IDS, GATES[:, :1], "got gates torch.float32 (4, 1), expected float32 (4, 2)"),
        (X, IDS, GATES.bfloat16(), "got gates torch.bfloat16"),
        (X.double(), IDS, GATES, "got x torch.float64"),
        (X, IDS.int(), GATES, "experts torch.int32, expected"),
        (X, IDS + 6, GATES, "got expert ids 6 to 6, expected 0 to 5"),
        (X, IDS - 1, GATES, "got expert ids -1 to -1"),
    ],
)
def test_check_refuses_when_inputs_do_not_fit(
    x: torch.Tensor, ids: torch.Tensor, gates: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layout.check(x, ids, gates, num_experts=6, dtype=torch.float32)
