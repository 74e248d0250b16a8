"""The sum of squares of many tensors: fp32 within a block, fp64 over blocks, in a fixed order.

Squares below 1e-38 count as nothing, above 3e38 as infinity: the elements of gradients lie between.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmoe.kernels.check import check

BLOCK, STEPS, WARPS = 1024, 16, 4  # a program adds up BLOCK x STEPS elements


def sum_squares(tensors: Sequence[Tensor]) -> Tensor:
    """fp64 scalar: the squares of all elements added up; 0 on the CPU when there is no tensor.

    tensors: fp32, of any shapes, also of more than 2^31 elements. Reads 4 bytes an element, once.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    device = tensors[0].device
    check("sum_squares", device, *(("tensor", x, tuple(x.shape), torch.float32) for x in tensors))
    counts = [triton.cdiv(x.numel(), BLOCK * STEPS) for x in tensors]
    parts = torch.empty(sum(counts), dtype=torch.float32, device=device)
    for x, part, count in zip(tensors, parts.split(counts), counts, strict=True):
        if count:
            _sum_squares[(count,)](x, part, x.numel(), BLOCK, STEPS, num_warps=WARPS)
    return parts.sum(dtype=torch.float64)


@triton.jit
def _sum_squares(x, out, n, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Of x = 1, 2, 3, 4, 5 with BLOCK 2 and STEPS 2: 30 of the first program, 25 of the second."""
    first = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < n, other=0.0)
        total += value * value
    tl.store(out + tl.program_id(0), tl.sum(total, 0))
