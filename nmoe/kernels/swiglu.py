"""The gated activation, a = silu(gate) * value of h = [gate | value]: a pass each way.

With s = sigmoid(gate), forward a = gate s value; backward, from h again,

    dgate = da value s (1 + gate (1 - s)),  dvalue = da gate s.

Computed in fp32 and rounded once. F is a multiple of 8.

Legend: T tokens, in any number of dimensions, F hidden, G = 2 F columns of h.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmoe.kernels.check import ANY, check
from nmoe.kernels.experts import block

ELEMENTS, COLUMNS, WARPS = 4096, 1024, 8  # of a program; its columns at most


def swiglu(h_TG: Tensor) -> Tensor:
    """a_TF in the dtype of h, bf16 or fp32. Kept for backward: h."""
    width = h_TG.shape[-1]
    shape = (ANY,) * (h_TG.ndim - 1) + (width,)
    check("swiglu", h_TG.device, ("h", h_TG, shape, (torch.bfloat16, torch.float32)))
    if width % 16 or width == 0:
        raise ValueError(f"swiglu: got G = {width}, expected a multiple of 16.")
    return _Swiglu.apply(h_TG)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TG: Tensor) -> Tensor:
        a_TF = h_TG.new_empty(*h_TG.shape[:-1], h_TG.shape[-1] // 2)
        ctx.save_for_backward(h_TG)
        _launch(_swiglu, h_TG, a_TF)
        return a_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (h_TG,) = ctx.saved_tensors
        dh_TG = torch.empty_like(h_TG)
        _launch(_swiglu_grad, h_TG, grads[0].contiguous(), dh_TG)
        return dh_TG


def _launch(kernel: Any, h_TG: Tensor, *others: Tensor) -> None:
    hidden = h_TG.shape[-1] // 2
    num_tokens = h_TG.numel() // (2 * hidden)
    columns = block(hidden, COLUMNS)
    tokens = ELEMENTS // columns
    programs = triton.cdiv(num_tokens, tokens) * (hidden // columns)
    if programs:
        kernel[(programs,)](h_TG, *others, num_tokens, hidden, tokens, columns, num_warps=WARPS)


@triton.jit
def _tile(num_tokens, F: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """(tokens int64, columns, which tokens there are) of a program; columns are next door."""
    program = tl.program_id(0)
    token = ((program // (F // COLUMNS)) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = (program % (F // COLUMNS)) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return token.to(tl.int64), column, token < num_tokens


@triton.jit
def _halves(at, live, F: tl.constexpr):
    gate = tl.load(at, mask=live, other=0.0).to(tl.float32)
    return gate, tl.load(at + F, mask=live, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens"])
def _swiglu(
    h, a, num_tokens, F: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """gate = 1 and value = 2 give 1 * 0.7311 * 2 = 1.4621."""
    token, column, live = _tile(num_tokens, F, TOKENS, COLUMNS)
    gate, value = _halves(h + token * (2 * F) + column, live, F)
    out = gate * tl.sigmoid(gate) * value
    tl.store(a + token * F + column, out.to(a.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["num_tokens"])
def _swiglu_grad(
    h, da, dh, num_tokens, F: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """And da = 3 gives dgate = 3 * 2 * 0.7311 * 1.2689 = 5.5660, dvalue = 3 * 0.7311 = 2.1932."""
    token, column, live = _tile(num_tokens, F, TOKENS, COLUMNS)
    at = token * (2 * F) + column
    gate, value = _halves(h + at, live, F)
    d = tl.load(da + token * F + column, mask=live, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate = d * value * s * (1 + gate * (1 - s))
    tl.store(dh + at, dgate.to(dh.dtype.element_ty), mask=live)
    tl.store(dh + at + F, (d * gate * s).to(dh.dtype.element_ty), mask=live)
