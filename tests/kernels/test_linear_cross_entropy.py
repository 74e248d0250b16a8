"""The loss of the head against its specification, fp64, and plain bf16 torch's error.

Legend: T tokens, D model, V vocabulary with padding.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nmoe import ops
from nmoe.kernels.linear_cross_entropy import linear_cross_entropy
from nmoe.reference import linear_cross_entropy as reference
from tests.kernels.cases import assert_no_worse, error, poisoned


class Shape(NamedTuple):
    """A head small enough to interpret."""

    tokens: int
    dim: int
    vocabulary: int
    num_real: int
    chunk: int
    size: float = 1.0  # of logits


SHAPES = (
    Shape(1, 64, 384, 257, 16),
    Shape(37, 64, 384, 257, 16),
    Shape(32, 48, 1000, 1000, 32),
    Shape(20, 64, 1000, 993, 7),
    Shape(9, 32, 4104, 4099, 4),  # one column more than a program reads at once
    Shape(6, 32, 8320, 8193, 64),
    Shape(25, 64, 384, 257, 8, 40.0),
    Shape(12, 64, 384, 1, 5),
)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))


def make(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(x_TD bf16, weight_VD fp32 of bf16 values, targets_T); padding rows of W are large."""
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(shape.tokens, shape.dim, generator=generator)
    weight_VD = torch.randn(shape.vocabulary, shape.dim, generator=generator)
    weight_VD *= shape.size * shape.dim**-0.5
    weight_VD[shape.num_real :] += 3.0
    targets_T = torch.randint(0, shape.num_real, (shape.tokens,), generator=generator)
    targets_T[-1] = shape.num_real - 1
    return x_TD.bfloat16().to(device), weight_VD.bfloat16().float().to(device), targets_T.to(device)


class Outcome(NamedTuple):
    nats_T: Tensor
    total: Tensor
    dx_TD: Tensor
    dw_VD: Tensor


def ours(shape: Shape, device: torch.device, *, scale: float) -> Outcome:
    x_TD, weight_VD, targets_T = make(shape, device)
    leaves = (x_TD.requires_grad_(), weight_VD.requires_grad_())
    with poisoned():
        total, nats_T = linear_cross_entropy(
            *leaves, targets_T, chunk=shape.chunk, num_real=shape.num_real
        )
        return Outcome(nats_T, total.detach(), *torch.autograd.grad(total * scale, leaves))


def plain(shape: Shape, device: torch.device, dtype: torch.dtype, *, scale: float) -> Outcome:
    """In torch, products in `dtype`; fp64 is the oracle."""
    x_TD, weight_VD, targets_T = make(shape, device)
    leaves = (x_TD.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_())
    logits_TV = functional.linear(*leaves)[:, : shape.num_real]
    logits_TV = logits_TV if dtype == torch.float64 else logits_TV.float()
    nats_T = functional.cross_entropy(logits_TV, targets_T, reduction="none")
    grads = torch.autograd.grad(nats_T.sum() * scale, leaves)
    return Outcome(nats_T.detach(), nats_T.detach().sum(), *grads)


@pytest.mark.parametrize("scale", [1.0, -0.3])
@each_shape
def test_loss_and_gradients_are_no_worse_than_plain_bf16(
    shape: Shape, scale: float, device: torch.device
) -> None:
    got = ours(shape, device, scale=scale)
    exact = plain(shape, device, torch.float64, scale=scale)
    bf16 = plain(shape, device, torch.bfloat16, scale=scale)
    assert got.nats_T.dtype == got.total.dtype == got.dw_VD.dtype == torch.float32
    assert got.dx_TD.dtype == torch.bfloat16
    for got_each, plain_each, exact_each in zip(got, bf16, exact, strict=True):
        assert got_each.shape == exact_each.shape
        # fp32 sums in another order, where everything before them is the same
        if error(got_each, plain_each) > 1e-6:
            assert_no_worse(got_each, plain_each, exact_each)
    assert error(got.nats_T, exact.nats_T) < 1e-2
    assert not got.dw_VD[shape.num_real :].any()


@each_shape
def test_loss_agrees_with_the_specification(shape: Shape, device: torch.device) -> None:
    x_TD, weight_VD, targets_T = make(shape, device)
    sizes = {"chunk": shape.chunk, "num_real": shape.num_real}
    (total, nats_T), (want_total, want_T) = (
        ops.linear_cross_entropy(x_TD, weight_VD, targets_T, **sizes, impl=impl)
        for impl in ("triton", "reference")
    )
    # both sums of a logit are fp32, and may round to bf16 neighbours
    step = 2**-7 * shape.size * 4
    torch.testing.assert_close(nats_T, want_T, rtol=1e-5, atol=step)
    torch.testing.assert_close(total, want_total, rtol=1e-2, atol=step)
    assert not total.requires_grad
    assert not nats_T.requires_grad


def test_gradients_follow_whatever_arrives(device: torch.device) -> None:
    shape = SHAPES[1]
    once = ours(shape, device, scale=1.0)
    for scale in (0.0, 2.0**-19, -4.0):
        got = ours(shape, device, scale=scale)
        assert torch.equal(got.dx_TD, once.dx_TD * scale)
        assert torch.equal(got.dw_VD, once.dw_VD * scale)


def test_same_bits_every_time_and_without_gradients(device: torch.device) -> None:
    shape = SHAPES[3]
    first, second = ours(shape, device, scale=0.3), ours(shape, device, scale=0.3)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    sizes = {"chunk": shape.chunk, "num_real": shape.num_real}
    total, nats_T = linear_cross_entropy(*make(shape, device), **sizes)
    assert torch.equal(nats_T, first.nats_T)
    assert torch.equal(total, first.total)


def test_nats_have_no_gradients_of_their_own(device: torch.device) -> None:
    shape = SHAPES[1]
    x_TD, weight_VD, targets_T = make(shape, device)
    sizes = {"chunk": shape.chunk, "num_real": shape.num_real}
    for function in (linear_cross_entropy, reference.linear_cross_entropy):
        total, nats_T = function(x_TD, weight_VD.requires_grad_(), targets_T, **sizes)
        assert total.requires_grad
        assert not nats_T.requires_grad


def test_gradient_has_the_dtype_of_the_weight(device: torch.device) -> None:
    shape = SHAPES[1]
    x_TD, weight_VD, targets_T = make(shape, device)
    weight_VD = weight_VD.bfloat16().requires_grad_()
    total, _ = linear_cross_entropy(x_TD, weight_VD, targets_T, chunk=8, num_real=257)
    (dw_VD,) = torch.autograd.grad(total, weight_VD)
    assert dw_VD.dtype == torch.bfloat16
    want = plain(shape, device, torch.float64, scale=1.0).dw_VD
    assert error(dw_VD, want) < 1e-2


class Largest(TorchDispatchMode):
    """The most elements of any tensor that torch returned."""

    elements = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_no_more_than_a_chunk_of_logits_is_ever_whole(device: torch.device) -> None:
    shape = Shape(40, 32, 384, 257, 16)
    with Largest() as largest:
        ours(shape, device, scale=0.5)
    assert largest.elements == max(shape.chunk, shape.dim) * shape.vocabulary
    with Largest() as largest:
        plain(shape, device, torch.bfloat16, scale=0.5)
    assert largest.elements == shape.tokens * shape.vocabulary


def test_no_tokens_have_no_loss_and_no_gradients(device: torch.device) -> None:
    x_TD = torch.zeros(0, 64, dtype=torch.bfloat16, device=device).requires_grad_()
    weight_VD = torch.ones(384, 64, device=device).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64, device=device)
    with poisoned():
        total, nats_T = linear_cross_entropy(x_TD, weight_VD, none, chunk=8, num_real=257)
        dx_TD, dw_VD = torch.autograd.grad(total, (x_TD, weight_VD))
    assert total == 0
    assert nats_T.shape == (0,)
    assert dx_TD.shape == x_TD.shape
    assert not dw_VD.any()


@pytest.mark.parametrize("target", [-1, -100, 257, 383, 384, 2**32, -(2**62)])
def test_a_target_that_is_no_token_costs_infinitely_much(target: int, device: torch.device) -> None:
    x_TD, weight_VD, targets_T = make(SHAPES[1], device)
    targets_T[5] = target
    total, nats_T = linear_cross_entropy(x_TD, weight_VD, targets_T, chunk=16, num_real=257)
    assert total == torch.inf
    assert nats_T.isinf().nonzero().flatten().tolist() == [5]
    with pytest.raises(ValueError, match=r"expected 0 to 256\."):
        reference.linear_cross_entropy(
            x_TD.cpu(), weight_VD.cpu(), targets_T.cpu(), chunk=16, num_real=257
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_seen(value: float, device: torch.device) -> None:
    x_TD, weight_VD, targets_T = make(SHAPES[1], device)
    x_TD[3, 0] = value
    _, nats_T = linear_cross_entropy(x_TD, weight_VD, targets_T, chunk=16, num_real=257)
    assert (~nats_T.isfinite()).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_TD": torch.zeros(4, 64)}, "got x float32"),
        ({"weight_VD": torch.zeros(64, 384).T}, r"got weight float32 .* strides \[1, 384\]"),
        ({"weight_VD": torch.zeros(384, 32)}, r"expected contiguous bfloat16 or float32 \[any, 64"),
        ({"targets_T": torch.zeros(4).int()}, "got targets int32"),
        ({"targets_T": torch.zeros(3).long()}, r"got targets int64 \[3\]"),
        ({"weight_VD": torch.zeros(257, 64)}, "got V = 257"),
        ({"num_real": 385}, "num_real = 385"),
        ({"num_real": 0}, "num_real = 0"),
        ({"chunk": 0}, "chunk = 0"),
    ],
)
def test_loss_refuses_what_it_would_read_wrongly(
    change: dict[str, Any], message: str, device: torch.device
) -> None:
    given = {
        "x_TD": torch.zeros(4, 64).bfloat16(),
        "weight_VD": torch.zeros(384, 64),
        "targets_T": torch.zeros(4).long(),
        "chunk": 8,
        "num_real": 257,
    } | change
    given = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in given.items()}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**given)
