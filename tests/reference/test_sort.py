"""The rows of the reference against a plain Python sort, for any routing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmoe.expert_layout import Rows, capacity
from nmoe.rdep import share
from nmoe.reference.sort import sort_rows
from tests.reference.routings import Routing, routings

TILES = st.sampled_from([1, 4, 128])


def sort(routing: Routing, local: range, *, tile: int = 1, num_rows: int | None = None) -> Rows:
    return sort_rows(
        routing.experts_NK,
        routing.gates_NK,
        first_expert=local.start,
        num_experts=len(local),
        tile=tile,
        num_rows=num_rows,
        count_P=routing.count_P,
        stride=routing.stride,
    )


def owners(routing: Routing) -> list[range]:
    world = routing.world
    return [share(routing.num_experts, rank=rank, world=world) for rank in range(world)]


def segments(rows: Rows, table_R: Tensor) -> list[Tensor]:
    """What a table holds for each expert."""
    bounds = zip(rows.start_e.tolist(), rows.end_e.tolist(), strict=True)
    return [table_R[start:end] for start, end in bounds]


@given(routings(), TILES)
@settings(max_examples=150, deadline=None)
def test_rows_equal_a_plain_sort_when_any_routing(routing: Routing, tile: int) -> None:
    for local in owners(routing):
        got, want = sort(routing, local, tile=tile), routing.rows(local)
        slots, gates = segments(got, got.slot_R), segments(got, got.gate_R)
        tiles_e = []
        for expert, slot, gate in zip(local, slots, gates, strict=True):
            assert slot.tolist() == [at for at, _ in want[expert]]
            assert gate.tolist() == [routing.gates_NK[at].tolist() for at in want[expert]]
            tiles_e.append(-(-len(want[expert]) // tile))
        assert got.start_e.tolist() == [tile * sum(tiles_e[:e]) for e in range(len(local))]
        assert got.num_tiles.tolist() == [sum(tiles_e)]
        assert len(got.slot_R) == len(got.gate_R) == tile * sum(tiles_e)
        in_tiles = [e for e, count in enumerate(tiles_e) for _ in range(count)]
        assert got.expert_of_tile.tolist() == in_tiles
        assert got.tile == tile


@given(routings(), TILES)
@settings(max_examples=100, deadline=None)
def test_choices_name_their_rows_when_any_routing(routing: Routing, tile: int) -> None:
    for local in owners(routing):
        got = sort(routing, local, tile=tile)
        want = torch.full_like(got.row_NK, -1)
        for start, places in zip(got.start_e.tolist(), routing.rows(local).values(), strict=True):
            for offset, at in enumerate(places):
                want[at] = start + offset
        assert torch.equal(got.row_NK, want)


@given(routings(), TILES)
@settings(max_examples=100, deadline=None)
def test_choices_have_one_row_in_all_when_the_owners_are_counted(
    routing: Routing, tile: int
) -> None:
    rows_PNK = torch.stack([sort(routing, local, tile=tile).row_NK for local in owners(routing)])
    token = torch.arange(routing.stride)
    is_used = (token < routing.count_P[:, None]).flatten()[:, None]
    assert torch.equal((rows_PNK >= 0).sum(dim=0), is_used.expand(routing.experts_NK.shape).long())


@given(routings(), TILES)
@settings(max_examples=100, deadline=None)
def test_rows_fit_when_the_room_is_the_capacity(routing: Routing, tile: int) -> None:
    top_k = routing.experts_NK.shape[1]
    for local in owners(routing):
        choices = int(routing.count_P.sum()) * min(top_k, len(local))
        room = capacity(choices, len(local), tile=tile)
        used, got = sort(routing, local, tile=tile), sort(routing, local, tile=tile, num_rows=room)
        assert len(used.slot_R) <= room == len(got.slot_R) == len(got.gate_R)
        assert torch.equal(got.row_NK, used.row_NK)
        for a, b in zip(segments(got, got.slot_R), segments(used, used.slot_R), strict=True):
            assert torch.equal(a, b)


@given(routings())
@settings(max_examples=100, deadline=None)
def test_rows_of_an_expert_are_the_same_when_the_world_is_one(routing: Routing) -> None:
    """The tokens of all ranks in their order, in one world or in several."""
    ids_NK = torch.cat(routing.sent())
    place_N = torch.arange(len(ids_NK))  # of a token among all
    counts = enumerate(routing.count_P.tolist())
    at_N = torch.cat([torch.arange(count) + p * routing.stride for p, count in counts])
    token_S = torch.full((len(routing.experts_NK),), -1).index_copy(0, at_N, place_N)
    one = sort_rows(
        ids_NK, torch.ones(ids_NK.shape), first_expert=0, num_experts=routing.num_experts
    )
    many = []
    for local in owners(routing):
        got = sort(routing, local)
        many += [token_S[slots.long()] for slots in segments(got, got.slot_R)]
    for a, b in zip(many, segments(one, one.slot_R), strict=True):
        assert torch.equal(a, b.long())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_are_int32_and_the_same_when_ids_are_int32_or_int64(dtype: torch.dtype) -> None:
    ids = torch.tensor([[3, 0], [0, 2]], dtype=dtype)
    rows = sort_rows(ids, torch.tensor([[0.3, 0.7], [0.6, 0.4]]), first_expert=0, num_experts=4)
    assert rows.slot_R.tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(rows.gate_R, torch.tensor([0.7, 0.6, 0.4, 0.3]))
    assert rows.row_NK.tolist() == [[3, 0], [1, 2]]
    for name, table in rows._asdict().items():
        if isinstance(table, Tensor):
            assert table.dtype == (torch.float32 if name == "gate_R" else torch.int32), name


def test_rows_are_none_when_no_token_has_an_expert_here() -> None:
    rows = sort_rows(torch.tensor([[5]]), torch.ones(1, 1), first_expert=0, num_experts=4, tile=4)
    assert len(rows.slot_R) == len(rows.expert_of_tile) == rows.num_tiles.item() == 0
    assert not rows.end_e.any()
    assert rows.row_NK.tolist() == [[-1]]
