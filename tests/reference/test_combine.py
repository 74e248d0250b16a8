"""Sums over the rows of a token against the sum written out."""

import pytest
import torch

from nmoe.reference.combine import combine, gate_grads

NAN = torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine_equals_sums_in_choice_order_when_written_out(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    num_slots, top_k, num_rows, dim = 20, 3, 40, 8
    y_RD = torch.randn(num_rows, dim, generator=generator).to(dtype)
    row_NK = torch.randint(-1, num_rows - 1, (num_slots, top_k), generator=generator).int()
    row_NK[4] = -1
    y_RD[-1] = NAN  # a row that no choice names
    got = combine(y_RD, row_NK)
    want = torch.zeros(num_slots, dim)
    for slot in range(num_slots):
        for choice in range(top_k):
            row = int(row_NK[slot, choice])
            if row >= 0:
                want[slot] += y_RD[row].float()
    assert got.dtype == dtype
    assert torch.equal(got, want.to(dtype))
    assert not got[4].any()


def test_combine_rounds_once_when_bf16_rows_share_a_slot() -> None:
    y_RD = torch.tensor([[2.0], [2**-7], [2**-7]]).bfloat16()
    # bf16 has steps of 2^-6 above 2: adding the two rows of 2^-7 one by one would lose both
    total = combine(y_RD, torch.tensor([[0, 1, 2]], dtype=torch.int32))
    assert total.item() == 2 + 2**-6


def test_combine_gives_zeros_when_there_are_no_rows_and_nothing_when_no_slots() -> None:
    nowhere = torch.full((3, 2), -1, dtype=torch.int32)
    assert torch.equal(combine(torch.empty(0, 4), nowhere), torch.zeros(3, 4))
    assert combine(torch.empty(0, 4), nowhere[:0]).shape == (0, 4)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_gate_grads_add_the_parts_of_each_choices_row_when_there_is_one(num_parts: int) -> None:
    generator = torch.Generator().manual_seed(2)
    dgate_BR = torch.randint(-9, 10, (num_parts, 6), generator=generator).float()
    dgate_BR[:, 5] = NAN  # padding
    row_NK = torch.tensor([[0, -1], [4, 2], [-1, -1], [3, 1]], dtype=torch.int32)
    got = gate_grads(dgate_BR, row_NK)
    total = [sum(dgate_BR[part, row].item() for part in range(num_parts)) for row in range(5)]
    want = [[total[0], 0], [total[4], total[2]], [0, 0], [total[3], total[1]]]
    assert got.dtype == torch.float32
    assert got.tolist() == want


def test_gate_grads_are_zero_when_no_choice_has_a_row() -> None:
    nowhere = torch.full((3, 2), -1, dtype=torch.int32)
    assert torch.equal(gate_grads(torch.empty(1, 0), nowhere), torch.zeros(3, 2))
