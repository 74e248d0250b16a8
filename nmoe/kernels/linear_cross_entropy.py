"""Cross-entropy of a linear head: products by cuBLAS, one pass in between, in place.

A chunk of tokens at a time shares one buffer: its logits, then in their place their gradients, and
of those the gradients of x and W at once. The sum of all nats is what can be differentiated: the
gradients of one nat are computed forward and scaled backward, so no logits are computed twice, and
whatever gradient arrives, it is applied exactly. Both stay fp32 until then and are rounded once.

Legend: T tokens, c tokens of a chunk, D model, V vocabulary with padding.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmoe.kernels.check import ANY, check
from nmoe.kernels.matmul import matmul

BF16, FP32 = torch.bfloat16, torch.float32
LANES, WIDE = 256, 8  # threads of a row; columns that one reads at once, 16 bytes
STAGES = 3  # reads in flight
LOWEST = tl.constexpr(-3e38)  # below every logit, and finite: its differences are never NaN


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int, num_real: int
) -> tuple[Tensor, Tensor]:
    """(sum of nats, nats_T), both fp32; the sum has gradients, nats_T has none.

    x: bf16; weight: bf16, or fp32 that is rounded to bf16; its gradient has its dtype. targets:
    int64; the nats of one outside 0 .. num_real - 1 are infinite. Memory: min(T, chunk) x V bf16,
    and with gradients x and weight in fp32.
    """
    num_tokens, dim = x_TD.shape
    vocabulary = weight_VD.shape[0]
    check(
        "linear_cross_entropy",
        x_TD.device,
        ("x", x_TD, (ANY, dim), BF16),
        ("weight", weight_VD, (ANY, dim), (BF16, FP32)),
        ("targets", targets_T, (num_tokens,), torch.int64),
    )
    if vocabulary % WIDE or not 0 < num_real <= vocabulary or chunk < 1:
        raise ValueError(
            f"linear_cross_entropy: got V = {vocabulary}, num_real = {num_real}, chunk = {chunk}, "
            f"expected V a multiple of {WIDE}, 1 <= num_real <= V and chunk >= 1."
        )
    if torch.is_grad_enabled() and (x_TD.requires_grad or weight_VD.requires_grad):
        return _Loss.apply(x_TD, weight_VD, targets_T, chunk, num_real)
    nats_T, _ = _run(x_TD, weight_VD, targets_T, chunk, num_real, with_grads=False)
    return nats_T.sum(), nats_T


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, chunk: int, num_real: int
    ) -> tuple[Tensor, Tensor]:
        nats_T, grads = _run(x_TD, weight_VD, targets_T, chunk, num_real, with_grads=True)
        ctx.save_for_backward(*grads)
        ctx.dtypes = x_TD.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(nats_T)
        return nats_T.sum(), nats_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dx_TD, dw_VD = (
            (grad * dsum).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return dx_TD, dw_VD, None, None, None


def _run(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, chunk: int, num_real: int, *,
    with_grads: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """(nats_T, (dx_TD, dw_VD) of their sum in fp32, or nothing)."""
    (num_tokens, _), vocabulary = x_TD.shape, weight_VD.shape[0]
    weight_VD = weight_VD.to(BF16)
    nats_T = torch.empty(num_tokens, dtype=FP32, device=x_TD.device)
    buffer_cV = x_TD.new_empty(min(num_tokens, chunk), vocabulary)
    grads = ()
    if with_grads:
        # no chunk writes dw where there are no tokens
        new = torch.empty_like if num_tokens else torch.zeros_like
        grads = new(x_TD, dtype=FP32), new(weight_VD, dtype=FP32)
    for start in range(0, num_tokens, chunk):
        x_cD = x_TD[start : start + chunk]
        logits_cV = buffer_cV[: len(x_cD)]
        torch.mm(x_cD, weight_VD.T, out=logits_cV)
        _loss_and_grad[(len(x_cD),)](
            logits_cV, targets_T[start:], nats_T[start:],
            vocabulary, num_real, LANES, WIDE, STAGES, with_grads, num_warps=LANES // 32,
        )  # fmt: skip
        if with_grads:
            dx_TD, dw_VD = grads
            matmul(logits_cV, weight_VD, out=dx_TD[start : start + chunk])
            matmul(logits_cV.T, x_cD, out=dw_VD, add=start > 0)
    return nats_T, grads


@triton.jit
def _logits(row, column, V: tl.constexpr, NUM_REAL: tl.constexpr):
    """fp32; -inf has no probability. Reads stay 16 bytes wide: V is a multiple, NUM_REAL is not."""
    logit = tl.load(row + column, mask=column < V, other=0.0).to(tl.float32)
    return tl.where(column < NUM_REAL, logit, float("-inf"))


@triton.jit
def _logit_at(row, column):
    """One logit of bf16, read with its neighbour; -inf at a column below 0."""
    pair = tl.load((row + column // 2 * 2).to(tl.pointer_type(tl.int32)), mask=column >= 0, other=0)
    bits = (pair >> (column % 2 * 16)) << 16
    return tl.where(column >= 0, bits.to(tl.float32, bitcast=True), float("-inf"))


@triton.jit
def _loss_and_grad(
    logits_cV, targets_c, nats_c,
    V: tl.constexpr, NUM_REAL: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
    STAGES: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    """Nats of one token, and softmax - onehot in place of its logits.

    Every lane has a maximum and a sum of its own; they meet once, after the last column. The way
    back begins where the way there ended, with what the L2 cache still holds.
    """
    token = tl.program_id(0)
    row = logits_cV + token.to(tl.int64) * V
    target = tl.load(targets_c + token)
    target = tl.where((target >= 0) & (target < NUM_REAL), target, -1).to(tl.int32)
    hit = _logit_at(row, target)
    offset = tl.arange(0, LANES)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    STEPS: tl.constexpr = (V + LANES * WIDE - 1) // (LANES * WIDE)
    peak = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        logit = _logits(row, step * LANES * WIDE + offset, V, NUM_REAL)
        higher = tl.maximum(peak, tl.max(logit, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
        peak = higher
    highest = tl.max(peak, 0)
    log_total = tl.log(tl.sum(total * tl.exp(peak - highest), 0))
    tl.store(nats_c + token, highest - hit + log_total)
    if WITH_GRAD:
        tl.debug_barrier()  # every lane has read the target's logit
        for step in tl.range(0, STEPS, num_stages=STAGES):
            column = (STEPS - 1 - step) * LANES * WIDE + offset
            grad = tl.exp(_logits(row, column, V, NUM_REAL) - highest - log_total)
            grad = tl.where(column == target, grad - 1.0, grad)
            tl.store(row + column, grad.to(logits_cV.dtype.element_ty), mask=column < V)
