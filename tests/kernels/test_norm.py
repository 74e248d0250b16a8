"""The residual stream and its norm against their specification, fp64, and plain torch's error.

Legend: T tokens, in one or more dimensions, D model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nmoe.kernels import norm
from nmoe.reference import norm as reference
from tests.kernels.cases import assert_no_worse, error, poisoned

EPS = 1e-6
FP32, FP64 = torch.float32, torch.float64
# one row, rows of no power of two, rows that fill no tile, several dimensions of tokens
SHAPES = [(1, 8), (1, 768), (5, 96), (37, 64), (2, 11, 768), (6, 2048), (2, 8192), (3, 1, 5, 40)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, FP32], ids=["bf16", "fp32"])


class Inputs(NamedTuple):
    x_TD: Tensor
    delta_TD: Tensor
    weight_D: Tensor
    dout_TD: Tensor
    dh_TD: Tensor


class Outcome(NamedTuple):
    """What a function gives; the gradients of x and delta are the same where there is a delta."""

    out_TD: Tensor
    h_TD: Tensor
    dx_TD: Tensor
    dweight_D: Tensor
    ddelta_TD: Tensor | None


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a program has several tiles, and the last one fewer."""
    monkeypatch.setattr(norm, "PROGRAMS", 3)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape))
    x, delta, dout, dh = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    weight = 1 + torch.randn(shape[-1], generator=generator) / 2
    return Inputs(*(each.to(device) for each in (3 * x, delta, weight, dout, dh)))


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    inputs: Inputs,
    *,
    has_delta: bool = True,
    is_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Outcome:
    """`dtype`: of everything; `is_last`: x' is not used."""
    if dtype is not None:
        inputs = Inputs(*(each.to(dtype) for each in inputs))
    x, delta, weight = (each.detach().requires_grad_() for each in inputs[:3])
    with poisoned():
        out, h = function(x, delta if has_delta else None, weight, eps=EPS)
        leaves = (x, weight, *((delta,) if has_delta else ()))
        outputs = (h,) if is_last else (h, out)
        grads = torch.autograd.grad(outputs, leaves, (inputs.dh_TD, inputs.dout_TD)[: len(outputs)])
    return Outcome(out.detach(), h.detach(), *grads[:2], grads[2] if has_delta else None)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("has_delta", [True, False])
@each_dtype
@each_shape
def test_norm_and_gradients_are_no_worse_than_plain_torch(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    has_delta: bool,
    is_last: bool,
    device: torch.device,
) -> None:
    inputs = make(shape, dtype, device)
    how = {"has_delta": has_delta, "is_last": is_last}
    got = run(norm.add_rms_norm, inputs, **how)
    plain = run(reference.add_rms_norm, inputs, **how)
    # the sum is rounded before its norm is taken, and that is no error
    exact_inputs = inputs._replace(x_TD=plain.out_TD)
    exact = run(reference.add_rms_norm, exact_inputs, has_delta=False, is_last=is_last, dtype=FP64)
    assert torch.equal(got.out_TD, plain.out_TD)
    assert got.h_TD.dtype == got.dx_TD.dtype == dtype
    assert got.dweight_D.dtype == FP32
    for got_each, plain_each, exact_each in zip(got[1:4], plain[1:4], exact[1:4], strict=True):
        assert got_each.shape == plain_each.shape
        if dtype == FP32:
            assert error(got_each, exact_each) < 5e-7
        else:
            assert_no_worse(got_each, plain_each, exact_each)
    assert not has_delta or got.ddelta_TD is not None
    assert got.ddelta_TD is None or torch.equal(got.ddelta_TD, got.dx_TD)


def test_worked_example_of_the_kernels(device: torch.device) -> None:
    def row(*two: float) -> Tensor:
        return torch.tensor(two, dtype=FP32, device=device).repeat(1, 4)

    x, delta, weight = row(1, 2).requires_grad_(), row(2, 2), row(1, 10)[0].requires_grad_()
    out, h = norm.add_rms_norm(x, delta, weight, eps=1e-9)
    assert torch.equal(out, row(3, 4))
    torch.testing.assert_close(h, row(0.8485, 11.3137), atol=1e-4, rtol=0)
    dx, dweight = torch.autograd.grad((out, h), (x, weight), (row(5, 5), row(1, 0)))
    torch.testing.assert_close(dx, row(5.1810, 4.8642), atol=1e-4, rtol=0)
    torch.testing.assert_close(dweight, row(0.8485, 0)[0], atol=1e-4, rtol=0)


@each_dtype
def test_specification_is_a_sum_and_torchs_norm_bit_for_bit(dtype: torch.dtype) -> None:
    inputs = make((2, 5, 96), dtype, torch.device("cpu"))
    x_TD, weight_D = inputs.x_TD + inputs.delta_TD, inputs.weight_D.to(dtype)
    out, h = reference.add_rms_norm(inputs.x_TD, inputs.delta_TD, inputs.weight_D, eps=EPS)
    assert torch.equal(out, x_TD)
    assert torch.equal(h, functional.rms_norm(x_TD, (96,), weight_D, EPS))


def test_same_bits_every_time_and_without_gradients(device: torch.device) -> None:
    inputs = make((2, 11, 768), torch.bfloat16, device)
    first, second = run(norm.add_rms_norm, inputs), run(norm.add_rms_norm, inputs)
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    with torch.no_grad():
        out, h = norm.add_rms_norm(*inputs[:3], eps=EPS)
    assert torch.equal(out, first.out_TD)
    assert torch.equal(h, first.h_TD)


def test_gradient_that_x_and_delta_share_is_added_to_each_once(device: torch.device) -> None:
    inputs = make((5, 96), FP32, device)
    want = run(norm.add_rms_norm, inputs)
    x, delta, weight = (each.detach().requires_grad_() for each in inputs[:3])
    for _ in range(3):
        out, h = norm.add_rms_norm(x, delta, weight, eps=EPS)
        torch.autograd.backward((out, h), (inputs.dout_TD, inputs.dh_TD))
    for leaf in (x, delta):
        torch.testing.assert_close(leaf.grad, 3 * want.dx_TD)


def test_stream_alone_passes_its_gradient_on(device: torch.device) -> None:
    inputs = make((5, 96), FP32, device)
    x, delta = (each.detach().requires_grad_() for each in inputs[:2])
    out, _ = norm.add_rms_norm(x, delta, inputs.weight_D, eps=EPS)
    for grad in torch.autograd.grad(out, (x, delta), inputs.dout_TD):
        assert torch.equal(grad, inputs.dout_TD)


@pytest.mark.parametrize("has_delta", [True, False])
def test_no_tokens_have_no_norm_and_no_gradients(has_delta: bool, device: torch.device) -> None:
    inputs = make((2, 0, 64), torch.bfloat16, device)
    got = run(norm.add_rms_norm, inputs, has_delta=has_delta)
    assert got.out_TD.shape == got.h_TD.shape == got.dx_TD.shape == (2, 0, 64)
    assert got.dweight_D.shape == (64,)
    assert not got.dweight_D.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_TD": torch.zeros(4, 64).half()}, "got x float16"),
        ({"x_TD": torch.zeros(64, 4).bfloat16().T}, r"got x bfloat16 .* strides \[1, 4\]"),
        ({"delta_TD": torch.zeros(4, 64)}, r"got delta float32 .* expected contiguous bfloat16"),
        ({"delta_TD": torch.zeros(1, 64).bfloat16()}, r"got delta bfloat16 \[1, 64\]"),
        ({"weight_D": torch.zeros(64).bfloat16()}, "got weight bfloat16"),
        ({"weight_D": torch.zeros(63)}, r"got weight float32 \[63\]"),
        (
            {"x_TD": torch.zeros(4, 60), "weight_D": torch.zeros(60)},
            "got D = 60 .* a multiple of 8 up to 8192",
        ),
        ({"x_TD": torch.zeros(1, 8200), "weight_D": torch.zeros(8200)}, "got D = 8200"),
        ({"x_TD": torch.zeros(1, 0), "weight_D": torch.zeros(0)}, "got D = 0"),
        ({"eps": 0.0}, "got D = 64 and eps = 0.0, expected .* more than 0"),
    ],
)
def test_norm_refuses_what_it_would_read_wrongly(
    change: dict[str, Any], message: str, device: torch.device
) -> None:
    given = {
        "x_TD": torch.zeros(4, 64).bfloat16(),
        "delta_TD": None if "weight_D" in change else torch.zeros(4, 64).bfloat16(),
        "weight_D": torch.zeros(64),
        "eps": EPS,
    } | change
    given = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in given.items()}
    with pytest.raises(ValueError, match=message):
        norm.add_rms_norm(**given)
