"""QK-norm and rotary positions against their specification, fp64, and plain torch's error.

Legend: B batch, S sequence, P = 3 parts, H heads, N head size, M = N / 2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nmoe.kernels.rotary import rotary_norm
from nmoe.layers import Rotary
from nmoe.reference import rotary as reference
from tests.kernels.cases import assert_no_worse, error, poisoned

EPS = 1e-6
BF16, FP32 = torch.bfloat16, torch.float32
# (B, S, H, N): one token, tokens that fill no tile, tiles across sequences, heads of every size
SHAPES = [
    (1, 1, 1, 16),
    (2, 37, 3, 64),
    (1, 70, 12, 64),
    (3, 21, 2, 128),
    (5, 7, 2, 32),
    (1, 9, 1, 256),
]
Norms = tuple[bool, bool]  # of q and k
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
each_dtype = pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])


class Inputs(NamedTuple):
    qkv_BSPHN: Tensor
    q_weight_N: Tensor
    k_weight_N: Tensor
    cos_SM: Tensor
    sin_SM: Tensor
    dq_BHSN: Tensor
    dk_BHSN: Tensor
    dv_BHSN: Tensor


class Outcome(NamedTuple):
    q_BHSN: Tensor
    k_BHSN: Tensor
    v_BHSN: Tensor
    dqkv_BSPHN: Tensor
    dq_weight_N: Tensor | None
    dk_weight_N: Tensor | None


def make(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Inputs:
    batch, seq, heads, size = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    return Inputs(
        (2 * normal(batch, seq, 3, heads, size)).to(dtype).to(device),
        *((1 + normal(size) / 2).to(device) for _ in range(2)),
        *(each.to(device) for each in Rotary(size, theta=100.0, max_len=seq + 3)(seq)),
        *(normal(batch, heads, seq, size).to(dtype).to(device) for _ in range(3)),
    )


def run(
    function: Callable[..., tuple[Tensor, Tensor, Tensor]],
    inputs: Inputs,
    *,
    norms: Norms = (True, True),
    dtype: torch.dtype | None = None,
) -> Outcome:
    """`dtype`: of everything."""
    if dtype is not None:
        inputs = Inputs(*(each.to(dtype) for each in inputs))
    qkv, *weights = (each.detach().requires_grad_() for each in inputs[:3])
    given = [weight if has else None for weight, has in zip(weights, norms, strict=True)]
    leaves = [qkv, *(weight for weight in given if weight is not None)]
    with poisoned():
        outputs = function(qkv, *given, inputs.cos_SM, inputs.sin_SM, eps=EPS)
        dqkv, *grads = torch.autograd.grad(outputs, leaves, inputs[5:])
    dweights = [grads.pop(0) if has else None for has in norms]
    q, k, v = (each.detach() for each in outputs)
    return Outcome(q, k, v, dqkv, dweights[0], dweights[1])


@pytest.mark.parametrize("norms", [(True, True), (False, False), (True, False)])
@each_dtype
@each_shape
def test_rotation_and_gradients_are_no_worse_than_plain_torch(
    shape: tuple[int, int, int, int], dtype: torch.dtype, norms: Norms, device: torch.device
) -> None:
    inputs = make(shape, dtype, device)
    got = run(rotary_norm, inputs, norms=norms)
    plain = run(reference.rotary_norm, inputs, norms=norms)
    exact = run(reference.rotary_norm, inputs, norms=norms, dtype=torch.float64)
    assert got.q_BHSN.dtype == got.k_BHSN.dtype == got.dqkv_BSPHN.dtype == dtype
    for got_each, plain_each, exact_each in zip(got, plain, exact, strict=True):
        if got_each is None or plain_each is None or exact_each is None:
            assert got_each is plain_each is exact_each is None
            continue
        assert got_each.shape == plain_each.shape
        if dtype == FP32:
            assert error(got_each, exact_each) < 5e-7
        else:
            assert_no_worse(got_each, plain_each, exact_each)
    batch, seq, heads, size = shape
    assert torch.equal(got.v_BHSN, plain.v_BHSN)
    assert torch.equal(got.dqkv_BSPHN[:, :, 2], inputs.dv_BHSN.transpose(1, 2))
    for each in (got.q_BHSN, got.k_BHSN):
        assert each.transpose(1, 2).is_contiguous()


@each_dtype
def test_specification_is_written_out_bit_for_bit(dtype: torch.dtype) -> None:
    inputs = make((2, 5, 3, 32), dtype, torch.device("cpu"))
    q, k, v = reference.rotary_norm(*inputs[:5], eps=EPS)
    angles = inputs.cos_SM.to(dtype), inputs.sin_SM.to(dtype)
    weights = inputs[1:3]
    for part, (got, weight) in enumerate(zip((q, k), weights, strict=True)):
        x = inputs.qkv_BSPHN[:, :, part].transpose(1, 2)
        x = torch.nn.functional.rms_norm(x, (32,), weight.to(dtype), EPS)
        left, right, (cos, sin) = x[..., :16], x[..., 16:], angles
        assert torch.equal(got[..., :16], left * cos - right * sin)
        assert torch.equal(got[..., 16:], right * cos + left * sin)
    assert torch.equal(v, inputs.qkv_BSPHN[:, :, 2].transpose(1, 2))


def test_worked_example_of_the_kernels(device: torch.device) -> None:
    def halves(left: float, right: float) -> Tensor:
        return torch.tensor([left, right], device=device).repeat_interleave(8)

    qkv = halves(3.0, 4.0).expand(1, 1, 3, 1, 16).contiguous().requires_grad_()
    weight = halves(1.0, 10.0).requires_grad_()
    quarter = torch.zeros(1, 8, device=device), torch.ones(1, 8, device=device)
    q, _, _ = rotary_norm(qkv, weight, None, *quarter, eps=1e-9)
    want = halves(-11.3137, 0.8485)
    torch.testing.assert_close(q.flatten(), want, atol=1e-4, rtol=0)
    dqkv, dweight = torch.autograd.grad(q.flatten(), (qkv, weight), halves(0.0, 1.0))
    torch.testing.assert_close(dqkv[0, 0, 0, 0], halves(0.1810, -0.1358), atol=1e-4, rtol=0)
    torch.testing.assert_close(dweight, halves(0.8485, 0.0), atol=1e-4, rtol=0)
    assert not dqkv[:, :, 1:].any()


def test_v_is_the_projection_itself_and_gradients_meet_in_one_tensor(device: torch.device) -> None:
    inputs = make((2, 5, 3, 32), FP32, device)
    qkv = inputs.qkv_BSPHN.requires_grad_()
    projected = 1.0 * qkv
    q, k, v = rotary_norm(projected, *inputs[1:5], eps=EPS)
    assert v.untyped_storage().data_ptr() == projected.untyped_storage().data_ptr()
    assert q.untyped_storage().data_ptr() != k.untyped_storage().data_ptr()
    want = run(rotary_norm, inputs).dqkv_BSPHN
    torch.autograd.backward((q, k, v), inputs[5:])
    assert qkv.grad is not None
    assert torch.equal(qkv.grad, want)
    for used, unused in ((2, (0, 1)), (0, (1, 2))):
        outputs = rotary_norm(qkv, *inputs[1:5], eps=EPS)
        (dqkv,) = torch.autograd.grad(outputs[used], qkv, inputs[5 + used])
        assert torch.equal(dqkv[:, :, used], want[:, :, used])
        assert not dqkv[:, :, unused].any()


def layouts(grad_BHSN: Tensor) -> Sequence[Tensor]:
    """The same values by token, by head, in a larger tensor, and with heads torn apart."""
    wide = torch.stack((grad_BHSN, grad_BHSN.neg()), dim=3)
    return (
        grad_BHSN.transpose(1, 2).contiguous().transpose(1, 2),
        grad_BHSN.contiguous(),
        wide[:, :, :, 0],
        grad_BHSN.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    )


def test_gradients_of_every_layout_are_read_rightly(device: torch.device) -> None:
    inputs = make((3, 21, 2, 32), BF16, device)
    want = run(rotary_norm, inputs)
    kinds = [layouts(each) for each in inputs[5:]]
    for turn in range(4):
        dq, dk, dv = (kind[(turn + part) % 4] for part, kind in enumerate(kinds))
        got = run(rotary_norm, inputs._replace(dq_BHSN=dq, dk_BHSN=dk, dv_BHSN=dv))
        assert torch.equal(got.dqkv_BSPHN, want.dqkv_BSPHN)


def test_same_bits_every_time_and_without_gradients(device: torch.device) -> None:
    inputs = make((2, 70, 3, 64), BF16, device)
    first, second = run(rotary_norm, inputs), run(rotary_norm, inputs)
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    with torch.no_grad():
        outputs = rotary_norm(*inputs[:5], eps=EPS)
    for got, want in zip(outputs, first[:3], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(0, 5, 2, 32), (2, 0, 2, 32)])
def test_no_tokens_have_no_gradients(
    shape: tuple[int, int, int, int], device: torch.device
) -> None:
    batch, seq, heads, size = shape
    got = run(rotary_norm, make(shape, BF16, device))
    assert got.q_BHSN.shape == (batch, heads, seq, size)
    assert got.dqkv_BSPHN.shape == (batch, seq, 3, heads, size)
    for dweight in (got.dq_weight_N, got.dk_weight_N):
        assert dweight is not None
        assert dweight.shape == (size,)
        assert not dweight.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv_BSPHN": torch.zeros(2, 5, 3, 4, 32).half()}, "got qkv float16"),
        ({"qkv_BSPHN": torch.zeros(2, 5, 2, 4, 32)}, r"expected .* \[any, 5, 3, 4, 32\]"),
        ({"qkv_BSPHN": torch.zeros(5, 2, 3, 4, 32).transpose(0, 1)}, "got qkv float32 .* of strid"),
        ({"q_weight_N": torch.zeros(16)}, r"got q_weight float32 \[16\]"),
        ({"k_weight_N": torch.zeros(32).bfloat16()}, "got k_weight bfloat16"),
        ({"cos_SM": torch.zeros(4, 16)}, r"got cos float32 \[4, 16\]"),
        ({"sin_SM": torch.zeros(5, 16).bfloat16()}, "got sin bfloat16"),
        ({"eps": 0.0}, "got N = 32 and eps = 0.0, expected .* more than 0"),
        (
            {
                "qkv_BSPHN": torch.zeros(2, 5, 3, 4, 96),
                "q_weight_N": None,
                "k_weight_N": None,
                "cos_SM": torch.zeros(5, 48),
                "sin_SM": torch.zeros(5, 48),
            },
            "got N = 96 .* a power of two from 16 to 256",
        ),
    ],
)
def test_rotation_refuses_what_it_would_read_wrongly(
    change: dict[str, Any], message: str, device: torch.device
) -> None:
    given = {
        "qkv_BSPHN": torch.zeros(2, 5, 3, 4, 32),
        "q_weight_N": torch.zeros(32),
        "k_weight_N": torch.zeros(32),
        "cos_SM": torch.zeros(5, 16),
        "sin_SM": torch.zeros(5, 16),
        "eps": EPS,
    } | change
    given = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in given.items()}
    with pytest.raises(ValueError, match=message):
        rotary_norm(**given)
