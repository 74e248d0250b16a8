"""The sum of squares against fp64: any sizes, always the same bits, no host waits."""

import pytest
import torch
from torch import Tensor

from nmoe.kernels.grad_norm import BLOCK, STEPS, _sum_squares, sum_squares
from nmoe.reference import grad_norm as reference
from tests.kernels.cases import no_host_waits, poisoned

SPAN = BLOCK * STEPS


def make_tensors(*shapes: tuple[int, ...], device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


@pytest.mark.parametrize(
    "shapes",
    [
        [(1,)],
        [(0,), (3, 5), (0, 7)],
        [(SPAN,), (SPAN - 1,), (SPAN + 1,)],
        [(3, 5, 7), (2 * SPAN + 13,), (), (64, 64)],
    ],
)
def test_sum_of_squares_matches_fp64(shapes: list[tuple[int, ...]], device: torch.device) -> None:
    tensors = make_tensors(*shapes, device=device)
    with poisoned(), no_host_waits(device):
        got = sum_squares(tensors)
        again = sum_squares(tensors)
    exact = sum(tensor.double().square().sum().item() for tensor in tensors)
    assert (got.dtype, got.shape) == (torch.float64, ())
    assert torch.equal(got, again)
    for each in (got, reference.sum_squares(tensors)):
        assert each.item() == pytest.approx(exact, rel=2e-6)


def test_sum_of_squares_of_one_program_is_the_worked_example(device: torch.device) -> None:
    out = torch.full((3,), torch.nan, device=device)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], device=device)
    _sum_squares[(2,)](x, out, 5, 2, 2)
    assert out[:2].tolist() == [30.0, 25.0]
    assert out[2].isnan()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_sum_of_squares_shows_what_is_not_finite(bad: float, device: torch.device) -> None:
    tensors = make_tensors((SPAN + 1,), (5,), device=device)
    tensors[0][SPAN] = bad
    assert not sum_squares(tensors).isfinite()


def test_sum_of_squares_refuses_what_it_would_read_wrongly(device: torch.device) -> None:
    wide = torch.zeros(4, 6, device=device)
    with pytest.raises(ValueError, match=r"sum_squares: got tensor float32 \[6, 4\] of strides"):
        sum_squares([wide, wide.T])
    with pytest.raises(ValueError, match="sum_squares: got tensor bfloat16"):
        sum_squares([wide.bfloat16()])
