"""Sums over the rows of a token against their specification and fp64."""

import pytest
import torch
from torch import Tensor

from nmoe.kernels.combine import combine, gate_grads
from nmoe.reference import combine as reference
from tests.kernels.cases import assert_close, assert_no_worse, error, poisoned


def make_rows(tokens: int, top_k: int, *, missing: float, seed: int) -> tuple[Tensor, int]:
    """(row_TK, room): every choice a row of its own, or -1 for a share of them."""
    generator = torch.Generator().manual_seed(seed)
    room = 2 * tokens * top_k + 7
    row_TK = torch.randperm(room, generator=generator)[: tokens * top_k].view(tokens, top_k)
    row_TK[torch.rand(tokens, top_k, generator=generator) < missing] = -1
    return row_TK.int(), room


def fill(row_TK: Tensor, *shape: int, seed: int) -> Tensor:
    """Random numbers in the rows that are named, NaN in the others; rows come first."""
    values = torch.full(shape, torch.nan)
    real = row_TK[row_TK >= 0].long()
    generator = torch.Generator().manual_seed(seed)
    values[real] = torch.randn(len(real), *shape[1:], generator=generator)
    return values


@pytest.mark.parametrize("missing", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    ("tokens", "dim", "top_k"), [(1, 64, 1), (13, 192, 2), (9, 320, 7), (24, 512, 16)]
)
def test_combine_is_no_worse_than_plain_bf16(
    tokens: int, dim: int, top_k: int, missing: float, device: torch.device
) -> None:
    row_TK, room = make_rows(tokens, top_k, missing=missing, seed=1)
    y_RD = fill(row_TK, room, dim, seed=2).bfloat16().to(device)
    row_TK = row_TK.to(device)
    with poisoned():
        got = combine(y_RD, row_TK)
    exact = torch.zeros(tokens, dim, dtype=torch.float64, device=device)
    plain = torch.zeros(tokens, dim, dtype=torch.bfloat16, device=device)
    for token, choice in (row_TK >= 0).nonzero().tolist():
        exact[token] += y_RD[row_TK[token, choice]].double()
        plain[token] += y_RD[row_TK[token, choice]]
    assert_close(got, reference.combine(y_RD, row_TK))
    assert_no_worse(got, plain, exact)
    assert not got[(row_TK < 0).all(dim=1)].any()


@pytest.mark.parametrize("missing", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("tokens", "top_k", "parts"), [(1, 1, 1), (13, 2, 3), (200, 7, 11)])
def test_gate_grads_are_sums_over_parts(
    tokens: int, top_k: int, parts: int, missing: float, device: torch.device
) -> None:
    row_TK, room = make_rows(tokens, top_k, missing=missing, seed=4)
    dgate_BR = fill(row_TK, room, parts, seed=5).T.contiguous().to(device)
    row_TK = row_TK.to(device)
    with poisoned():
        got = gate_grads(dgate_BR, row_TK)
    exact = torch.zeros(row_TK.shape, dtype=torch.float64, device=device)
    exact[row_TK >= 0] = dgate_BR.double().sum(dim=0)[row_TK[row_TK >= 0].long()]
    assert got.dtype == torch.float32
    assert error(got, exact) < 1e-6
    assert error(reference.gate_grads(dgate_BR, row_TK), exact) < 1e-6
    assert not got[row_TK < 0].any()


def test_combine_gives_nothing_when_there_are_no_tokens(device: torch.device) -> None:
    none = torch.zeros(0, 3, dtype=torch.int32, device=device)
    y_RD = torch.zeros(5, 64, dtype=torch.bfloat16, device=device)
    assert combine(y_RD, none).shape == (0, 64)
    assert gate_grads(torch.zeros(2, 5, device=device), none).shape == (0, 3)


@pytest.mark.parametrize(
    ("y", "row", "message"),
    [
        (torch.zeros(5, 64), torch.zeros(2, 3).int(), "got y float32"),
        (torch.zeros(64, 5).bfloat16().T, torch.zeros(2, 3).int(), r"strides \[1, 5\]"),
        (torch.zeros(5, 96).bfloat16(), torch.zeros(2, 3).int(), "D = 96"),
        (torch.zeros(5, 64).bfloat16(), torch.zeros(2, 3).long(), "got row int64"),
    ],
)
def test_combine_refuses_what_it_would_read_wrongly(
    y: Tensor, row: Tensor, message: str, device: torch.device
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        combine(y.to(device), row.to(device))
    assert "\n" not in str(caught.value)


def test_gate_grads_refuse_what_they_would_read_wrongly(device: torch.device) -> None:
    row = torch.zeros(2, 3, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="gate_grads: got dgate bfloat16"):
        gate_grads(torch.zeros(1, 5, device=device).bfloat16(), row)
