"""AdamW's kernel against fp64 and torch's own, over many steps."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmoe.kernels.adamw import BLOCK, adamw
from nmoe.reference import adamw as reference
from tests.kernels.cases import error, no_host_waits, poisoned

SHAPES = [(1,), (5, 7), (BLOCK,), (BLOCK + 1,), (3, 64, 32), (0, 4)]


class Lists(NamedTuple):
    """What an update takes: fp32 tensors and the bf16 copies of some."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    copies: list[Tensor | None]


def make_lists(*shapes: tuple[int, ...], device: torch.device) -> Lists:
    generator = torch.Generator().manual_seed(0)

    def normal() -> list[Tensor]:
        return [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    def zeros() -> list[Tensor]:
        return [torch.zeros(shape, device=device) for shape in shapes]

    copies = [each.bfloat16() if index % 2 else None for index, each in enumerate(zeros())]
    return Lists(normal(), normal(), zeros(), zeros(), copies)


def step(
    update, lists: Lists, *, count: int, lr: float = 1e-2, scale: float = 1.0, factor: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1,
) -> None:  # fmt: skip
    device = lists.parameters[0].device
    now = torch.tensor([scale, count, factor], dtype=torch.float64).to(device)
    with no_host_waits(device if update is adamw else torch.device("cpu")):
        update(*lists, now=now, lr=lr, betas=betas, eps=1e-8, weight_decay=weight_decay)


def oracle(
    p: Tensor, gradients: list[Tensor], *, lr: float, scales: list[float], factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(p, m, v) in fp64 after an update by each of the gradients, by the definition."""
    p = p.double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for count, (g, scale) in enumerate(zip(gradients, scales, strict=True), start=1):
        g = g.double() * factor
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        unbiased = m / (1 - 0.9**count), v / (1 - 0.99**count)
        p = p * (1 - scale * lr * 0.1)
        p = p - scale * lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return p, m, v


def test_adamw_is_as_exact_as_torch_over_many_steps(device: torch.device) -> None:
    ours, theirs = (make_lists(*SHAPES, device=device) for _ in range(2))
    first = [p.clone() for p in ours.parameters]
    generator = torch.Generator().manual_seed(1)
    history: list[list[Tensor]] = []
    scales = [min(1.0, (count + 1) / 8) for count in range(24)]
    for count, scale in enumerate(scales, start=1):
        # of all sizes, as gradients are
        size = 10.0 ** torch.randint(-6, 2, (1,), generator=generator).item()
        drawn = [torch.randn(s, generator=generator).to(device) * size for s in SHAPES]
        history.append(drawn)
        for lists, update in ((ours, adamw), (theirs, reference.adamw)):
            for gradient, new in zip(lists.gradients, drawn, strict=True):
                gradient.copy_(new)
            with poisoned():
                step(update, lists, count=count, scale=scale, factor=0.25)
    for index, start in enumerate(first):
        exact = oracle(
            start, [drawn[index] for drawn in history], lr=1e-2, scales=scales, factor=0.25
        )
        for mine, other, right in zip(ours, theirs, (exact[0], None, *exact[1:]), strict=False):
            if right is not None:
                assert error(mine[index], right) < 1e-6
                assert error(other[index], right) < 1e-6
        copy = ours.copies[index]
        assert copy is None or torch.equal(copy, ours.parameters[index].bfloat16())


def test_adamw_gives_the_worked_example(device: torch.device) -> None:
    lists = make_lists((1,), device=device)
    lists.parameters[0].fill_(2)
    lists.gradients[0].fill_(3)
    step(adamw, lists, count=1, lr=0.1, weight_decay=0.5)
    got = [each[0].item() for each in (lists.parameters, lists.exp_avgs, lists.exp_avg_sqs)]
    assert got == pytest.approx([1.8, 0.3, 0.09], rel=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.floats(1e-6, 1e6), st.sampled_from([0.0, 0.9, 0.95]), st.sampled_from([0.0, 0.95, 0.999]))
def test_adamw_moves_by_the_learning_rate_at_first_whatever_the_gradient(
    device: torch.device, size: float, beta1: float, beta2: float
) -> None:
    lists = make_lists((16,), device=device)
    before = lists.parameters[0].clone()
    lists.gradients[0].sign_().mul_(size)
    signs = lists.gradients[0].sign()
    step(adamw, lists, count=1, lr=0.5, betas=(beta1, beta2), weight_decay=0.0)
    moved = lists.parameters[0] - before
    # 1e-8 is added to the size of the gradient, which is 1e-6 at least
    torch.testing.assert_close(moved, -0.5 * signs, atol=1e-6, rtol=1.1e-2)
    if size >= 1:
        torch.testing.assert_close(moved, -0.5 * signs, atol=1e-6, rtol=1e-6)


def test_adamw_decays_weights_apart_from_the_moments(device: torch.device) -> None:
    lists = make_lists((100,), device=device)
    before = lists.parameters[0].clone()
    lists.gradients[0].zero_()
    step(adamw, lists, count=1, lr=0.5, scale=0.5, weight_decay=0.5)
    assert torch.equal(lists.parameters[0], before * 0.875)
    assert not lists.exp_avgs[0].any()
    assert not lists.exp_avg_sqs[0].any()


def test_adamw_keeps_updates_that_bf16_would_round_away(device: torch.device) -> None:
    lists = make_lists((8,), (8,), device=device)
    for p, g in zip(lists.parameters, lists.gradients, strict=True):
        p.fill_(1)
        g.fill_(1)
    for count in range(1, 21):
        step(adamw, lists, count=count, lr=2**-12, weight_decay=0.0)
    assert lists.parameters[1].tolist() == pytest.approx([1 - 20 / 2**12] * 8, abs=1e-6)
    copy = lists.copies[1]
    assert copy is not None
    assert torch.equal(copy, lists.parameters[1].bfloat16())
    one = torch.ones((), dtype=torch.bfloat16)
    assert one - 2**-12 == one


def test_adamw_is_repeatable_and_leaves_gradients_alone(device: torch.device) -> None:
    one, other = (make_lists(*SHAPES, device=device) for _ in range(2))
    before = [g.clone() for g in one.gradients]
    for lists in (one, other):
        for count in range(1, 4):
            step(adamw, lists, count=count, factor=0.5)
    for mine, theirs in zip(one, other, strict=True):
        for each, twin in zip(mine, theirs, strict=True):
            assert (each is None and twin is None) or torch.equal(each, twin)
    assert all(torch.equal(g, b) for g, b in zip(one.gradients, before, strict=True))


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 10**6])
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_adamw_undoes_the_bias_at_any_step(count: int, beta2: float, device: torch.device) -> None:
    lists = make_lists((4,), device=device)
    p, m, v = lists.parameters[0], lists.exp_avgs[0], lists.exp_avg_sqs[0]
    p.zero_()
    m.fill_(1)
    v.fill_(1)
    lists.gradients[0].fill_(1)
    step(adamw, lists, count=count, lr=1.0, betas=(0.9, beta2), weight_decay=0.0)
    want = -1 / (1 - 0.9**count) / (1 / (1 - beta2**count) ** 0.5 + 1e-8)
    assert p.tolist() == pytest.approx([want] * 4, rel=5e-7)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("gradients", torch.zeros(4, 3), r"got gradient float32 \[4, 3\]"),
        ("gradients", torch.zeros(4, 3).T, r"strides \[1, 3\]"),
        ("exp_avgs", torch.zeros(3, 4).bfloat16(), "got exp_avg bfloat16"),
        ("exp_avg_sqs", torch.zeros(12), "got exp_avg_sq"),
        ("parameters", torch.zeros(3, 4).bfloat16(), "got parameter bfloat16"),
        ("copies", torch.zeros(3, 4), "got copy float32"),
    ],
)
def test_adamw_refuses_what_it_would_read_wrongly(
    name: str, changed: Tensor, message: str, device: torch.device
) -> None:
    lists = make_lists((3, 4), device=device)._replace(**{name: [changed.to(device)]})
    with pytest.raises(ValueError, match=message):
        step(adamw, lists, count=1)
