"""The experts' reference, forward and backward, against each formula written row by row in fp64."""

from collections.abc import Iterator
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nmoe.config import Activation
from nmoe.expert_layout import Rows, pack, unpack
from nmoe.reference import experts
from nmoe.reference.combine import combine, gate_grads
from nmoe.reference.sort import sort_rows

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
DIM, HIDDEN = 16, 24
FIRST, LOCAL = 1, 4  # of six experts; experts 1 and 3 have no row, 0 and 5 live elsewhere
IDS = torch.tensor([[2, 4], [0, 5], [4, 2], [5, 4], [4, 0], [2, 5], [4, 2]])  # slot 1 has no row
# bf16: h, a and y (back: dh, gate * a and dx) are rounded to 2^-9 in turn, relu is squared
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 8 * 2**-9}


def inputs(activation: Activation, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / 2).to(dtype)

    tensors = {
        "x": normal(len(IDS), DIM),
        "gates": torch.rand(IDS.shape, generator=generator) + 0.1,
        "w1": normal(LOCAL, DIM, HIDDEN),
        "w2": normal(LOCAL, HIDDEN, DIM),
        "w3": normal(LOCAL, DIM, HIDDEN),
        "dy": normal(len(IDS), DIM),
    }
    if activation == "relu_squared":
        del tensors["w3"]
    return tensors


def one_row(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor | None, name: Activation) -> Tensor:
    h1 = x @ w1
    match name, w3:
        case "swiglu", Tensor():
            inner = functional.silu(h1) * (x @ w3)
        case "squared_reglu", Tensor():
            inner = h1.clamp(min=0) ** 2 * (x @ w3)
        case "relu_squared", None:
            inner = h1.clamp(min=0) ** 2
        case _:
            raise AssertionError(name)
    return inner @ w2


def row_by_row(tensors: dict[str, Tensor], activation: Activation) -> dict[str, Tensor]:
    """y of the local experts and all gradients, by autograd in fp64."""
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    dy = exact.pop("dy")
    leaves = [leaf.requires_grad_() for leaf in exact.values()]
    x, gates, w1, w2 = leaves[:4]
    sums = []
    for slot, chosen in enumerate(IDS.tolist()):
        total = torch.zeros(DIM, dtype=torch.float64)
        for choice, expert in enumerate(chosen):
            e = expert - FIRST
            if 0 <= e < LOCAL:
                w3 = leaves[4][e] if len(leaves) == 5 else None
                total = total + gates[slot, choice] * one_row(x[slot], w1[e], w2[e], w3, activation)
        sums.append(total)
    y = torch.stack(sums)
    grads = torch.autograd.grad(y, leaves, dy)
    return {"y": y.detach(), **{f"d{n}": g for n, g in zip(exact, grads, strict=True)}}


def by_reference(
    tensors: dict[str, Tensor], activation: Activation, rows: Rows
) -> dict[str, Tensor]:
    """The same by the operations of the reference."""
    x, dy, w2 = (tensors[name] for name in ("x", "dy", "w2"))
    w13 = pack(tensors["w1"], tensors.get("w3"))
    h_RG, a_RF = experts.up(x, w13, rows, activation=activation)
    y_RD = experts.down(a_RF, w2, rows)
    dh_RG, dgate_BR = experts.down_grad(dy, w2, h_RG, rows, activation=activation)
    dw2, dw13 = torch.full_like(w2, torch.nan), torch.full_like(w13, torch.nan)
    experts.weight_grad(a_RF, dy, rows, dw2, gathered="right")
    experts.weight_grad(x, dh_RG, rows, dw13, gathered="left")
    dw1, dw3 = unpack(dw13, activation=activation)
    return {
        "y": combine(y_RD, rows.row_NK),
        "dx": combine(experts.up_grad(dh_RG, w13, rows), rows.row_NK),
        "dgates": gate_grads(dgate_BR, rows.row_NK),
        "dw1": dw1,
        "dw2": dw2,
    } | ({} if dw3 is None else {"dw3": dw3})


def sort(gates_NK: Tensor, *, tile: int = 1) -> Rows:
    return sort_rows(IDS, gates_NK, first_expert=FIRST, num_experts=LOCAL, tile=tile)


@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_experts_match_formula_when_slots_repeat_and_experts_are_empty(
    activation: Activation, dtype: torch.dtype, tile: int
) -> None:
    tensors = inputs(activation, dtype)
    got = by_reference(tensors, activation, sort(tensors["gates"], tile=tile))
    want = row_by_row(tensors, activation)
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].dtype == (torch.float32 if name == "dgates" else dtype), name
        error = (got[name].double() - expected).norm() / expected.norm()
        assert error.item() < LIMITS[dtype], name
    assert not got["y"][1].any()
    assert not got["dx"][1].any()
    assert not got["dw1"][[0, 2]].any()
    assert not got["dw2"][[0, 2]].any()


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("_poisoned")
def test_results_are_bit_equal_when_segments_are_padded(activation: Activation) -> None:
    tensors = inputs(activation, torch.bfloat16)
    plain, padded = (
        by_reference(tensors, activation, sort(tensors["gates"], tile=tile)) for tile in (1, 128)
    )
    assert torch.empty(1).isnan()
    for name, tensor in plain.items():
        assert torch.equal(padded[name], tensor), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_zero_when_nothing_arrived(activation: Activation) -> None:
    tensors = inputs(activation, torch.float32)
    rows = sort_rows(torch.zeros_like(IDS), tensors["gates"], first_expert=FIRST, num_experts=LOCAL)
    assert len(rows.slot_R) == 0
    for name, tensor in by_reference(tensors, activation, rows).items():
        assert not tensor.any(), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_their_gradient_match_autograd_when_any_sign(
    activation: Activation,
) -> None:
    generator = torch.Generator().manual_seed(5)
    num_columns = HIDDEN if activation == "relu_squared" else 2 * HIDDEN
    h = (4 * torch.randn(50, num_columns, generator=generator)).requires_grad_()
    a = experts.activate(h, activation=activation)
    da = torch.randn(a.shape, generator=generator)
    (want,) = torch.autograd.grad(a, h, da)
    got = experts.activate_grad(h.detach(), da, activation=activation)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gathered", ["left", "right"])
def test_weight_gradients_add_to_the_buffer_when_accumulate_says(
    gathered: Literal["left", "right"],
) -> None:
    generator = torch.Generator().manual_seed(6)
    rows = sort(torch.ones(IDS.shape))
    in_slots = torch.randint(-3, 4, (len(IDS), 4), generator=generator).float()
    in_rows = torch.randint(-3, 4, (len(rows.slot_R), 4), generator=generator).float()
    left, right = (in_slots, in_rows) if gathered == "left" else (in_rows, in_slots)
    held = torch.randint(-3, 4, (LOCAL, 4, 4), generator=generator).float()

    def run(out: Tensor, accumulate: Tensor | None) -> Tensor:
        got = experts.weight_grad(left, right, rows, out, gathered=gathered, accumulate=accumulate)
        assert got is out
        return got

    product = run(torch.full_like(held, torch.nan), None)
    for expert, (start, end) in enumerate(zip(rows.start_e, rows.end_e, strict=True)):
        want = torch.zeros(4, 4)
        for row in range(int(start), int(end)):
            slot = int(rows.slot_R[row])
            pair = (in_slots[slot], in_rows[row])
            want += torch.outer(*(pair if gathered == "left" else pair[::-1]))
        assert torch.equal(product[expert], want)
    assert torch.equal(run(held.clone(), torch.zeros(1, dtype=torch.int32)), product)
    assert torch.equal(run(held.clone(), torch.ones(1, dtype=torch.int32)), held + product)


def test_weight_gradients_are_rounded_once_when_rows_are_bf16() -> None:
    rows = sort_rows(
        torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1), first_expert=0, num_experts=1
    )
    left, right = torch.tensor([[1.0], [2**-8]]).bfloat16(), torch.ones(2, 1).bfloat16()
    total = experts.weight_grad(left, right, rows, torch.empty(1, 1, 1), gathered="left")
    assert total.item() == 1 + 2**-8
    held = torch.full((1, 1, 1), 2**-8).bfloat16()
    add = torch.ones(1, dtype=torch.int32)
    # bf16 has steps of 2^-7 above 1: rounded before it is added, the product would be 1
    experts.weight_grad(left, right, rows, held, gathered="left", accumulate=add)
    assert held.item() == 1 + 2**-7
