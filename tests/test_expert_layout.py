"""The layout of expert weights and the room for expert rows."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.config import Activation
from nmoe.expert_layout import GROUP, capacity, group, pack, parts, unpack


@given(st.integers(1, 200), st.sampled_from([(), (5,), (3, 2)]))
@settings(max_examples=60, deadline=None)
def test_unpack_gives_back_what_was_packed_when_any_width(
    hidden: int, before: tuple[int, ...]
) -> None:
    w1, w3 = torch.randn(2, *before, hidden)
    packed = pack(w1, w3)
    assert packed.shape == (*before, 2 * hidden)
    back = unpack(packed, activation="swiglu")
    assert back[1] is not None
    assert torch.equal(back[0], w1)
    assert torch.equal(back[1], w3)


@pytest.mark.parametrize("hidden", [1, 7, 24, 32, 48, 64, 96])
def test_columns_of_both_matrices_take_turns_when_packed(hidden: int) -> None:
    size = group(hidden)
    assert hidden % size == 0
    assert size == GROUP or hidden % GROUP
    number = torch.arange(hidden).float()
    columns = pack(number, number + 1000).tolist()
    want = []
    for first in range(0, hidden, size):
        want += [*range(first, first + size), *range(1000 + first, 1000 + first + size)]
    assert columns == want


def test_w1_stays_as_it_is_when_there_is_no_w3() -> None:
    w1 = torch.randn(2, 3, 7)
    assert pack(w1, None) is w1
    back, none = unpack(w1, activation="relu_squared")
    assert back is w1
    assert none is None


@pytest.mark.parametrize("activation", get_args(Activation))
def test_parts_say_how_many_matrices_w13_holds(activation: Activation) -> None:
    assert parts(activation) == (1 if activation == "relu_squared" else 2)


@pytest.mark.parametrize("hidden", [5, 48])
def test_gradients_are_unpacked_when_packed_weights_are_differentiated(hidden: int) -> None:
    w1, w3 = (torch.randn(2, 4, hidden, requires_grad=True) for _ in range(2))
    dw13 = torch.randn(2, 4, 2 * hidden)
    dw1, dw3 = torch.autograd.grad(pack(w1, w3), [w1, w3], dw13)
    want = unpack(dw13, activation="squared_reglu")
    assert want[1] is not None
    assert torch.equal(dw1, want[0])
    assert torch.equal(dw3, want[1])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.sampled_from([1, 4, 128]))
@settings(max_examples=200, deadline=None)
def test_capacity_suffices_when_any_expert_has_any_number_of_rows(
    rows_e: list[int], tile: int
) -> None:
    needed = sum(-(-rows // tile) * tile for rows in rows_e)
    room = capacity(sum(rows_e), len(rows_e), tile=tile)
    assert needed <= room
    assert room % tile == 0


def test_capacity_is_no_more_than_the_worst_case_needs() -> None:
    assert capacity(0, 8, tile=128) == 128  # kernels describe no empty table
    assert capacity(5, 8, tile=128) == 5 * 128  # five experts with a row each
    assert capacity(8 * 129, 8, tile=128) == 8 * 256
    assert capacity(1000, 8, tile=1) == 1000
