"""Muon's kernels against their specification and fp64: matrices of all shapes, packed or not."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nmoe.expert_layout import pack, unpack
from nmoe.kernels import muon as kernels
from nmoe.kernels.muon import _chunks, _launch, _momentum, _update, muon, orthogonalize
from nmoe.reference import muon as reference
from tests.kernels.cases import error, no_host_waits, poisoned

# shapes of parameters, whether their rows are the inputs, whether their columns are packed
KINDS = [
    ((3, 64, 128), True, True),
    ((64, 64), False, False),
    ((3, 64, 64), True, False),
    ((96, 64), False, False),
    ((48, 72), False, False),
    ((5, 48, 20), True, True),
]


class Lists(NamedTuple):
    """What an update takes: fp32 tensors and the bf16 copies of some."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    momenta: list[Tensor]
    copies: list[Tensor | None]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_lists(device: torch.device, kinds=KINDS) -> Lists:
    shapes = [shape for shape, _, _ in kinds]
    parameters, gradients = (
        [normal(*shape, seed=2 * index + odd).to(device) for index, shape in enumerate(shapes)]
        for odd in range(2)
    )
    copies = [p.new_empty(p.shape, dtype=torch.bfloat16) for p in parameters]
    momenta = [torch.zeros_like(p) for p in parameters]
    return Lists(parameters, gradients, momenta, [copies[0], None, *copies[2:]])


def step(update, lists: Lists, *, kinds=KINDS, lr: float = 0.1, scale: float = 1.0) -> None:
    device = lists.parameters[0].device
    now = torch.tensor([scale, 1, 0.25], dtype=torch.float64).to(device)
    with no_host_waits(device if update is muon else torch.device("cpu")):
        update(
            *lists,
            now=now,
            lr=lr,
            momentum=0.95,
            weight_decay=0.1,
            is_in_first=[first for _, first, _ in kinds],
            packed=[packed for _, _, packed in kinds],
        )


def in_bf16(matrices: Tensor) -> Tensor:
    """Newton-Schulz as torch does it when everything is bf16."""
    short = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    result = reference.orthogonalize(short.bfloat16())
    return result.mT if short is not matrices else result


@pytest.mark.parametrize("shape", [(5, 16, 48), (5, 48, 16), (3, 64, 64), (1, 1, 7)])
def test_orthogonalize_is_no_worse_than_plain_bf16(
    shape: tuple[int, int, int], device: torch.device
) -> None:
    matrices = normal(*shape).to(device)
    with poisoned():
        got = orthogonalize(matrices.bfloat16())
    short = matrices.double().mT if shape[1] > shape[2] else matrices.double()
    exact = reference.orthogonalize(short)
    exact = exact.mT if shape[1] > shape[2] else exact
    assert (got.dtype, got.shape) == (torch.bfloat16, shape)
    assert error(got, exact) < 1.2 * error(in_bf16(matrices), exact) + 2**-9
    values = torch.linalg.svdvals(got.float())
    assert values.max() < 1.3
    if shape[1] != shape[2]:  # a random square matrix is nearly singular
        assert values.min() > 0.5


def test_orthogonalize_gives_zero_for_zero(device: torch.device) -> None:
    assert not orthogonalize(torch.zeros(2, 8, 16, device=device).bfloat16()).any()


@pytest.mark.parametrize("chunk", [1, 64 * 64 * 4, kernels.CHUNK])
def test_muon_follows_the_specification(
    chunk: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    ours, theirs = make_lists(device), make_lists(device)
    before = [g.clone() for g in ours.gradients]
    start = [p.clone() for p in ours.parameters]
    for number in range(3):
        with poisoned():
            step(muon, ours, scale=0.5 + number / 4)
        step(reference.muon, theirs, scale=0.5 + number / 4)
        for gradient, untouched in zip(theirs.gradients, before, strict=True):
            gradient.copy_(untouched)
    for index, (p, copy) in enumerate(zip(ours.parameters, ours.copies, strict=True)):
        assert torch.equal(ours.gradients[index], before[index])
        assert error(ours.momenta[index], theirs.momenta[index]) < 1e-6
        # bf16 products, five iterations long
        moved, wanted = p - start[index], theirs.parameters[index] - start[index]
        assert error(moved, wanted) < 0.03
        assert copy is None or torch.equal(copy, p.bfloat16())


def test_muon_treats_packed_columns_as_two_matrices(device: torch.device) -> None:
    w1, w3, g1, g3 = (normal(3, 64, 96, seed=seed).to(device) for seed in range(4))
    together = Lists(
        [pack(w1, w3)], [pack(g1, g3)], [torch.zeros(3, 64, 192, device=device)], [None]
    )
    apart = Lists([w1, w3], [g1, g3], [torch.zeros_like(w1), torch.zeros_like(w3)], [None, None])
    for _ in range(2):
        step(muon, together, kinds=[((3, 64, 192), True, True)])
        step(muon, apart, kinds=[((3, 64, 96), True, False)] * 2)
    for got, want in ((together.parameters, apart.parameters), (together.momenta, apart.momenta)):
        for half, whole in zip(unpack(got[0], activation="swiglu"), want, strict=True):
            assert half is not None
            torch.testing.assert_close(half, whole, atol=2e-3, rtol=0)


def test_muon_is_repeatable(device: torch.device) -> None:
    one, other = make_lists(device), make_lists(device)
    for lists in (one, other):
        step(muon, lists)
        step(muon, lists)
    for mine, theirs in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(mine, theirs)


def test_momentum_and_update_give_the_worked_examples(device: torch.device) -> None:
    now = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, device=device)
    g, m = torch.ones(1, 4, 8, device=device), torch.zeros(1, 4, 8, device=device)
    out = torch.empty(1, 4, 8, device=device).bfloat16()
    _launch(_momentum, g, m, out, now, 0.75, packed=False)
    assert (m == 0.25).all()
    assert (out == 0.4375).all()
    p = torch.full((1, 4, 8), 2.0, device=device)
    _launch(_update, p, None, torch.ones_like(out), now, 0.1, 0.5, 3.0, packed=False)
    torch.testing.assert_close(p, torch.full_like(p, 1.6))


def test_places_of_packed_columns_are_the_worked_example(device: torch.device) -> None:
    now = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, device=device)
    g = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]], device=device)  # one column of W1, one of W3
    out = torch.empty(2, 2, 1, device=device).bfloat16()
    _launch(_momentum, g, torch.zeros_like(g), out, now, 0.0, packed=True)
    assert out.flatten().tolist() == [0, 2, 1, 3]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 2])), max_size=5),
    st.integers(1, 12),
)
def test_chunks_hold_every_matrix_once_and_no_more_than_fit(
    lengths: list[tuple[int, int]], limit: int
) -> None:
    sizes = [(index, length, each) for index, (length, each) in enumerate(lengths)]
    rows: list[tuple[int, int]] = []
    for pieces in _chunks(sizes, limit=limit):
        matrices = sum(piece.count * lengths[piece.index][1] for piece in pieces)
        assert matrices <= limit or (len(pieces) == 1 and pieces[0].count == 1)
        rows += [(p.index, row) for p in pieces for row in range(p.first, p.first + p.count)]
    assert rows == [(index, row) for index, length, _ in sizes for row in range(length)]


def test_muon_refuses_what_it_would_read_wrongly(device: torch.device) -> None:
    kinds = [((3, 64, 64), True, False)]
    lists = make_lists(device, kinds)
    lists = lists._replace(copies=[None])
    with pytest.raises(ValueError, match="muon: got gradient bfloat16"):
        step(muon, lists._replace(gradients=[lists.gradients[0].bfloat16()]), kinds=kinds)
    with pytest.raises(ValueError, match="muon: got copy float32"):
        step(muon, lists._replace(copies=[lists.gradients[0]]), kinds=kinds)
