"""Every product of the experts against its specification, and its error against plain bf16 torch's.

Each kernel gets the same inputs as its reference; fp64 of the same formula is the oracle. Rows that
must not be read are NaN, and so is whatever is not written yet.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from nmoe.config import Activation
from nmoe.expert_layout import Rows, capacity, pack, unpack
from nmoe.kernels import experts as kernels
from nmoe.kernels.sort import sort_rows
from nmoe.reference import experts as reference
from tests.kernels.cases import (
    ACTIVATIONS,
    Problem,
    Skew,
    activate,
    assert_close,
    assert_no_worse,
    error,
    make_problem,
    poisoned,
)

EXACT, PLAIN = torch.float64, torch.bfloat16
FP32_ERROR = 2**-16  # of fp32 sums over some hundred rows, also where tensor cores truncate


class Shape(NamedTuple):
    """A layer small enough to interpret."""

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    top_k: int
    tile: int
    skew: Skew


SHAPES = (
    Shape(40, 64, 64, 4, 2, 64, "even"),
    Shape(70, 192, 64, 5, 3, 128, "zipf"),
    Shape(33, 64, 320, 3, 1, 64, "same"),
    Shape(45, 320, 192, 7, 2, 64, "gaps"),
    Shape(150, 128, 128, 2, 2, 128, "even"),  # segments of more than one tile
    Shape(1, 64, 192, 8, 1, 128, "even"),
)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def make(shape: Shape, activation: Activation, device: torch.device) -> tuple[Problem, Rows]:
    problem = make_problem(*shape[:5], activation=activation, skew=shape.skew, device=device)
    with poisoned():
        rows = sort_rows(
            problem.experts_TK,
            problem.gates_TK,
            first_expert=0,
            num_experts=shape.num_experts,
            tile=shape.tile,
            num_rows=capacity(problem.experts_TK.numel(), shape.num_experts, tile=shape.tile),
        )
    return problem, rows


def segments(rows: Rows) -> Iterator[tuple[int, slice, Tensor]]:
    """(expert, its rows, their slots) of every expert that has rows."""
    bounds = zip(rows.start_e.tolist(), rows.end_e.tolist(), strict=True)
    for expert, (start, end) in enumerate(bounds):
        if start < end:
            yield expert, slice(start, end), rows.slot_R[start:end].long()


def real_rows(rows: Rows) -> Tensor:
    """Indices of the rows that are no padding, ascending."""
    return torch.cat([torch.arange(part.start, part.stop) for _, part, _ in segments(rows)])


def padding_rows(rows: Rows) -> Tensor:
    """Indices of the padding rows in tiles that are in use."""
    used = torch.ones(int(rows.num_tiles) * rows.tile, dtype=torch.bool)
    used[real_rows(rows)] = False
    return used.nonzero().flatten()


def packed(rows: Rows, width: int, *, padding: float, seed: int) -> Tensor:
    """Random bf16 rows; `padding` in the padding rows, NaN in tiles that are not in use."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.full((len(rows.slot_R), width), torch.nan)
    values[padding_rows(rows)] = padding
    real = real_rows(rows)
    values[real] = torch.randn(len(real), width, generator=generator)
    return values.bfloat16().to(rows.slot_R.device)


def up_formula(problem: Problem, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(h, a) of the real rows in order."""
    parts = []
    for expert, segment, slots in segments(rows):
        x = problem.x_TD[slots].to(dtype)
        h1 = x @ problem.w1_EDF[expert].to(dtype)
        h3 = None if problem.w3_EDF is None else x @ problem.w3_EDF[expert].to(dtype)
        gate = rows.gate_R[segment, None].to(EXACT if dtype == EXACT else torch.float32)
        a = gate * activate(h1, h3, activation=problem.activation)
        parts.append((pack(h1, h3), a.to(dtype)))
    hs, activations = zip(*parts, strict=True)
    return torch.cat(hs), torch.cat(activations)


def down_grad_formula(
    problem: Problem, h_RG: Tensor, rows: Rows, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(dh, dgate) of the real rows in order, by autograd."""
    parts = []
    for expert, segment, slots in segments(rows):
        h = h_RG[segment].to(dtype).requires_grad_()
        gate = rows.gate_R[segment, None].to(torch.float64 if dtype == EXACT else torch.float32)
        gate.requires_grad_()
        a = activate(*unpack(h, activation=problem.activation), activation=problem.activation)
        y = a @ problem.w2_EFD[expert].to(dtype)
        out = (gate * y).to(dtype)
        dh, dgate = torch.autograd.grad(out, (h, gate), problem.dy_TD[slots].to(dtype))
        parts.append((dh, dgate.flatten()))
    dhs, dgates = zip(*parts, strict=True)
    return torch.cat(dhs), torch.cat(dgates)


@each_activation
@each_shape
def test_up_is_no_worse_than_plain_bf16(
    shape: Shape, activation: Activation, device: torch.device
) -> None:
    problem, rows = make(shape, activation, device)
    real = real_rows(rows)
    with poisoned():
        got = kernels.up(problem.x_TD, problem.w13_EDG, rows, activation=activation)
    want = reference.up(problem.x_TD, problem.w13_EDG, rows, activation=activation)
    plain, exact = (up_formula(problem, rows, dtype) for dtype in (PLAIN, EXACT))
    for index in range(2):
        assert_close(got[index][real], want[index][real])
        assert_no_worse(got[index][real], plain[index], exact[index])
    h_RG, a_RF = got
    assert bool(h_RG[padding_rows(rows)].isfinite().all())  # backward multiplies it by a gate of 0
    assert not a_RF[padding_rows(rows)].any()  # dW sums whole blocks of rows


@each_shape
def test_down_is_no_worse_than_plain_bf16(shape: Shape, device: torch.device) -> None:
    problem, rows = make(shape, "swiglu", device)
    real, w2 = real_rows(rows), problem.w2_EFD
    a_RF = packed(rows, shape.hidden, padding=torch.nan, seed=1)
    with poisoned():
        got = kernels.down(a_RF, w2, rows)[real]
    plain, exact = (
        torch.cat([a_RF[part].to(dtype) @ w2[expert].to(dtype) for expert, part, _ in every])
        for dtype in (PLAIN, EXACT)
        for every in [list(segments(rows))]
    )
    assert_close(got, reference.down(a_RF, w2, rows)[real])
    assert_no_worse(got, plain, exact)


@each_activation
@each_shape
def test_down_grad_is_no_worse_than_plain_bf16(
    shape: Shape, activation: Activation, device: torch.device
) -> None:
    problem, rows = make(shape, activation, device)
    real, w2 = real_rows(rows), problem.w2_EFD
    h_RG = packed(rows, problem.w13_EDG.shape[2], padding=1.5, seed=2)
    with poisoned():
        dh_RG, dgate_BR = kernels.down_grad(problem.dy_TD, w2, h_RG, rows, activation=activation)
    want_RG, _ = reference.down_grad(problem.dy_TD, w2, h_RG, rows, activation=activation)
    plain, exact = (down_grad_formula(problem, h_RG, rows, dtype) for dtype in (PLAIN, EXACT))
    assert_close(dh_RG[real], want_RG[real])
    assert_no_worse(dh_RG[real], plain[0], exact[0])
    assert not dh_RG[padding_rows(rows)].any()  # dW sums whole blocks of rows
    dgate = dgate_BR.sum(dim=0)[real]
    assert_no_worse(dgate, plain[1], exact[1])
    assert error(dgate, exact[1]) < FP32_ERROR


@each_activation
@each_shape
def test_up_grad_is_no_worse_than_plain_bf16(
    shape: Shape, activation: Activation, device: torch.device
) -> None:
    problem, rows = make(shape, activation, device)
    real, w13 = real_rows(rows), problem.w13_EDG
    dh_RG = packed(rows, w13.shape[2], padding=torch.nan, seed=3)
    with poisoned():
        got = kernels.up_grad(dh_RG, w13, rows)[real]
    plain, exact = (
        torch.cat([dh_RG[part].to(dtype) @ w13[expert].to(dtype).mT for expert, part, _ in every])
        for dtype in (PLAIN, EXACT)
        for every in [list(segments(rows))]
    )
    assert_close(got, reference.up_grad(dh_RG, w13, rows)[real])
    assert_no_worse(got, plain, exact)


@pytest.mark.parametrize("accumulate", [None, 0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gathered", ["left", "right"])
@each_shape
def test_weight_grad_is_no_worse_than_plain_bf16(
    shape: Shape,
    gathered: Literal["left", "right"],
    dtype: torch.dtype,
    accumulate: int | None,
    device: torch.device,
) -> None:
    problem, rows = make(shape, "relu_squared", device)
    rows_side = packed(rows, shape.hidden, padding=0.0, seed=4)
    left, right = (problem.x_TD, rows_side) if gathered == "left" else (rows_side, problem.dy_TD)
    before = torch.full((shape.num_experts, left.shape[1], right.shape[1]), torch.nan)
    if accumulate:
        before = torch.randn(before.shape, generator=torch.Generator().manual_seed(5))
    before = before.to(dtype).to(device)
    flag = None if accumulate is None else torch.tensor([accumulate], device=device).int()
    with poisoned():
        got = kernels.weight_grad(
            left, right, rows, before.clone(), gathered=gathered, accumulate=flag
        )
    want = reference.weight_grad(
        left, right, rows, before.clone(), gathered=gathered, accumulate=flag
    )
    start = before if accumulate else torch.zeros_like(before)
    exact, plain = start.double(), start.clone()
    for expert, segment, slots in segments(rows):
        a = left[slots if gathered == "left" else segment]
        b = right[slots if gathered == "right" else segment]
        exact[expert] += a.double().mT @ b.double()
        plain[expert] += a.mT @ b
    assert got.dtype == dtype
    assert_close(got, want)
    assert_no_worse(got, plain, exact)
    if dtype == torch.float32:
        assert error(got, exact) < FP32_ERROR
    empty = rows.start_e == rows.end_e
    assert torch.equal(got[empty], start[empty])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(40, 64)}, "up: got x float32 .* expected contiguous bfloat16"),
        ({"x": torch.zeros(64, 40).bfloat16().T}, r"up: .* strides \[1, 40\]"),
        ({"x": torch.zeros(40, 128).bfloat16()}, r"up: got x bfloat16 \[40, 128\] .*\[any, 64\]"),
        ({"w13": torch.zeros(3, 64, 128).bfloat16()}, r"up: got w13 .* \[4, 64, 128\]"),
        (
            {"x": torch.zeros(40, 96).bfloat16(), "w13": torch.zeros(4, 96, 128).bfloat16()},
            "D = 96",
        ),
        ({"w13": torch.zeros(4, 64, 96).bfloat16()}, "F = 48, expected a multiple of 64"),
        ({"a": torch.zeros(5, 64).bfloat16()}, r"down: got a bfloat16 \[5, 64\]"),
        ({"w2": torch.zeros(4, 64, 64)}, "down: got w2 float32"),
        ({"h": torch.zeros(5, 128).bfloat16()}, r"down_grad: got h bfloat16 \[5, 128\]"),
        ({"dy": torch.zeros(40, 64).half()}, "down_grad: got dy float16"),
        ({"dh": torch.zeros(5, 128).bfloat16()}, r"up_grad: got dh bfloat16 \[5, 128\]"),
        ({"out": torch.zeros(4, 64, 64).half()}, "weight_grad: got out float16"),
        ({"out": torch.zeros(4, 64, 128).mT}, "weight_grad: got .* strides"),
        ({"accumulate": torch.ones(1)}, "weight_grad: got accumulate float32"),
        ({"x": torch.zeros(40, 64, device="meta").bfloat16()}, "up: got x .* on meta, expected"),
    ],
)
def test_experts_refuse_what_they_would_read_wrongly(
    change: dict[str, Tensor], message: str, device: torch.device
) -> None:
    problem, rows = make(SHAPES[0], "swiglu", device)
    given = {
        "x": problem.x_TD,
        "w13": problem.w13_EDG,
        "w2": problem.w2_EFD,
        "dy": problem.dy_TD,
        "a": packed(rows, 64, padding=0.0, seed=0),
        "h": packed(rows, 128, padding=0.0, seed=0),
        "dh": packed(rows, 128, padding=0.0, seed=0),
        "out": torch.zeros(4, 64, 64, device=device),
        "accumulate": None,
    } | {name: each if each.is_meta else each.to(device) for name, each in change.items()}

    def run() -> None:
        match message.partition(":")[0]:
            case "down":
                kernels.down(given["a"], given["w2"], rows)
            case "down_grad":
                kernels.down_grad(given["dy"], given["w2"], given["h"], rows, activation="swiglu")
            case "up_grad":
                kernels.up_grad(given["dh"], given["w13"], rows)
            case "weight_grad":
                kernels.weight_grad(
                    given["a"], given["dy"], rows, given["out"], gathered="right",
                    accumulate=given["accumulate"],
                )  # fmt: skip
            case _:
                kernels.up(given["x"], given["w13"], rows, activation="swiglu")

    with pytest.raises(ValueError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)
