"""AdamW in one pass: p, g, m and v are read once, p, m, v and the bf16 copy of p written once.

The formula is that of `nmoe.reference.adamw`; all arithmetic is fp32. Parameters are fp32 masters:
an update of 2^-20 of a weight stays in the master, which bf16 (2^-9) would round away, and the
copy that products read is the master rounded, never updated by itself.

What changes from step to step is on the device: `now` = (scale of lr, number of the update, factor
on gradients). One program derives the rates from it in fp64, so the host waits for nothing and a
CUDA graph replays the update.

One launch a tensor: big ones are what costs, 30 bytes an element; small ones are for the caller to
lay end to end.
"""

from collections.abc import Sequence
from math import inf, log

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.kernels.check import check

BF16, FP32 = torch.bfloat16, torch.float32
BLOCK, WARPS = 1024, 4


def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    copies: Sequence[Tensor | None],
    *,
    now: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameters and moments in place, and round the parameters into their copies.

    All fp32, of any shapes, but for the bf16 copies; now: fp64 [3]. Of one tensor at most 2^41
    elements. Gradients are left as they are.
    """
    check("adamw", now.device, ("now", now, (3,), torch.float64))
    rates = torch.empty(4, dtype=FP32, device=now.device)
    logs = [log(beta) if beta else -inf for beta in betas]
    _rates[(1,)](now, rates, lr, weight_decay, *logs, num_warps=1)
    for p, g, m, v, copy in zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True):
        shape = tuple(p.shape)
        named = (("parameter", p), ("gradient", g), ("exp_avg", m), ("exp_avg_sq", v))
        check("adamw", now.device, *((name, each, shape, FP32) for name, each in named))
        if copy is not None:
            check("adamw", now.device, ("copy", copy, shape, BF16))
        if p.numel():
            _adamw[(triton.cdiv(p.numel(), BLOCK),)](
                p, g, m, v, copy, rates, p.numel(), *betas, eps, BLOCK, num_warps=WARPS
            )


@triton.jit
def _rates(now, out, lr, weight_decay, log_beta1, log_beta2):
    """Step, decay, and what undoes the bias of sqrt(v), of one group; the factor on gradients.

    lr 0.1, decay 0.5, b1 0.9, b2 0.99, scale 1, first update: 0.1 / 0.1 = 1, 0.95, 1 / 0.1 = 10.
    """
    rate = tl.load(now) * lr
    count = tl.load(now + 1)
    first = 1.0 - tl.exp(count * log_beta1)
    second = 1.0 - tl.exp(count * log_beta2)
    tl.store(out, (rate / first).to(tl.float32))
    tl.store(out + 1, (1.0 - rate * weight_decay).to(tl.float32))
    tl.store(out + 2, (1.0 / tl.sqrt(second)).to(tl.float32))
    tl.store(out + 3, tl.load(now + 2).to(tl.float32))


@triton.jit
def _adamw(
    p, g, m, v, copy, rates, n,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With the rates above p = 2 and g = 3 give m 0.3, v 0.09, p 1.9 - 0.3 / 3 = 1.8."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < n
    step, decay, unbias = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2)
    grad = tl.load(g + at, mask=live, other=0.0) * tl.load(rates + 3)
    first = tl.load(m + at, mask=live, other=0.0)
    first += (grad - first) * (1 - BETA1)
    second = BETA2 * tl.load(v + at, mask=live, other=0.0) + (1 - BETA2) * grad * grad
    size = tl.sqrt_rn(second) * unbias + EPS
    value = tl.load(p + at, mask=live, other=0.0) * decay - step * tl.div_rn(first, size)
    tl.store(m + at, first, mask=live)
    tl.store(v + at, second, mask=live)
    tl.store(p + at, value, mask=live)
    if copy is not None:
        tl.store(copy + at, value.to(copy.dtype.element_ty), mask=live)
