"""Muon on tensor cores: momentum in fp32, Newton-Schulz in bf16, the master updated in fp32.

The formula is that of `nmoe.reference.muon`. Matrices of one shape, whatever parameter they come
from, go through together, at most CHUNK elements at a time: one kernel writes their momentum,
rounded to bf16 and with packed columns taken apart, into a common stack; three batched products an
iteration make it orthogonal; one kernel updates master and copy, columns packed again.

Tall matrices stay as they lie: x (x^T x) is (x x^T) x transposed. Of P(x x^T) x the polynomial has
a on its diagonal, so that no product has to add x. bf16 moves singular values by some 2^-8; the
iteration itself leaves them anywhere in 0.7..1.2.

For matrices [r, c], r <= c: ITERATIONS (4 r^2 c + 2 r^3) FLOPs each; a stack and what goes with it
take 4 + 4 r / c bytes an element. Momentum and update move 26 bytes an element.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.expert_layout import group
from nmoe.kernels.check import check

BF16, FP32 = torch.bfloat16, torch.float32
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
CHUNK = 2**26  # elements that go through together: enough tiles for every multiprocessor
TILE, WIDEST, WARPS = 2048, 256, 4  # elements of a program, of one of its rows


class Piece(NamedTuple):
    """Some matrices of a parameter: `count` rows of its first dimension from `first`."""

    index: int
    first: int
    count: int


def muon(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    now: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    is_in_first: Sequence[bool],
    packed: Sequence[bool],
) -> None:
    """Update parameters and momenta in place, and round the parameters into their copies.

    fp32 [rows, cols] or [stack, rows, cols], but for the bf16 copies; now: fp64 [3]. Gradients are
    left as they are.
    """
    check("muon", now.device, ("now", now, (3,), torch.float64))
    stacks: list[tuple[Tensor, ...]] = []
    for p, g, m, copy in zip(parameters, gradients, momenta, copies, strict=True):
        named = {"parameter": p, "gradient": g, "momentum": m}
        check("muon", now.device, *((n, each, tuple(p.shape), FP32) for n, each in named.items()))
        if copy is not None:
            check("muon", now.device, ("copy", copy, tuple(p.shape), BF16))
        stacks.append(tuple(each.view(-1, *p.shape[-2:]) for each in named.values()))
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, (p, *_) in enumerate(stacks):
        rows, cols = p.shape[1:]
        shapes.setdefault((rows, cols // 2 if packed[index] else cols), []).append(index)
    for (rows, cols), members in shapes.items():
        sizes = [(index, len(stacks[index][0]), 1 + packed[index]) for index in members]
        for pieces in _chunks(sizes, limit=max(1, CHUNK // (rows * cols))):
            counts = [piece.count * (1 + packed[piece.index]) for piece in pieces]
            x = torch.empty(sum(counts), rows, cols, dtype=BF16, device=now.device)
            for piece, out in zip(pieces, x.split(counts), strict=True):
                _, g, m = (_part(each, piece) for each in stacks[piece.index])
                _launch(_momentum, g, m, out, now, momentum, packed=packed[piece.index])
            x = orthogonalize(x)
            for piece, update in zip(pieces, x.split(counts), strict=True):
                copy = copies[piece.index]
                p = _part(stacks[piece.index][0], piece)
                copy = None if copy is None else _part(copy.view(-1, *p.shape[1:]), piece)
                ratio = cols / rows if is_in_first[piece.index] else rows / cols
                rates = (lr, weight_decay, max(1.0, ratio) ** 0.5)
                _launch(_update, p, copy, update, now, *rates, packed=packed[piece.index])


def orthogonalize(x: Tensor) -> Tensor:
    """Push the singular values of bf16 matrices [n, rows, cols] to 0.7..1.2; x is overwritten."""
    a, b, c = QUINTIC
    x /= torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=FP32) + 1e-7
    count, rows, cols = x.shape
    gram = x.new_empty(count, min(rows, cols), min(rows, cols))
    polynomial, other = torch.empty_like(gram), torch.empty_like(x)
    for _ in range(ITERATIONS):
        if rows > cols:
            torch.bmm(x.mT, x, out=gram)
        else:
            torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        if rows > cols:
            torch.bmm(x, polynomial, out=other)
        else:
            torch.bmm(polynomial, x, out=other)
        x, other = other, x
    return x


def _chunks(sizes: Sequence[tuple[int, int, int]], *, limit: int) -> Iterator[list[Piece]]:
    """Pieces of at most `limit` matrices together; sizes: (index, length, matrices of a row).

    A row is never divided. Lengths 3 and 4, limit 5: [3 of the first, 2 of the second], [2].
    """
    pieces: list[Piece] = []
    room = limit
    for index, length, each in sizes:
        first = 0
        while first < length:
            count = min(length - first, room // each)
            if count < 1 and pieces:
                yield pieces
                pieces, room = [], limit
                continue
            count = max(1, count)
            pieces.append(Piece(index, first, count))
            first, room = first + count, room - count * each
    if pieces:
        yield pieces


def _part(stack: Tensor, piece: Piece) -> Tensor:
    return stack[piece.first : piece.first + piece.count]


def _launch(
    kernel: triton.JITFunction, one: Tensor, two: Tensor | None, stack: Tensor, now: Tensor,
    *numbers: float, packed: bool,
) -> None:  # fmt: skip
    """One of the kernels below over all rows of a stack of matrices."""
    count, rows, cols = one.shape
    columns = min(WIDEST, triton.next_power_of_2(cols))
    each = TILE // columns
    turn = group(cols // 2) if packed else 0
    grid = (triton.cdiv(count * rows, each), triton.cdiv(cols, columns))
    kernel[grid](
        one, two, stack, now, count * rows, *numbers, rows, cols, turn, each, columns,
        num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _places(
    num_rows, M: tl.constexpr, N: tl.constexpr, TURN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """(offsets in the parameter, offsets in the stack, which are real) of this program's elements.

    Packed [1, 2, 4] with turns of 1: columns 0 and 2 are [2, 2] of the first matrix, 1 and 3 of the
    second, so offsets 0 1 2 3, 4 5 6 7 become 0 4 1 5, 2 6 3 7.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    live = (row < num_rows) & (column < N)
    at = row.to(tl.int64) * N + column
    to = at
    if TURN > 0:
        which = column // TURN % 2
        place = column // (2 * TURN) * TURN + column % TURN
        to = ((row // M * 2 + which) * M + row % M).to(tl.int64) * (N // 2) + place
    return at, to, live


@triton.jit(do_not_specialize=["num_rows"])
def _momentum(
    g, m, out, now, num_rows, momentum,
    M: tl.constexpr, N: tl.constexpr, TURN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """g = 1, m = 0, momentum 0.75: m 0.25, out 1 + 0.75 (0.25 - 1) = 0.4375."""
    at, to, live = _places(num_rows, M, N, TURN, ROWS, COLUMNS)
    gradient = tl.load(g + at, mask=live, other=0.0) * tl.load(now + 2).to(tl.float32)
    buffer = tl.load(m + at, mask=live, other=0.0)
    buffer += (gradient - buffer) * (1 - momentum)
    tl.store(m + at, buffer, mask=live)
    update = gradient + (buffer - gradient) * momentum
    tl.store(out + to, update.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["num_rows"])
def _update(
    p, copy, update, now, num_rows, lr, weight_decay, shape_scale,
    M: tl.constexpr, N: tl.constexpr, TURN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """p = 2, update 1, lr 0.1 at full scale, decay 0.5, shape 3: 2 (1 - 0.05) - 0.3 = 1.6."""
    at, to, live = _places(num_rows, M, N, TURN, ROWS, COLUMNS)
    rate = tl.load(now) * lr
    decay = (1.0 - rate * weight_decay).to(tl.float32)
    step = (rate * shape_scale).to(tl.float32)
    value = tl.load(p + at, mask=live, other=0.0) * decay
    value -= step * tl.load(update + to, mask=live, other=0.0).to(tl.float32)
    tl.store(p + at, value, mask=live)
    if copy is not None:
        tl.store(copy + at, value.to(copy.dtype.element_ty), mask=live)
