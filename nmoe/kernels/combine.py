"""Sums over the rows of a token, in the order of its choices, in fp32.

Legend: T tokens, K top-k, D model, R rows, B blocks of columns that hold parts of d(gate).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.kernels.experts import block

TOKENS = 8  # a program


def combine(y_RD: Tensor, row_TK: Tensor) -> Tensor:
    """y_TD: sum over choices of y[row]. Row -1 adds nothing."""
    num_tokens, top_k = row_TK.shape
    dim = y_RD.shape[1]
    y_TD = y_RD.new_empty(num_tokens, dim)
    columns = block(dim, 256)
    if num_tokens:
        _combine[(triton.cdiv(num_tokens, TOKENS), dim // columns)](
            y_RD, row_TK, y_TD, num_tokens, dim, top_k, TOKENS, columns, num_warps=8
        )
    return y_TD


def gate_grads(dgate_BR: Tensor, row_TK: Tensor) -> Tensor:
    """dgates_TK: the parts of each choice's row added up; 0 where the row is -1."""
    parts, num_rows = dgate_BR.shape
    dgates_TK = torch.empty(row_TK.shape, dtype=torch.float32, device=row_TK.device)
    if row_TK.numel():
        _gate_grads[(triton.cdiv(row_TK.numel(), 1024),)](
            dgate_BR, row_TK, dgates_TK, row_TK.numel(), num_rows, parts, 1024, num_warps=4
        )
    return dgates_TK


@triton.jit(do_not_specialize=["num_tokens"])
def _combine(
    y, row_TK, out, num_tokens,
    D: tl.constexpr, K: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(row_TK + token * K + k, mask=token < num_tokens, other=-1)
        at = row.to(tl.int64)[:, None] * D + column[None, :]
        total += tl.load(y + at, mask=(row >= 0)[:, None], other=0.0).to(tl.float32)
    at = token.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(token < num_tokens)[:, None])


@triton.jit(do_not_specialize=["num_choices", "num_rows"])
def _gate_grads(
    dgate_BR, row_TK, out, num_choices, num_rows, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    choice = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_TK + choice, mask=choice < num_choices, other=-1).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(dgate_BR + part * num_rows + row, mask=row >= 0, other=0.0)
    tl.store(out + choice, total, mask=choice < num_choices)
