"""Optimizers and schedule against their formulas."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nmoe.config import Optim, Schedule, read_config
from nmoe.expert_layout import pack, unpack
from nmoe.model import Group
from nmoe.optim import Optimizer, peak_rates, uses_muon
from nmoe.optim.schedule import lr_scale
from nmoe.reference.muon import muon, orthogonalize
from tests import tiny

SCHEDULE = Schedule(warmup_steps=10, hold_tokens=5_000, decay_tokens=2_000, floor=0.1)


@pytest.fixture
def optim(tmp_path: Path) -> Optim:
    return read_config(tiny.write_config(tmp_path)).optim


def groups() -> list[Group]:
    torch.manual_seed(0)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape))

    return [
        Group(name="dense", kind="table", parameters=(parameter(12, 8),)),
        Group(name="dense", kind="matrix", parameters=(parameter(3, 8, 8), parameter(16, 8))),
        Group(name="dense", kind="vector", parameters=(parameter(8),)),
        Group(name="router", kind="matrix", parameters=(parameter(4, 8),)),
        Group(name="expert", kind="matrix", parameters=(parameter(4, 8, 16),)),
    ]


def fill_gradients(all_groups: list[Group]) -> None:
    generator = torch.Generator().manual_seed(1)
    for group in all_groups:
        for parameter in group.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    matrices = torch.randn(5, 16, 48, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(8, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.mT @ orthogonalize(matrix) @ right.mT
    off_diagonal = inner - torch.diag(inner.diagonal())
    assert off_diagonal.abs().max() < 1e-9


def run_muon(
    weight: Tensor, gradient: Tensor, *, is_in_first: bool, packed: bool = False
) -> Tensor:
    """The weight after one update at rate 0.1."""
    weight = weight.clone()
    muon(
        [weight],
        [gradient.clone()],
        [torch.zeros_like(weight)],
        [None],
        now=torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64),
        lr=0.1,
        momentum=0.9,
        weight_decay=0.0,
        is_in_first=[is_in_first],
        packed=[packed],
    )
    return weight


def test_muon_updates_each_matrix_of_a_stack_by_itself() -> None:
    stack = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(1))
    together = run_muon(stack, gradient, is_in_first=False)
    for index in range(4):
        alone = run_muon(stack[index], gradient[index], is_in_first=False)
        torch.testing.assert_close(together[index], alone)


def test_muon_gives_a_transposed_layout_the_transposed_update() -> None:
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    out_in = run_muon(weight, gradient, is_in_first=False)
    in_out = run_muon(weight.mT.contiguous(), gradient.mT.contiguous(), is_in_first=True)
    torch.testing.assert_close(out_in, in_out.mT)


def test_muon_gives_packed_weights_the_bits_of_separate_ones() -> None:
    w1, w3, g1, g3 = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    together = run_muon(pack(w1, w3), pack(g1, g3), is_in_first=True, packed=True)
    for half, weight, gradient in zip(
        unpack(together, activation="swiglu"), (w1, w3), (g1, g3), strict=True
    ):
        assert half is not None
        assert torch.equal(half, run_muon(weight, gradient, is_in_first=True))


def test_optimizer_gives_muon_the_matrices_but_never_router_or_tables(optim: Optim) -> None:
    chosen = [(g.name, g.kind) for g in groups() if uses_muon(optim, g)]
    assert chosen == [("dense", "matrix"), ("expert", "matrix")]
    assert not [g for g in groups() if uses_muon(replace(optim, matrices="adamw"), g)]
    assert "muon" in peak_rates(optim)
    assert "muon" not in peak_rates(replace(optim, matrices="adamw"))


def test_optimizer_equals_adamw_by_formula(optim: Optim) -> None:
    config = replace(optim, matrices="adamw", weight_decay=0.1)
    ours = groups()
    fill_gradients(ours)
    before = ours[4].parameters[0].detach().double()
    gradient = ours[4].parameters[0].grad
    assert gradient is not None
    optimizer = Optimizer(config, ours, impl="reference")
    optimizer.step(scale=0.5, norm=optimizer.reduce_gradients())
    rate = 0.5 * config.lr_expert
    update = gradient.double() / (gradient.double().abs() + config.eps)
    expected = before * (1 - rate * 0.1) - rate * update
    torch.testing.assert_close(ours[4].parameters[0].detach().double(), expected, atol=1e-6, rtol=0)


def test_optimizer_does_not_decay_vectors_and_routers(optim: Optim) -> None:
    config = replace(optim, weight_decay=0.5)
    ours = groups()
    for group in ours:
        for parameter in group.parameters:
            parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for g in ours for parameter in g.parameters]
    optimizer = Optimizer(config, ours, impl="reference")
    optimizer.step(scale=1.0, norm=optimizer.reduce_gradients())
    after = [parameter.detach() for g in ours for parameter in g.parameters]
    has_moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert has_moved == [True, True, True, False, False, True]


def test_optimizer_reports_the_norm_over_all_gradients_and_clips_to_it(optim: Optim) -> None:
    ours = groups()
    fill_gradients(ours)
    flat = torch.cat([p.grad.flatten() for g in ours for p in g.parameters if p.grad is not None])
    optimizer = Optimizer(replace(optim, clip=1.0), ours, impl="reference")
    norm = optimizer.reduce_gradients()
    assert norm.item() == pytest.approx(flat.double().norm().item(), rel=1e-6)


def test_optimizer_goes_on_alike_when_its_state_is_restored(optim: Optim) -> None:
    ours, theirs = groups(), groups()
    first, second = (Optimizer(optim, each, impl="reference") for each in (ours, theirs))
    fill_gradients(ours)
    first.step(scale=1.0, norm=first.reduce_gradients())
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            for source, target in zip(mine.parameters, other.parameters, strict=True):
                target.copy_(source)
    for is_expert in (True, False):
        state = copy.deepcopy(first.state(is_expert=is_expert))
        second.load_state(state, is_expert=is_expert)
    for optimizer, own in ((first, ours), (second, theirs)):
        fill_gradients(own)
        optimizer.step(scale=0.7, norm=optimizer.reduce_gradients())
    for mine, other in zip(ours, theirs, strict=True):
        for source, target in zip(mine.parameters, other.parameters, strict=True):
            assert torch.equal(source, target)


def test_schedule_rises_holds_and_decays_to_its_floor() -> None:
    def scale(tokens: int) -> float:
        return lr_scale(SCHEDULE, tokens=tokens, tokens_per_step=100)

    assert scale(0) == pytest.approx(1 / 11)
    assert scale(900) == pytest.approx(10 / 11)
    assert scale(1_000) == scale(5_000) == 1.0
    assert scale(6_000) == pytest.approx(0.55)
    assert scale(7_000) == scale(10**9) == 0.1


def test_schedule_stays_at_its_peak_when_there_is_no_decay() -> None:
    constant = Schedule(warmup_steps=0, hold_tokens=0, decay_tokens=0)
    assert lr_scale(constant, tokens=10**12, tokens_per_step=100) == 1.0


@given(
    st.sampled_from(["linear", "cosine"]),
    st.integers(0, 50),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.integers(0, 30_000),
)
def test_schedule_never_leaves_its_bounds(
    decay: str, warmup: int, hold: int, length: int, floor: float, tokens: int
) -> None:
    schedule = Schedule(
        warmup_steps=warmup, hold_tokens=hold, decay_tokens=length, decay=decay, floor=floor
    )
    scale = lr_scale(schedule, tokens=tokens, tokens_per_step=100)
    assert 0 <= scale <= 1
    if tokens >= warmup * 100:
        assert scale >= floor - 1e-12
