"""The residual stream and its RMS norm: x' = x + delta, h = x' / rms(x') * weight.

One pass forward (reads x and delta, writes x' and h) and one backward (reads dh, dx' and x', writes
the gradient of x, which is that of delta, too):

    n = x' / rms, g = dh weight:  dx = dx' + (g - n mean(g n)) / rms,  dweight = sum over T of dh n

Computed in fp32; x' is rounded before its norm is taken. d(weight) is summed over the tokens of a
program, then over programs, always in the same order. Rows may have D = 8 to 8192, a multiple of 8.

Legend: T tokens, in any number of dimensions, D model, P programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmoe.kernels.check import ANY, check

BF16, FP32 = torch.bfloat16, torch.float32
MAX_DIM = 8192
ELEMENTS, WARPS = 4096, 4  # of a forward program: 32 elements a thread
GRAD_BYTES = 2048  # of x that a warp takes at a time backward
STAGES = 3  # rows of a program under way: one computed, the others read
PROGRAMS = 1584  # backward, at most: what 132 multiprocessors hold at once


def add_rms_norm(
    x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """(x', h) in the dtype of x: see `nmoe.reference.norm`.

    x, delta: bf16 or fp32, alike; weight: fp32, as is its gradient. Kept for backward: x'. Without
    delta x' is x.
    """
    dim = x_TD.shape[-1]
    shape = (ANY,) * (x_TD.ndim - 1) + (dim,)
    delta = () if delta_TD is None else (("delta", delta_TD, tuple(x_TD.shape), x_TD.dtype),)
    check(
        "add_rms_norm",
        x_TD.device,
        ("x", x_TD, shape, (BF16, FP32)),
        *delta,
        ("weight", weight_D, (dim,), FP32),
    )
    if dim % 8 or not 0 < dim <= MAX_DIM or eps <= 0:
        raise ValueError(
            f"add_rms_norm: got D = {dim} and eps = {eps}, expected a multiple of 8 up to {MAX_DIM}"
            " and more than 0."
        )
    return _AddNorm.apply(x_TD, delta_TD, weight_D, eps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        dim = len(weight_D)
        num_tokens = x_TD.numel() // dim
        width = triton.next_power_of_2(dim)
        tokens = max(1, ELEMENTS // width)
        out_TD = x_TD if delta_TD is None else torch.empty_like(x_TD)
        h_TD = torch.empty_like(x_TD)
        if num_tokens:
            _add_norm[(triton.cdiv(num_tokens, tokens),)](
                x_TD, delta_TD, weight_D, out_TD, h_TD, num_tokens, eps, dim, width, tokens,
                num_warps=WARPS,
            )  # fmt: skip
        ctx.eps, ctx.has_delta = eps, delta_TD is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(out_TD, weight_D)
        return out_TD, h_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dout_TD, dh_TD = grads
        x_TD, weight_D = ctx.saved_tensors
        if dh_TD is None:
            return dout_TD, dout_TD if ctx.has_delta else None, None, None
        dh_TD = dh_TD.contiguous()
        dout_TD = None if dout_TD is None else dout_TD.contiguous()
        dim = len(weight_D)
        num_tokens = x_TD.numel() // dim
        width = triton.next_power_of_2(dim)
        row_bytes = width * x_TD.element_size()
        tokens = max(1, GRAD_BYTES // row_bytes)
        tiles = triton.cdiv(num_tokens, tokens)
        tiles_each = triton.cdiv(tiles, PROGRAMS)
        programs = triton.cdiv(tiles, max(1, tiles_each))
        dx_TD = torch.empty_like(x_TD)
        dweight_PD = weight_D.new_empty(programs, dim)
        if num_tokens:
            _add_norm_grad[(programs,)](
                dh_TD, dout_TD, x_TD, weight_D, dx_TD, dweight_PD, num_tokens, tiles_each, ctx.eps,
                dim, width, tokens, STAGES, num_warps=max(1, row_bytes // GRAD_BYTES),
            )  # fmt: skip
        return dx_TD, dx_TD if ctx.has_delta else None, dweight_PD.sum(0), None


@triton.jit(do_not_specialize=["num_tokens"])
def _add_norm(
    x, delta, weight, out, h, num_tokens, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Rows that repeat two numbers, eps = 1e-9: x = [1, 2] and delta = [2, 2] give x' = [3, 4] and,
    with a mean square of 12.5 and weight [1, 10], h = [0.8485, 11.3137].
    """
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    live = (token < num_tokens) & (column < D)
    at = token.to(tl.int64) * D + column
    row = tl.load(x + at, mask=live, other=0.0)
    if delta is not None:
        row = row.to(tl.float32) + tl.load(delta + at, mask=live, other=0.0).to(tl.float32)
        row = row.to(x.dtype.element_ty)
        tl.store(out + at, row, mask=live)
    row = row.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(row * row, 1, keep_dims=True) / D + eps)
    row = row * rstd * tl.load(weight + column, mask=column < D, other=0.0)
    tl.store(h + at, row.to(h.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["num_tokens", "tiles_each"])
def _add_norm_grad(
    dh, dout, x, weight, dx, dweight_PD, num_tokens, tiles_each, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of the example of `_add_norm` with dh = [1, 0] and dx' = [5, 5]: n = [0.8485, 1.1314],
    g = [1, 0], mean(g n) = 0.4243, dx = [5.1810, 4.8642], and d(weight) = [0.8485, 0].
    """
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)[None, :]
    w = tl.load(weight + column, mask=column < D, other=0.0)
    dw = tl.zeros((TOKENS, WIDTH), tl.float32)
    for tile in tl.range(program * tiles_each, (program + 1) * tiles_each, num_stages=STAGES):
        token = (tile * TOKENS + tl.arange(0, TOKENS))[:, None]
        live = (token < num_tokens) & (column < D)
        at = token.to(tl.int64) * D + column
        n = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
        d = tl.load(dh + at, mask=live, other=0.0).to(tl.float32)
        g = d * w
        rstd = tl.rsqrt(tl.sum(n * n, 1, keep_dims=True) / D + eps)
        mean = tl.sum(g * n, 1, keep_dims=True) * rstd / D  # two sums that need not wait
        n *= rstd
        dw += d * n
        grad = (g - n * mean) * rstd
        if dout is not None:
            grad += tl.load(dout + at, mask=live, other=0.0).to(tl.float32)
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=live)
    to = dweight_PD + program.to(tl.int64) * D + column
    tl.store(to, tl.sum(dw, 0, keep_dims=True), mask=column < D)
