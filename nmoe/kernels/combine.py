"""Sums over the rows of a token, in the order of its choices, in fp32.

Legend: T tokens, K top-k, D model, R rows, B blocks of columns that hold parts of d(gate).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.kernels.check import ANY, check, check_widths
from nmoe.kernels.experts import block

TOKENS = 8  # a program


def combine(y_RD: Tensor, row_TK: Tensor) -> Tensor:
    """y_TD: sum over choices of y[row]. Row -1 adds nothing."""
    num_tokens, top_k = row_TK.shape
    dim = y_RD.shape[1]
    check(
        "combine",
        row_TK.device,
        ("y", y_RD, (ANY, dim), torch.bfloat16),
        ("row", row_TK, (ANY, top_k), torch.int32),
    )
    check_widths("combine", D=dim)
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
    check(
        "gate_grads",
        row_TK.device,
        ("dgate", dgate_BR, (parts, num_rows), torch.float32),
        ("row", row_TK, (ANY, ANY), torch.int32),
    )
    dgates_TK = torch.empty(row_TK.shape, dtype=torch.float32, device=row_TK.device)
    if row_TK.numel():
        _gate_grads[(triton.cdiv(row_TK.numel(), 1024),)](
            dgate_BR, row_TK, dgates_TK, row_TK.numel(), num_rows, parts, 1024, num_warps=4
        )
    return dgates_TK


@triton.jit
def sum_rows(y, row_TK, token, column, num_tokens, D: tl.constexpr, K: tl.constexpr):
    """(fp32 sums [tokens, columns] over the rows of each token's choices, whether it has any)."""
    total = tl.zeros((token.shape[0], column.shape[0]), tl.float32)
    has_row = token < 0
    for k in tl.static_range(K):
        row = tl.load(row_TK + token * K + k, mask=token < num_tokens, other=-1)
        at = row.to(tl.int64)[:, None] * D + column[None, :]
        total += tl.load(y + at, mask=(row >= 0)[:, None], other=0.0).to(tl.float32)
        has_row = has_row | (row >= 0)
    return total, has_row


@triton.jit
def sum_parts(dgate_BR, row, num_rows, PARTS: tl.constexpr):
    """d(gate) of each row (int64), its parts added up; 0 for a row of -1."""
    total = tl.zeros(row.shape, tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(dgate_BR + part * num_rows + row, mask=row >= 0, other=0.0)
    return total


@triton.jit(do_not_specialize=["num_tokens"])
def _combine(
    y, row_TK, out, num_tokens,
    D: tl.constexpr, K: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total, _ = sum_rows(y, row_TK, token, column, num_tokens, D, K)
    at = token.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(token < num_tokens)[:, None])


@triton.jit(do_not_specialize=["num_choices", "num_rows"])
def _gate_grads(
    dgate_BR, row_TK, out, num_choices, num_rows, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    choice = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_TK + choice, mask=choice < num_choices, other=-1).to(tl.int64)
    total = sum_parts(dgate_BR, row, num_rows, PARTS)
    tl.store(out + choice, total, mask=choice < num_choices)
