"""The counting sort against its specification: every table equal, whoever is chosen."""

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nmoe.expert_layout import Rows, capacity
from nmoe.kernels.sort import BLOCK, sort_rows
from nmoe.reference.sort import sort_rows as reference_sort_rows
from tests.kernels.cases import SKEWS, choose, poisoned


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Choices of all experts, of which the local ones are sorted."""

    experts_NK: Tensor
    local: range
    tile: int = 128
    count_P: Tensor | None = None
    stride: int | None = None


def assert_sorted(routing: Routing, device: torch.device, *, spare_tiles: int = 0) -> Rows:
    """Sort, and compare every entry that is in use with the reference."""
    experts_NK = routing.experts_NK.to(device)
    generator = torch.Generator().manual_seed(1)
    gates_NK = torch.rand(experts_NK.shape, generator=generator).to(device)
    count_P = None if routing.count_P is None else routing.count_P.to(device)
    room = capacity(experts_NK.numel(), len(routing.local), tile=routing.tile)
    with poisoned():
        got = sort_rows(
            experts_NK,
            gates_NK,
            first_expert=routing.local.start,
            num_experts=len(routing.local),
            tile=routing.tile,
            num_rows=room + spare_tiles * routing.tile,
            count_P=count_P,
            stride=routing.stride,
        )
    want = reference_sort_rows(
        experts_NK,
        gates_NK,
        first_expert=routing.local.start,
        num_experts=len(routing.local),
        tile=routing.tile,
        count_P=count_P,
        stride=routing.stride,
    )
    tiles = int(want.num_tiles)
    row = want.row_NK[want.row_NK >= 0].long()
    assert got.tile == want.tile == routing.tile
    assert torch.equal(got.num_tiles, want.num_tiles)
    assert torch.equal(got.start_e, want.start_e)
    assert torch.equal(got.end_e, want.end_e)
    assert torch.equal(got.expert_of_tile[:tiles], want.expert_of_tile.int())
    assert torch.equal(got.row_NK, want.row_NK)
    assert torch.equal(got.slot_R[row], want.slot_R[row])
    assert torch.equal(got.gate_R[row], want.gate_R[row])
    assert len(row.unique()) == len(row)
    return got


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"),
    [(1, 1, 1), (1, 8, 8), (7, 3, 2), (100, 16, 16), (300, 5, 4), (257, 300, 8), (130, 12, 1)],
)
def test_rows_equal_the_reference_when_experts_are_skewed_or_empty(
    tokens: int, num_experts: int, top_k: int, skew: str, device: torch.device
) -> None:
    experts_TK = choose(tokens, num_experts, top_k, skew=skew, seed=tokens)
    assert_sorted(Routing(experts_NK=experts_TK, local=range(num_experts)), device)


@pytest.mark.parametrize("seed", range(20))
def test_rows_equal_the_reference_when_routings_are_drawn_at_random(
    seed: int, device: torch.device
) -> None:
    draw = random.Random(seed)
    num_experts = draw.randint(1, 200)
    top_k = draw.randint(1, min(16, num_experts))
    tokens, first = draw.randint(1, 400), draw.randrange(num_experts)
    experts_TK = choose(tokens, num_experts, top_k, skew=draw.choice(SKEWS), seed=seed)
    routing = Routing(
        experts_NK=experts_TK.to(draw.choice([torch.int32, torch.int64])),
        local=range(first, draw.randint(first + 1, num_experts)),
        tile=draw.choice([16, 64, 128]),
    )
    assert_sorted(routing, device, spare_tiles=draw.randrange(3))


@pytest.mark.parametrize("seed", range(6))
def test_rows_equal_the_reference_when_slots_past_the_counts_hold_garbage(
    seed: int, device: torch.device
) -> None:
    draw = random.Random(seed)
    sources, stride, top_k, num_experts = draw.randint(1, 8), draw.randint(1, 70), 3, 24
    count_P = torch.tensor([draw.randint(0, stride) for _ in range(sources)], dtype=torch.int32)
    count_P[draw.randrange(sources)] = draw.choice([0, stride])
    experts_NK = choose(sources * stride, num_experts, top_k, skew="zipf", seed=seed).int()
    unused = torch.arange(sources * stride) % stride >= count_P.repeat_interleave(stride)
    generator = torch.Generator().manual_seed(seed)
    garbage = torch.randint(-(2**31), 2**31 - 1, experts_NK.shape, generator=generator).int()
    garbage[::2] = experts_NK[::2]  # ids that would be taken for somebody's
    experts_NK[unused] = garbage[unused]
    routing = Routing(
        experts_NK=experts_NK, local=range(6, 18), tile=64, count_P=count_P, stride=stride
    )
    got = assert_sorted(routing, device)
    assert bool((got.row_NK.cpu()[unused] == -1).all())


def test_rows_equal_the_reference_when_blocks_outnumber_one_scan(device: torch.device) -> None:
    experts_TK = choose(66 * BLOCK // 8 + 5, 9, 8, skew="even", seed=3)
    assert_sorted(Routing(experts_NK=experts_TK, local=range(9)), device)


def test_rows_are_none_when_nobody_chose(device: torch.device) -> None:
    nobody = torch.empty(0, 2, dtype=torch.int64)
    got = assert_sorted(Routing(experts_NK=nobody, local=range(8)), device)
    assert int(got.num_tiles) == 0
    elsewhere = torch.zeros(5, 2, dtype=torch.int64)
    got = assert_sorted(Routing(experts_NK=elsewhere, local=range(8, 16)), device)
    assert int(got.num_tiles) == 0
    silent = torch.zeros(2, dtype=torch.int32)
    routing = Routing(
        experts_NK=elsewhere[:4].int(), local=range(8), count_P=silent, stride=2, tile=16
    )
    assert int(assert_sorted(routing, device).num_tiles) == 0


def test_rows_follow_expert_then_token_in_the_worked_example(device: torch.device) -> None:
    # tokens 0, 1, 2 choose experts (1, 0), (1, 2), (0, 1); tiles of 16
    experts_TK = torch.tensor([[1, 0], [1, 2], [0, 1]])
    got = assert_sorted(Routing(experts_NK=experts_TK, local=range(3), tile=16), device)
    assert got.row_NK.tolist() == [[16, 0], [17, 32], [1, 18]]
    assert got.start_e.tolist() == [0, 16, 32]
    assert got.end_e.tolist() == [2, 19, 33]
    assert got.slot_R[[0, 1, 16, 17, 18, 32]].tolist() == [0, 2, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts_NK": torch.zeros(4, 2)}, "got experts float32 .* expected contiguous int32"),
        ({"experts_NK": torch.zeros(2, 4).int().T}, r"strides \[1, 4\]"),
        ({"gates_NK": torch.zeros(4, 3)}, r"got gates float32 \[4, 3\] .* \[4, 2\]"),
        ({"gates_NK": torch.zeros(4, 2).bfloat16()}, "got gates bfloat16"),
        ({"count_P": torch.zeros(2).int()}, "stride None"),
        ({"stride": 2}, "no sources"),
        ({"count_P": torch.zeros(2).int(), "stride": 3}, "4 slots, stride 3, and counts of 2"),
        ({"count_P": torch.zeros(2), "stride": 2}, "got counts float32"),
        ({"num_rows": 100}, "got 100 rows in tiles of 16"),
        ({"tile": 24, "num_rows": 48}, "power of two"),
    ],
)
def test_sort_refuses_what_it_would_read_wrongly(
    change: dict, message: str, device: torch.device
) -> None:
    arguments = {
        "experts_NK": torch.zeros(4, 2, dtype=torch.int64),
        "gates_NK": torch.zeros(4, 2),
        "first_expert": 0,
        "num_experts": 3,
        "tile": 16,
        "num_rows": 48,
    } | change
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    with pytest.raises(ValueError, match=message) as caught:
        sort_rows(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tiles", [1, 3, 7])
def test_rows_past_the_room_are_left_out_and_told(tiles: int, device: torch.device) -> None:
    tile, num_experts = 16, 5
    experts_NK = choose(70, num_experts, 2, skew="zipf", seed=2)
    gates_NK = torch.rand(experts_NK.shape, generator=torch.Generator().manual_seed(1))
    sizes = {"first_expert": 0, "num_experts": num_experts, "tile": tile, "num_rows": tiles * tile}
    flags = [torch.zeros(1, dtype=torch.int32, device=each) for each in (device, "cpu")]
    with poisoned():
        got = sort_rows(experts_NK.to(device), gates_NK.to(device), overflow=flags[0], **sizes)
    want = reference_sort_rows(experts_NK, gates_NK, overflow=flags[1], **sizes)
    assert [int(flag) for flag in flags] == [1, 1]
    assert int(want.num_tiles) == tiles
    row = want.row_NK[want.row_NK >= 0].long()
    assert 0 < len(row) < experts_NK.numel()
    for name in ("row_NK", "start_e", "end_e", "num_tiles"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
    assert torch.equal(got.expert_of_tile.cpu(), want.expert_of_tile.int())
    assert torch.equal(got.slot_R.cpu()[row], want.slot_R[row])
    assert torch.equal(got.gate_R.cpu()[row], want.gate_R[row])


def test_room_that_suffices_leaves_the_flag_as_it_was(device: torch.device) -> None:
    experts_NK = choose(70, 5, 2, skew="zipf", seed=2).to(device)
    gates_NK = torch.rand(experts_NK.shape, device=device)
    sizes = {"first_expert": 0, "num_experts": 5, "tile": 16, "num_rows": 16 * 16}
    plain = sort_rows(experts_NK, gates_NK, **sizes)
    for before in (0, 1):
        flag = torch.full((1,), before, dtype=torch.int32, device=device)
        rows = sort_rows(experts_NK, gates_NK, overflow=flag, **sizes)
        assert int(flag) == before
        assert torch.equal(rows.row_NK, plain.row_NK)
        assert torch.equal(rows.end_e, plain.end_e)
