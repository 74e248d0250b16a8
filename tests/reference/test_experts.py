"""The experts' reference against each formula written out token by token in fp64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nmoe.config import Activation
from nmoe.reference.experts import experts

ACTIVATIONS: tuple[Activation, ...] = ("swiglu", "relu_squared", "squared_reglu")
NUM_SLOTS, DIM, HIDDEN = 6, 16, 24
INDEX = torch.tensor([4, 0, 1, 1, 5, 0, 4, 4])  # slots 2 and 3 have no row, slot 4 has three
ENDS = torch.tensor([0, 3, 3, 8])  # experts 0 and 2 have no row


def inputs(activation: Activation, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(NUM_SLOTS, DIM), (4, DIM, HIDDEN), (4, HIDDEN, DIM), (4, DIM, HIDDEN)]
    if activation == "relu_squared":
        shapes.pop()
    return [
        (torch.randn(*shape, generator=generator) / 2).to(dtype).requires_grad_()
        for shape in shapes
    ]


def row_by_row(
    x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor | None = None, *, activation: Activation
) -> Tensor:
    outputs = []
    for row, slot in enumerate(INDEX.tolist()):
        expert = next(e for e, end in enumerate(ENDS.tolist()) if row < end)
        h1 = x[slot] @ w1[expert]
        h3 = x[slot] @ w3[expert] if w3 is not None else None
        match activation, h3:
            case "swiglu", Tensor():
                inner = functional.silu(h1) * h3
            case "squared_reglu", Tensor():
                inner = h1.clamp(min=0) ** 2 * h3
            case _:
                inner = h1.clamp(min=0) ** 2
        outputs.append(inner @ w2[expert])
    return torch.stack(outputs)


def run(leaves: list[Tensor], activation: Activation) -> Tensor:
    x, w1, w2, *w3 = leaves
    return experts(x, INDEX, ENDS, w1, w2, w3[0] if w3 else None, activation=activation)


@pytest.mark.parametrize(
    ("dtype", "limit"),
    # bf16: H, A and Y (back: dA, dH, dX rows) are rounded to 2^-9 in turn, relu is squared
    [(torch.float32, 2e-6), (torch.bfloat16, 8 * 2**-9)],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_experts_match_formula_when_rows_repeat_and_experts_are_empty(
    activation: Activation, dtype: torch.dtype, limit: float
) -> None:
    leaves = inputs(activation, dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y, want = run(leaves, activation), row_by_row(*exact, activation=activation)
    dy = torch.randn(*y.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    grads = torch.autograd.grad(y, leaves, dy)
    want_grads = torch.autograd.grad(want, exact, dy.double())
    for got, expected in zip((y, *grads), (want, *want_grads), strict=True):
        assert got.dtype == dtype
        error = (got.double() - expected).norm() / expected.norm()
        assert error.item() < limit
    assert not grads[0][2:4].any()
    assert not grads[1][0].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_experts_give_no_rows_and_zero_gradients_when_nothing_arrived(
    activation: Activation,
) -> None:
    leaves = inputs(activation, torch.float32)
    x, w1, w2, *w3 = leaves
    none, ends = torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    y = experts(x, none, ends, w1, w2, w3[0] if w3 else None, activation=activation)
    assert y.shape == (0, DIM)
    for gradient in torch.autograd.grad(y.sum(), leaves):
        assert not gradient.any()


def test_slot_gradient_is_rounded_once_when_bf16_rows_share_it() -> None:
    x = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    w1, w2 = torch.ones(3, 1, 1).bfloat16(), torch.tensor([1.0, 2**-8, 2**-8]).bfloat16()
    index, ends = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 3])
    y = experts(x, index, ends, w1, w2.view(3, 1, 1), None, activation="relu_squared")
    y.sum().backward()
    # bf16 has steps of 2^-6 above 2: adding the two rows of 2^-7 one by one would lose both
    assert x.grad is not None
    assert x.grad.item() == 2 + 2**-6


@pytest.mark.parametrize(
    ("activation", "has_w3", "message"),
    [
        ("swiglu", False, "got no w3 for swiglu"),
        ("relu_squared", True, "got a w3 for relu_squared"),
        ("gelu", True, "got activation 'gelu'"),
    ],
)
def test_experts_refuse_when_activation_and_weights_do_not_match(
    activation: Activation, has_w3: bool, message: str
) -> None:
    x, w1, w2, w3 = inputs("swiglu", torch.float32)
    with pytest.raises(ValueError, match=message):
        experts(x, INDEX, ENDS, w1, w2, w3 if has_w3 else None, activation=activation)
