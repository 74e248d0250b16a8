"""QK-norm and rotary positions of the fused projection, and its whole gradient: a pass each way.

For q, and alike for k, with n = q / rms(q) * weight in its halves and the angle of its position,

    q' = [n_left cos - n_right sin | n_right cos + n_left sin];

v is left where it is. Backward turns dq' back, goes through the norm, from q again, and writes dq,
dk and dv, wherever it lies, as the one gradient of the projection. Computed in fp32 and rounded
once. d(weight) is summed over a program, then over programs, always in the same order. N is a power
of two from 16 to 256.

Legend: B batch, S sequence, P = 3 parts, H heads, N head size, M = N / 2, G programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmoe.kernels.check import ANY, check

BF16, FP32 = torch.bfloat16, torch.float32
BYTES, WARPS = 2048, 4  # of half a head in a program: 16 bytes a thread
STAGES = 3  # heads of a program under way: one computed, the others read


def rotary_norm(
    qkv_BSPHN: Tensor,
    q_weight_N: Tensor | None,
    k_weight_N: Tensor | None,
    cos_SM: Tensor,
    sin_SM: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v) BHSN, views of BSHN: see `nmoe.reference.rotary`; v is a view of qkv.

    qkv: bf16 or fp32; weights, their gradients and the table: fp32. Kept for backward: qkv,
    which v keeps anyway.
    """
    _, seq, _, heads, size = qkv_BSPHN.shape
    weights = (("q_weight", q_weight_N), ("k_weight", k_weight_N))
    check(
        "rotary_norm",
        qkv_BSPHN.device,
        ("qkv", qkv_BSPHN, (ANY, seq, 3, heads, size), (BF16, FP32)),
        *((name, weight, (size,), FP32) for name, weight in weights if weight is not None),
        ("cos", cos_SM, (seq, size // 2), FP32),
        ("sin", sin_SM, (seq, size // 2), FP32),
    )
    if size not in (16, 32, 64, 128, 256) or eps <= 0:
        raise ValueError(
            f"rotary_norm: got N = {size} and eps = {eps}, expected a power of two from 16 to 256"
            " and more than 0."
        )
    qkv = _RotaryNorm.apply(qkv_BSPHN, q_weight_N, k_weight_N, cos_SM, sin_SM, eps)
    q_BHSN, k_BHSN, v_BHSN = (each_BSHN.transpose(1, 2) for each_BSHN in qkv)
    return q_BHSN, k_BHSN, v_BHSN


class _RotaryNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_BSPHN: Tensor,
        q_weight_N: Tensor | None,
        k_weight_N: Tensor | None,
        cos_SM: Tensor,
        sin_SM: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, seq, _, heads, size = qkv_BSPHN.shape
        q_BSHN, k_BSHN = (qkv_BSPHN.new_empty(batch, seq, heads, size) for _ in range(2))
        tokens = 2 * BYTES // (size * qkv_BSPHN.element_size())
        programs = triton.cdiv(batch * seq, tokens)
        if programs:
            _rotary_norm[(programs, 2)](
                qkv_BSPHN, q_weight_N, k_weight_N, cos_SM, sin_SM, q_BSHN, k_BSHN, batch * seq, seq,
                eps, heads, size // 2, tokens, STAGES, num_warps=WARPS,
            )  # fmt: skip
        ctx.eps, ctx.has_norm = eps, q_weight_N is not None or k_weight_N is not None
        ctx.save_for_backward(qkv_BSPHN, q_weight_N, k_weight_N, cos_SM, sin_SM)
        return q_BSHN, k_BSHN, qkv_BSPHN[:, :, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_BSPHN, q_weight_N, k_weight_N, cos_SM, sin_SM = ctx.saved_tensors
        # whatever the attention returns, if heads are whole in it
        grads = tuple(grad if grad.stride(-1) == 1 else grad.contiguous() for grad in grads)
        batch, seq, _, heads, size = qkv_BSPHN.shape
        tokens = 2 * BYTES // (size * qkv_BSPHN.element_size())
        programs = triton.cdiv(batch * seq, tokens)
        dqkv_BSPHN = torch.empty_like(qkv_BSPHN)
        dweight_GPN = cos_SM.new_empty(programs if ctx.has_norm else 0, 2, size)
        if programs:
            _rotary_norm_grad[(programs, 3)](
                *grads, qkv_BSPHN, q_weight_N, k_weight_N, cos_SM, sin_SM, dqkv_BSPHN, dweight_GPN,
                *(stride for grad in grads for stride in grad.stride()[:3]), batch * seq, seq,
                ctx.eps, heads, size // 2, tokens, STAGES, num_warps=WARPS,
            )  # fmt: skip
        dq_weight_N, dk_weight_N = (
            None if weight is None else dweight_N
            for weight, dweight_N in zip(
                (q_weight_N, k_weight_N), dweight_GPN.sum(0).unbind(), strict=True
            )
        )
        return dqkv_BSPHN, dq_weight_N, dk_weight_N, None, None, None


@triton.jit
def _halves(at, live, M: tl.constexpr):
    """Both halves of heads, [tokens, M] in fp32."""
    left = tl.load(at, mask=live, other=0.0).to(tl.float32)
    return left, tl.load(at + M, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _store(at, live, left, right, M: tl.constexpr):
    tl.store(at, left.to(at.dtype.element_ty), mask=live)
    tl.store(at + M, right.to(at.dtype.element_ty), mask=live)


@triton.jit
def _angles(cos_SM, sin_SM, place, column, live, M: tl.constexpr):
    at = place * M + column
    cos = tl.load(cos_SM + at, mask=live, other=0.0)
    return cos, tl.load(sin_SM + at, mask=live, other=0.0)


@triton.jit
def _rstd(left, right, eps, M: tl.constexpr):
    return tl.rsqrt(tl.sum(left * left + right * right, 1, keep_dims=True) / (2 * M) + eps)


@triton.jit
def _turn(
    x, y, weight, cos, sin, column, live, eps,
    H: tl.constexpr, M: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y of x, every head of some tokens."""
    if weight is not None:
        w_left, w_right = tl.load(weight + column), tl.load(weight + M + column)
    for head in tl.range(H, num_stages=STAGES):
        left, right = _halves(x + 2 * M * head, live, M)
        if weight is not None:
            rstd = _rstd(left, right, eps, M)
            left, right = left * rstd * w_left, right * rstd * w_right
        _store(y + 2 * M * head, live, left * cos - right * sin, right * cos + left * sin, M)


@triton.jit
def _turn_back(
    dy, dy_H, x, dx, weight, dweight, cos, sin, column, live, eps,
    H: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx of dy, and the sums of d(weight) over tokens and heads."""
    if weight is not None:
        w_left, w_right = tl.load(weight + column), tl.load(weight + M + column)
        dw_left = tl.zeros((TOKENS, M), tl.float32)
        dw_right = tl.zeros((TOKENS, M), tl.float32)
    for head in tl.range(H, num_stages=STAGES):
        dy_left, dy_right = _halves(dy + head * dy_H, live, M)
        left, right = dy_left * cos + dy_right * sin, dy_right * cos - dy_left * sin
        if weight is not None:
            n_left, n_right = _halves(x + 2 * M * head, live, M)
            rstd = _rstd(n_left, n_right, eps, M)
            n_left, n_right = n_left * rstd, n_right * rstd
            dw_left += left * n_left
            dw_right += right * n_right
            left, right = left * w_left, right * w_right
            mean = tl.sum(left * n_left + right * n_right, 1, keep_dims=True) / (2 * M)
            left, right = (left - n_left * mean) * rstd, (right - n_right * mean) * rstd
        _store(dx + 2 * M * head, live, left, right, M)
    if weight is not None:
        tl.store(dweight + column, tl.sum(dw_left, 0, keep_dims=True))
        tl.store(dweight + M + column, tl.sum(dw_right, 0, keep_dims=True))


@triton.jit(do_not_specialize=["num_tokens", "length"])
def _rotary_norm(
    qkv, q_weight, k_weight, cos_SM, sin_SM, q, k, num_tokens, length, eps,
    H: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Halves of one number each, q = [3 | 4] with weight 1 | 10: a mean square of 12.5 gives
    n = [0.8485 | 11.3137], and a quarter turn, cos = 0 and sin = 1, q' = [-11.3137 | 0.8485].
    """
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = tl.arange(0, M)[None, :]
    live = token < num_tokens
    cos, sin = _angles(cos_SM, sin_SM, token % length, column, live, M)
    at = token.to(tl.int64) * (6 * H * M) + column
    to = token.to(tl.int64) * (2 * H * M) + column
    if tl.program_id(1) == 0:
        _turn(qkv + at, q + to, q_weight, cos, sin, column, live, eps, H, M, STAGES)
    else:
        at += 2 * H * M
        _turn(qkv + at, k + to, k_weight, cos, sin, column, live, eps, H, M, STAGES)


@triton.jit(do_not_specialize=["num_tokens", "length"])
def _rotary_norm_grad(
    dq, dk, dv, qkv, q_weight, k_weight, cos_SM, sin_SM, dqkv, dweight_GPN,
    dq_B, dq_S, dq_H, dk_B, dk_S, dk_H, dv_B, dv_S, dv_H, num_tokens, length, eps,
    H: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of the example of `_rotary_norm` with dq' = [0 | 1]: turned back, dn = [1 | 0], then
    dq = [0.1810 | -0.1358] and d(weight) = 0.8485 | 0.
    """
    program, part = tl.program_id(0), tl.program_id(1)
    token = (program * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = tl.arange(0, M)[None, :]
    live = token < num_tokens
    cos, sin = _angles(cos_SM, sin_SM, token % length, column, live, M)
    sequence, place = (token // length).to(tl.int64), (token % length).to(tl.int64)
    at = token.to(tl.int64) * (6 * H * M) + part * (2 * H * M) + column
    dweight_GPN += program.to(tl.int64) * (4 * M) + part * (2 * M)
    if part == 0:
        _turn_back(
            dq + sequence * dq_B + place * dq_S + column, dq_H, qkv + at, dqkv + at,
            q_weight, dweight_GPN, cos, sin, column, live, eps, H, M, TOKENS, STAGES,
        )  # fmt: skip
    elif part == 1:
        _turn_back(
            dk + sequence * dk_B + place * dk_S + column, dk_H, qkv + at, dqkv + at,
            k_weight, dweight_GPN, cos, sin, column, live, eps, H, M, TOKENS, STAGES,
        )  # fmt: skip
    else:
        first = dv + sequence * dv_B + place * dv_S + column
        for head in tl.range(H, num_stages=STAGES):
            left, right = _halves(first + head * dv_H, live, M)
            _store(dqkv + at + 2 * M * head, live, left, right, M)
