"""The gated activation against its specification, fp64, and plain torch's error.

Legend: T tokens, in one or more dimensions, F hidden, G = 2 F columns of h.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nmoe.kernels.swiglu import swiglu
from nmoe.reference import swiglu as reference
from tests.kernels.cases import assert_no_worse, error, poisoned

# one token, tokens that fill no tile, widths of no power of two, several dimensions of tokens
SHAPES = [(1, 8), (37, 40), (1, 384), (3, 13, 384), (5, 1408), (9, 3072), (2, 1, 3, 64)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, size: float = 2.0
) -> tuple[Tensor, Tensor]:
    """(h_TG, da_TF) for a shape of a."""
    generator = torch.Generator().manual_seed(sum(shape))
    h_TG = size * torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)
    da_TF = torch.randn(shape, generator=generator)
    return h_TG.to(dtype).to(device), da_TF.to(dtype).to(device)


def run(function: Callable[[Tensor], Tensor], h_TG: Tensor, da_TF: Tensor) -> tuple[Tensor, Tensor]:
    """(a, dh)."""
    h_TG = h_TG.detach().requires_grad_()
    with poisoned():
        a_TF = function(h_TG)
        (dh_TG,) = torch.autograd.grad(a_TF, h_TG, da_TF)
    return a_TF.detach(), dh_TG


@each_dtype
@each_shape
def test_activation_and_gradient_are_no_worse_than_plain_torch(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    inputs = make(shape, dtype, device)
    got, plain = run(swiglu, *inputs), run(reference.swiglu, *inputs)
    exact = run(reference.swiglu, *(each.double() for each in inputs))
    for got_each, plain_each, exact_each in zip(got, plain, exact, strict=True):
        assert got_each.dtype == dtype
        assert got_each.shape == plain_each.shape
        if dtype == torch.float32:
            assert error(got_each, exact_each) < 5e-7
        else:
            assert_no_worse(got_each, plain_each, exact_each)


def test_worked_example_of_the_kernels(device: torch.device) -> None:
    h_TG = torch.tensor([1.0, 2.0], device=device).repeat_interleave(8)[None].requires_grad_()
    a_TF = swiglu(h_TG)
    (dh_TG,) = torch.autograd.grad(a_TF, h_TG, torch.full_like(a_TF, 3.0))
    torch.testing.assert_close(a_TF, torch.full_like(a_TF, 1.4621), atol=1e-4, rtol=0)
    want = torch.tensor([5.5660, 2.1932], device=device).repeat_interleave(8)[None]
    torch.testing.assert_close(dh_TG, want, atol=1e-4, rtol=0)


@each_dtype
def test_specification_is_torchs_silu_of_the_left_half_bit_for_bit(dtype: torch.dtype) -> None:
    h_TG, _ = make((3, 13, 96), dtype, torch.device("cpu"))
    want = functional.silu(h_TG[..., :96]) * h_TG[..., 96:]
    assert torch.equal(reference.swiglu(h_TG), want)


@pytest.mark.filterwarnings("ignore:overflow")  # of numpy: exp(300) is infinite, and right
def test_gates_far_from_zero_are_finite(device: torch.device) -> None:
    inputs = make((2, 64), torch.float32, device, size=300.0)
    for got, exact in zip(run(swiglu, *inputs), run(reference.swiglu, *inputs), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, exact)


def test_gradient_of_another_layout_is_read_rightly(device: torch.device) -> None:
    h_TG, da_TF = make((5, 64), torch.float32, device)
    want = run(swiglu, h_TG, da_TF)
    got = run(swiglu, h_TG, da_TF.T.contiguous().T)
    assert torch.equal(got[1], want[1])


def test_no_tokens_have_no_activation(device: torch.device) -> None:
    a_TF, dh_TG = run(swiglu, *make((2, 0, 64), torch.bfloat16, device))
    assert a_TF.shape == (2, 0, 64)
    assert dh_TG.shape == (2, 0, 128)


@pytest.mark.parametrize(
    ("h_TG", "message"),
    [
        (torch.zeros(4, 64).half(), "got h float16"),
        (torch.zeros(64, 4).T, r"got h float32 .* strides \[1, 4\]"),
        (torch.zeros(4, 24), "got G = 24, expected a multiple of 16"),
        (torch.zeros(4, 0), "got G = 0"),
    ],
)
def test_activation_refuses_what_it_would_read_wrongly(
    h_TG: Tensor, message: str, device: torch.device
) -> None:
    with pytest.raises(ValueError, match=message):
        swiglu(h_TG.to(device))
