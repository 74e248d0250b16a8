"""Inputs, poison and measures that the tests of kernels share.

Legend: T tokens, K top-k, D model, F expert hidden, G columns of w13, E experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from nmoe.config import Activation
from nmoe.expert_layout import pack

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
# Whom tokens choose: anyone; few mostly; the first K experts, all of them; only every third expert.
Skew = Literal["even", "zipf", "same", "gaps"]
SKEWS: tuple[Skew, ...] = get_args(Skew)


class Problem(NamedTuple):
    """What one MoE layer computes from, bf16 but for ids and gates (fp32)."""

    x_TD: Tensor
    experts_TK: Tensor
    gates_TK: Tensor
    w1_EDF: Tensor
    w3_EDF: Tensor | None
    w2_EFD: Tensor
    dy_TD: Tensor
    activation: Activation

    @property
    def w13_EDG(self) -> Tensor:
        return pack(self.w1_EDF, self.w3_EDF)

    @property
    def num_experts(self) -> int:
        return len(self.w1_EDF)


def choose(tokens: int, num_experts: int, top_k: int, *, skew: Skew, seed: int) -> Tensor:
    """experts_TK int64: K different experts of each token."""
    generator = torch.Generator().manual_seed(seed)
    scores_TE = torch.rand(tokens, num_experts, generator=generator)
    expert_E = torch.arange(num_experts)
    match skew:
        case "zipf":  # Gumbel top-k of a zipf law
            scores_TE = -(-scores_TE.log()).log() - 2.0 * (expert_E + 1.0).log()
        case "same":
            scores_TE = -expert_E.float().expand(tokens, -1)
        case "gaps":
            scores_TE = scores_TE + (expert_E % 3 == 0)
    return scores_TE.topk(top_k, dim=1).indices


def make_problem(
    tokens: int,
    dim: int,
    hidden: int,
    num_experts: int,
    top_k: int,
    *,
    activation: Activation,
    skew: Skew,
    device: torch.device,
    seed: int = 0,
) -> Problem:
    """Random inputs of unit size and weights that keep it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).bfloat16().to(device)

    up = (num_experts, dim, hidden)
    return Problem(
        x_TD=normal(tokens, dim),
        experts_TK=choose(tokens, num_experts, top_k, skew=skew, seed=seed).to(device),
        gates_TK=torch.rand(tokens, top_k, generator=generator).to(device),
        w1_EDF=normal(*up, scale=dim**-0.5),
        w3_EDF=None if activation == "relu_squared" else normal(*up, scale=dim**-0.5),
        w2_EFD=normal(num_experts, hidden, dim, scale=hidden**-0.5),
        dy_TD=normal(tokens, dim),
        activation=activation,
    )


def activate(h1: Tensor, h3: Tensor | None, *, activation: Activation) -> Tensor:
    """The activations' definitions, in the dtype of h1."""
    inner = functional.silu(h1) if activation == "swiglu" else functional.relu(h1).square()
    return inner if h3 is None else inner * h3


def plain_layer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(y_TD, dx_TD, dgates_TK, dw13_EDG, dw2_EFD) of the layer in torch, every step in `dtype`.

    fp64 is the oracle; what bf16 loses against it is what kernels may lose.
    """
    gates_TK = problem.gates_TK.to(torch.float64 if dtype == torch.float64 else torch.float32)
    w13 = (problem.w1_EDF, *(() if problem.w3_EDF is None else (problem.w3_EDF,)))
    x_TD, w2, *w1w3 = (
        each.to(dtype).requires_grad_() for each in (problem.x_TD, problem.w2_EFD, *w13)
    )
    gates_TK = gates_TK.requires_grad_()
    y_TD = torch.zeros_like(x_TD)
    for expert in range(problem.num_experts):
        token, choice = (problem.experts_TK == expert).nonzero(as_tuple=True)
        h1, *h3 = (x_TD[token] @ w[expert] for w in w1w3)
        a = activate(h1, h3[0] if h3 else None, activation=problem.activation)
        gated = gates_TK[token, choice, None] * (a @ w2[expert])
        y_TD = y_TD.index_add(0, token, gated.to(dtype))
    leaves = (x_TD, gates_TK, w2, *w1w3)
    dx, dgates, dw2, dw1, *dw3 = torch.autograd.grad(y_TD, leaves, problem.dy_TD.to(dtype))
    return y_TD.detach(), dx, dgates, pack(dw1, dw3[0] if dw3 else None), dw2


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever is allocated in here holds NaN, or the largest integer, until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def no_host_waits(device: torch.device) -> Iterator[None]:
    """On a GPU: a host that waits raises."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def error(got: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is right; 0 when both are zero throughout."""
    difference = (got.double() - exact.double()).norm().item()
    return difference / exact.double().norm().item() if difference else 0.0


def assert_no_worse(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Its error is at most that of the plain bf16 path.

    Roundings are chance: norms of two errors of n numbers scatter by 1 / sqrt(n) against each
    other, which is nothing but where a token or two have a gate each. Twice that is allowed.
    """
    scatter = 2 / max(1, exact.numel()) ** 0.5
    assert error(got, exact) <= (1 + scatter) * error(plain, exact)


def assert_close(got: Tensor, want: Tensor) -> None:
    """Every element within one rounding of bf16, and what fp32 sums leave where they cancel.

    Both round the same fp32 sum, taken in another order: 2^-7 is the widest step of bf16.
    """
    got, want = got.double(), want.double()
    size = want.square().mean().sqrt() if want.numel() else 0.0
    assert got.shape == want.shape
    assert bool(((got - want).abs() <= 2**-7 * want.abs() + 2**-16 * size).all())
