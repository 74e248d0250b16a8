"""Router decision, its gradient and counts, against their specification and fp64.

Legend: T tokens, B sequences, E experts, K top-k.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from nmoe.config import Impl, read_config
from nmoe.kernels.route import count_choices, route, router_logits
from nmoe.moe import Router
from nmoe.ops import route as route_of
from nmoe.reference import route as reference
from tests import tiny
from tests.kernels.cases import Skew, choose, error, no_host_waits, poisoned

# (tokens, sequences, experts, top-k): every K, experts of no power of two, odd and single tokens
SIZES = [
    (1, 1, 8, 1),
    (33, 3, 8, 8),
    (70, 2, 64, 2),
    (65, 5, 64, 16),
    (130, 2, 256, 7),
    (77, 1, 256, 8),
    (21, 7, 300, 3),
    (35, 5, 300, 13),
    (5, 1, 4096, 9),
    (18, 2, 4096, 16),
    *((1200 // k, 1, 16, k) for k in (4, 5, 6, 10, 11, 12, 14, 15)),
]


class Inputs(NamedTuple):
    logits_TE: Tensor
    bias_E: Tensor
    dgates_TK: Tensor
    dprobability_BE: Tensor


def make_inputs(
    tokens: int, batch: int, num_experts: int, top_k: int, *, device: torch.device, scale: float = 1
) -> Inputs:
    generator = torch.Generator().manual_seed(tokens + num_experts)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    return Inputs(
        scale * normal(tokens, num_experts),
        normal(num_experts) / 4,
        normal(tokens, top_k),
        normal(batch, num_experts),
    )


def oracle(logits_TE: Tensor, experts_TK: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """(gates_TK, probability_BE) of the definition, in the dtype of the logits, for choices."""
    s_TE = torch.sigmoid(logits_TE)
    chosen_TK = s_TE.gather(1, experts_TK)
    gates_TK = chosen_TK / (chosen_TK.sum(1, keepdim=True) + reference.TINY)
    probability_TE = s_TE / (s_TE.sum(1, keepdim=True) + reference.TINY)
    return gates_TK, probability_TE.unflatten(0, (batch, -1)).mean(1)


def assert_chosen(experts_TK: Tensor, logits_TE: Tensor, bias_E: Tensor) -> None:
    """Different experts; none left out is better, and they come in falling order, to rounding."""
    num_experts, top_k = len(bias_E), experts_TK.shape[1]
    assert experts_TK.dtype == torch.int64
    assert int(experts_TK.min()) >= 0
    assert int(experts_TK.max()) < num_experts
    assert (experts_TK.sort(1).values.diff(dim=1) > 0).all()
    biased_TE = torch.sigmoid(logits_TE.double()) + bias_E.double()
    want_TK = biased_TE.sort(1, descending=True).values[:, :top_k]
    torch.testing.assert_close(biased_TE.gather(1, experts_TK), want_TK, atol=5e-7, rtol=5e-7)


@pytest.mark.parametrize("size", SIZES)
def test_route_and_its_gradient_match_fp64(
    size: tuple[int, int, int, int], device: torch.device
) -> None:
    tokens, batch, num_experts, top_k = size
    inputs = make_inputs(*size, device=device)
    leaf, bias_E = inputs.logits_TE.requires_grad_(), inputs.bias_E.requires_grad_()
    with poisoned(), no_host_waits(device):
        experts_TK, gates_TK, probability_BE = route(leaf, bias_E, top_k, batch=batch)
        assert probability_BE is not None
        dlogits_TE, dbias_E = torch.autograd.grad(
            [gates_TK, probability_BE],
            [leaf, bias_E],
            [inputs.dgates_TK, inputs.dprobability_BE],
            allow_unused=True,
        )
    assert_chosen(experts_TK, leaf.detach(), bias_E.detach())
    assert not experts_TK.requires_grad
    assert dbias_E is None
    exact = leaf.detach().double().requires_grad_()
    want = oracle(exact, experts_TK, batch)
    (want_grad,) = torch.autograd.grad(
        want, [exact], [inputs.dgates_TK.double(), inputs.dprobability_BE.double()]
    )
    for got, right in zip((gates_TK, probability_BE, dlogits_TE), (*want, want_grad), strict=True):
        assert (got.dtype, got.shape) == (torch.float32, right.shape)
        assert error(got.detach(), right.detach()) < 1e-6
    torch.testing.assert_close(gates_TK.sum(1), torch.ones(tokens, device=device))


@pytest.mark.parametrize("size", SIZES)
def test_route_equals_the_specification_when_scores_differ(
    size: tuple[int, int, int, int], device: torch.device
) -> None:
    *_, batch, num_experts, top_k = size
    # scores far enough apart for any rounding of exp: steps of 1 / (2 E), in an order of their own
    generator = torch.Generator().manual_seed(1)
    order_TE = torch.rand(size[0], num_experts, generator=generator).argsort(1)
    scores_TE = 0.25 + order_TE.double() / (2 * num_experts)
    logits_TE = torch.logit(scores_TE).float().to(device)
    bias_E = torch.zeros(num_experts, device=device)
    bias_E[num_experts // 2] = 2.0
    bias_E[0] = -2.0
    got = route(logits_TE, bias_E, top_k, batch=batch)
    want = reference.route(logits_TE, bias_E, top_k, batch=batch)
    assert torch.equal(got[0], want[0])
    assert (got[0][:, 0] == num_experts // 2).all()
    assert num_experts == top_k or not (got[0] == 0).any()
    for one, other in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=3e-6)


@pytest.mark.parametrize("size", SIZES)
def test_route_gradient_of_gates_is_sparse_and_keeps_no_logits(
    size: tuple[int, int, int, int], device: torch.device
) -> None:
    inputs = make_inputs(*size, device=device)
    tokens, batch, _, top_k = size
    kept: list[tuple[int, ...]] = []
    leaf = inputs.logits_TE.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        experts_TK, gates_TK, probability_BE = route(leaf, inputs.bias_E, top_k)
    assert probability_BE is None
    assert set(kept) == {(tokens, top_k)}
    # a gradient that is no contiguous tensor, as those of slices are
    strided = inputs.dgates_TK.T.contiguous().T
    with poisoned():
        (dlogits_TE,) = torch.autograd.grad(gates_TK, [leaf], [strided])
        _, gates_with_aux_TK, _ = route(leaf, inputs.bias_E, top_k, batch=batch)
        (same_TE,) = torch.autograd.grad(gates_with_aux_TK, [leaf], [strided])
    assert torch.equal(dlogits_TE, same_TE)
    assert not dlogits_TE.scatter(1, experts_TK, 0.0).any()
    exact = leaf.detach().double().requires_grad_()
    gates, _ = oracle(exact, experts_TK, batch)
    (want,) = torch.autograd.grad(gates, [exact], [inputs.dgates_TK.double()])
    assert (dlogits_TE.double() - want).abs().max() < 1e-6


def test_route_takes_the_lowest_expert_first_when_scores_are_equal(device: torch.device) -> None:
    logits_TE = torch.zeros(9, 300, device=device)
    logits_TE[:, 100::2] = 1.0
    experts_TK, gates_TK, _ = route(logits_TE, torch.zeros(300, device=device), 16)
    want_K = torch.arange(100, 132, 2, device=device)
    assert (experts_TK == want_K).all()
    torch.testing.assert_close(gates_TK, torch.full_like(gates_TK, 1 / 16))
    bias_E = torch.linspace(-16, 16, 8, device=device)
    bias_E[3] = bias_E[4] = bias_E[5] = -3.0
    experts_TK, *_ = route(torch.full((3, 8), 50.0, device=device), bias_E, 8)
    assert experts_TK.tolist() == 3 * [[7, 6, 3, 4, 5, 2, 1, 0]]


@pytest.mark.parametrize("scale", [50.0, 1000.0])
def test_route_stays_finite_when_logits_are_extreme(scale: float, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    signs_TE = torch.randint(0, 2, (40, 64), generator=generator).float() * 2 - 1
    signs_TE[0], signs_TE[1] = 1.0, -1.0
    leaf = (scale * signs_TE).to(device).requires_grad_()
    bias_E = torch.zeros(64, device=device)
    experts_TK, gates_TK, probability_BE = route(leaf, bias_E, 6, batch=2)
    assert probability_BE is not None
    assert_chosen(experts_TK, leaf.detach(), bias_E)
    exact = leaf.detach().double().requires_grad_()
    want = oracle(exact, experts_TK, 2)
    (got_grad,) = torch.autograd.grad([gates_TK.square().sum(), probability_BE.sum()], [leaf])
    (want_grad,) = torch.autograd.grad([want[0].square().sum(), want[1].sum()], [exact])
    torch.testing.assert_close(gates_TK.double(), want[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probability_BE.double(), want[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got_grad.double(), want_grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gates_TK[0], torch.full((6,), 1 / 6, device=device))


def test_route_names_different_experts_when_logits_are_nan_or_infinite(
    device: torch.device,
) -> None:
    logits_TE = torch.full((4, 24), torch.nan, device=device)
    logits_TE[1, 3:] = torch.inf
    logits_TE[2] = -torch.inf
    logits_TE[3, 20] = 0.0
    # 24 experts are padded to 32: biases below zero show whether padding is chosen
    experts_TK, _, _ = route(logits_TE, torch.full((24,), -1.0, device=device), 16)
    assert experts_TK.max() < 24
    assert (experts_TK.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("batch", [0, 3])
def test_route_gives_nothing_when_there_are_no_tokens(
    batch: int, impl: Impl, device: torch.device
) -> None:
    leaf = torch.zeros(0, 8, device=device, requires_grad=True)
    bias_E = torch.zeros(8, device=device)
    experts_TK, gates_TK, probability_BE = route_of(leaf, bias_E, top_k=2, batch=batch, impl=impl)
    assert probability_BE is not None
    assert (experts_TK.shape, gates_TK.shape) == ((0, 2), (0, 2))
    assert torch.equal(probability_BE, torch.zeros(batch, 8, device=device))
    (dlogits_TE,) = torch.autograd.grad([gates_TK.sum(), probability_BE.sum()], [leaf])
    assert dlogits_TE.shape == (0, 8)
    counts = count_choices(experts_TK, 8, batch=batch)
    assert torch.equal(counts, reference.count_choices(experts_TK, 8, batch=batch))
    assert counts.shape == (batch, 8)


@pytest.mark.parametrize("skew", ["zipf", "same"])
@pytest.mark.parametrize(
    ("tokens", "batch", "num_experts", "top_k"),
    [(1, 1, 8, 1), (1000, 1, 256, 7), (999, 3, 300, 7), (12, 4, 4096, 16), (5, 5, 12, 3)],
)
def test_counts_are_those_of_the_specification(
    tokens: int, batch: int, num_experts: int, top_k: int, skew: Skew, device: torch.device
) -> None:
    experts_TK = choose(tokens, num_experts, top_k, skew=skew, seed=3).to(device)
    with poisoned(), no_host_waits(device):
        got = count_choices(experts_TK, num_experts, batch=batch)
    want = reference.count_choices(experts_TK, num_experts, batch=batch)
    assert got.dtype == want.dtype == torch.int64
    assert torch.equal(got, want)
    plain = [torch.bincount(each.flatten(), minlength=num_experts) for each in
             experts_TK.view(batch, -1, top_k)]  # fmt: skip
    assert torch.equal(got, torch.stack(plain))


@pytest.mark.parametrize(
    ("logits", "bias", "top_k", "batch", "message"),
    [
        (torch.zeros(4, 8).bfloat16(), torch.zeros(8), 2, 1, "got logits bfloat16"),
        (torch.zeros(8, 4).T, torch.zeros(8), 2, 1, r"strides \[1, 4\]"),
        (torch.zeros(4, 8), torch.zeros(7), 2, 1, r"got bias float32 \[7\]"),
        (torch.zeros(4, 8), torch.zeros(8), 9, 1, "got top 9 of 8 experts"),
        (torch.zeros(4, 8), torch.zeros(8), 0, 1, "got top 0 of 8 experts"),
        (torch.zeros(1, 4097), torch.zeros(4097), 2, 1, "of 4097 experts"),
        (torch.zeros(4, 8), torch.zeros(8), 2, 3, "got 4 tokens in 3 sequences"),
        (torch.zeros(4, 8), torch.zeros(8), 2, 0, "got 4 tokens in 0 sequences"),
    ],
)
def test_route_refuses_what_it_would_read_wrongly(
    logits: Tensor, bias: Tensor, top_k: int, batch: int, message: str, device: torch.device
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        route(logits.to(device), bias.to(device), top_k, batch=batch)
    assert "\n" not in str(caught.value)


def test_counts_refuse_what_they_would_read_wrongly(device: torch.device) -> None:
    experts_TK = torch.zeros(4, 2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="count_choices: got experts int32"):
        count_choices(experts_TK.int(), 8, batch=1)
    with pytest.raises(ValueError, match="got 4 tokens in 3 sequences"):
        count_choices(experts_TK, 8, batch=3)


@pytest.mark.parametrize(("tokens", "dim", "num_experts"), [(90, 64, 8), (1, 768, 256)])
def test_router_logits_are_nearly_fp32_and_their_gradients_no_worse_than_bf16(
    tokens: int, dim: int, num_experts: int, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(8)
    x_TD, weight_ED, dlogits_TE = (
        torch.randn(*shape, generator=generator).to(device)
        for shape in ((tokens, dim), (num_experts, dim), (tokens, num_experts))
    )
    x_TD = x_TD.bfloat16()
    exact_TE = x_TD.double() @ weight_ED.double().T
    leaves = x_TD.requires_grad_(), weight_ED.requires_grad_()
    logits_TE = router_logits(*leaves)
    # two bf16 parts hold the weight to 2^-17
    assert error(logits_TE.detach(), exact_TE) < 2**-16
    dx_TD, dw_ED = torch.autograd.grad(logits_TE, leaves, dlogits_TE)
    assert (dx_TD.dtype, dw_ED.dtype) == (torch.bfloat16, torch.float32)
    plain_TE = torch.nn.functional.linear(leaves[0], leaves[1].bfloat16())
    plain = torch.autograd.grad(plain_TE, leaves, dlogits_TE.bfloat16())
    exact = dlogits_TE.double() @ weight_ED.double(), dlogits_TE.double().T @ x_TD.double()
    for got, peer, want in zip((dx_TD, dw_ED), plain, exact, strict=True):
        assert error(got, want.detach()) <= 1.01 * error(peer, want.detach())


def test_router_logits_refuse_what_they_would_read_wrongly(device: torch.device) -> None:
    weight_ED = torch.zeros(8, 64, device=device)
    with pytest.raises(ValueError, match="router_logits: got x float32"):
        router_logits(torch.zeros(4, 64, device=device), weight_ED)
    with pytest.raises(ValueError, match=r"router_logits: got weight float32 \[8, 64\]"):
        router_logits(torch.zeros(4, 32, device=device).bfloat16(), weight_ED)


@pytest.mark.parametrize("aux_coef", [0.0, 1e-3])
def test_router_is_the_same_on_kernels(
    aux_coef: float, device: torch.device, tmp_path: Path
) -> None:
    config = read_config(tiny.write_config(tmp_path))
    x_TD = torch.randn(90, 32, generator=torch.Generator().manual_seed(5)).to(device).bfloat16()
    results: list[tuple[Tensor, ...]] = []
    impls: tuple[Impl, ...] = ("reference", "triton")
    for impl in impls:
        router = Router(
            replace(
                config,
                model=replace(config.model, impl=impl),
                experts=replace(config.experts, aux_coef=aux_coef),
            )
        )
        torch.nn.init.normal_(router.gate.weight, generator=torch.Generator().manual_seed(6))
        router = router.to(device)
        experts_TK, gates_TK, aux = router(x_TD, batch=3)
        (gates_TK[:, 0].sum() + aux).backward()
        assert router.gate.weight.grad is not None
        assert router.bias_E.grad is None
        results.append((experts_TK, router.loads_E, gates_TK, aux, router.gate.weight.grad))
    # the weight is rounded to 2^-17, gradients to 2^-9
    for want, got, limit in zip(*results, (0, 0, 1e-4, 1e-4, 0.01), strict=True):
        assert error(got.detach(), want.detach()) <= limit
